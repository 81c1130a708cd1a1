package imaging

// The steps of Square that are tested alone.
var (
	Orientation = orientation
	Shrink      = shrink
)

// Take takes one of the places in which photographs are decoded, and returns what gives it back.
func (p *Processor) Take() (giveBack func()) {
	p.slots <- struct{}{}
	return func() { <-p.slots }
}
