package feedcache

// What the tests of the value's format need to see.
type OpLog = opLog

var (
	Parse      = parse
	FromSource = fromSource
	EncodeOps  = encodeOps
	NewTag     = newTag
)

const (
	Building = building
	Ready    = ready
	Removal  = removal
	Top      = top
)

func (l opLog) Floor() int64                              { return l.floor }
func (l opLog) State() byte                               { return l.state() }
func (l opLog) Len() int                                  { return len(l.entries) }
func (l opLog) Trim(n int) OpLog                          { return l.trim(n) }
func (l opLog) Encode(tag string) []byte                  { return l.encode(tag) }
func (l opLog) Below(before int64, n int) ([]int64, bool) { return l.below(before, n) }
