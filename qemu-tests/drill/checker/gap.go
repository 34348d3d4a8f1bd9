package checker

import (
	"slices"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
)

// Gap is a stretch in which no client's write through the virtual address was
// acknowledged.
type Gap struct {
	Start time.Duration `json:"start"` // the last answer before
	End   time.Duration `json:"end"`   // the first after
	// Open: there was none after; End is when the clients stopped looking.
	Open bool `json:"open,omitempty"`
}

// Length is how long the gap was.
func (g Gap) Length() time.Duration { return g.End - g.Start }

// Longest is the longest gap that touches the time from one moment to another.
func Longest(ops []history.Op, from, to time.Duration) Gap {
	var acknowledged []time.Duration
	end := to
	for _, o := range ops {
		if end = max(end, o.Completed); o.Wrote() && o.Direct == "" {
			acknowledged = append(acknowledged, o.Completed)
		}
	}
	slices.Sort(acknowledged)
	var longest Gap
	last := time.Duration(0)
	for _, at := range acknowledged {
		if g := (Gap{Start: last, End: at}); at >= from && last <= to && g.Length() > longest.Length() {
			longest = g
		}
		last = at
	}
	if g := (Gap{Start: last, End: end, Open: true}); last <= to && g.Length() > longest.Length() && end > last && to > last {
		longest = g
	}
	return longest
}
