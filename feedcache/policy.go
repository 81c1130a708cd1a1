package feedcache

// A Policy says which way is cheaper for an author and one of the followers, or
// their average. It decides when to call [Fanout.Switch]; what is done until
// then is the stored [Route], whatever the rates become.
type Policy interface {
	Pull(a Author, v Viewer) bool
}

// An Author is what a [Policy] may know of who makes IDs.
type Author struct {
	Followers int64
	PerDay    float64 // IDs made in a day
}

// A Viewer is what a [Policy] may know of who reads them.
type Viewer struct {
	PagesPerDay float64 // 0: not known, and only the number of followers counts
}

// Costs is the usual [Policy]. It pulls an author of many followers, and else
// pushes if PerDay × PushCost < PagesPerDay × PullCost: the rule of Silberstein
// et al., "Feeding Frenzy", SIGMOD 2010, who show that a choice made for each
// pair alone is the best for all. The zero value works.
type Costs struct {
	// MaxFollowers is the number from which an author is pulled in any case.
	// Default: 10,000.
	MaxFollowers int64

	// PushCost and PullCost are what one delivery costs and what one more
	// outbox adds to a page, in the same unit. Default: 1 and 3, which is about
	// what they take of a Redis server's time (BenchmarkPush, BenchmarkPage).
	PushCost, PullCost float64
}

var _ Policy = Costs{}

// Pull implements [Policy].
func (c Costs) Pull(a Author, v Viewer) bool {
	if c.MaxFollowers == 0 {
		c.MaxFollowers = 10_000
	}
	if c.PushCost == 0 {
		c.PushCost = 1
	}
	if c.PullCost == 0 {
		c.PullCost = 3
	}
	if a.Followers >= c.MaxFollowers {
		return true
	}
	return v.PagesPerDay > 0 && a.PerDay*c.PushCost >= v.PagesPerDay*c.PullCost
}
