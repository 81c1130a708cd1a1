package pgbounce

// A request is a message to a server that an answer will come for, or one that
// we answer ourselves when its turn comes.
type request struct {
	// kind is the type byte of the client's message:
	//
	//	Q, F, S   answered by Z
	//	P         1
	//	B         2
	//	C         3
	//	D         T or n
	//	E         C, I or s
	//	c         not answered: where the client ended a copy it had no leave for
	kind byte
	how  how
	// name and statement are what a P, B, D or C is about. For a P or C they
	// are also what is undone if the server never gets to it.
	name      *named
	statement *statement
	counted   bool // as one that changes what a name stands for
}

type how uint8

const (
	forwarded how = iota
	injected      // ours: its answer is not for the client
	faked         // ours to answer: the server has not seen it
	taken         // a P of a name that is taken: forwarded, and bound to fail
	probed        // a P of what the server has, sent to see whether it may be now
)

// maxOutstanding bounds what a client may make us remember.
const maxOutstanding = 1 << 18

// outstanding is the queue of a server's requests.
type outstanding struct {
	ring []request
	head int
	n    int
	// failed tells that the server skips everything up to the next Sync, which
	// it has not been sent yet.
	failed bool
	// readies is how many Z will come for what is in the queue, and unsure how
	// many of its requests about names lie before the last of them: what they
	// do is not known yet.
	readies, unsure, fresh int
}

func (o *outstanding) push(r request) {
	if o.n == len(o.ring) {
		ring := make([]request, max(16, 2*o.n))
		for i := range o.n {
			ring[i] = *o.at(i)
		}
		o.ring, o.head = ring, 0
	}
	*o.at(o.n) = r
	o.n++
	switch {
	case r.ends():
		o.readies++
		o.unsure, o.fresh = o.unsure+o.fresh, 0
	case r.names():
		o.at(o.n - 1).counted = true
		o.fresh++
	}
}

// ends tells whether a Z answers the request.
func (r *request) ends() bool { return r.kind == 'S' || r.kind == 'Q' || r.kind == 'F' }

// names tells whether the request changes what a name stands for.
func (r *request) names() bool {
	return (r.kind == 'P' || r.kind == 'C') && (r.name != nil || r.statement != nil)
}

func (o *outstanding) at(i int) *request { return &o.ring[(o.head+i)&(len(o.ring)-1)] }

// first returns the request whose answer comes next, or nil.
func (o *outstanding) first() *request {
	if o.n == 0 {
		return nil
	}
	return o.at(0)
}

func (o *outstanding) pop() {
	o.forget(o.at(0))
	*o.at(0) = request{}
	o.head = (o.head + 1) & (len(o.ring) - 1)
	o.n--
	if o.n == 0 && len(o.ring) > 1024 {
		o.ring, o.head = nil, 0
	}
}

// forget takes a request out of the counts.
func (o *outstanding) forget(r *request) {
	switch {
	case r.ends():
		o.readies--
	case r.counted && o.unsure > 0:
		o.unsure--
	case r.counted:
		o.fresh--
	}
}

// remove takes the i-th request out.
func (o *outstanding) remove(i int) {
	o.forget(o.at(i))
	for ; i < o.n-1; i++ {
		*o.at(i) = *o.at(i + 1)
	}
	*o.at(i) = request{}
	o.n--
}

// fail drops what the server skips after an error: all up to the next Sync. It
// calls undo for each from the last to the first. The first one met the error,
// the others never ran.
func (o *outstanding) fail(undo func(r *request, ran bool)) {
	n := 0
	for n < o.n && o.at(n).kind != 'S' {
		n++
	}
	o.failed = n == o.n
	for i := n - 1; i >= 0; i-- {
		undo(o.at(i), i == 0)
	}
	for range n {
		o.pop()
	}
}

// copying drops the Syncs that the server reads as part of a copy which the
// first request has begun: it ignores them. It tells whether the client has
// ended that copy already.
func (o *outstanding) copying() (ended bool) {
	for o.n > 1 {
		kind := o.at(1).kind
		if kind != 'c' && (kind != 'S' || o.at(0).kind != 'E') {
			return false
		}
		o.remove(1)
		if kind == 'c' {
			return true
		}
	}
	return false
}

func (o *outstanding) clear() {
	for o.n > 0 {
		o.pop()
	}
	o.failed = false
}
