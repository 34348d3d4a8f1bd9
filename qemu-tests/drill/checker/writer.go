package checker

import (
	"slices"

	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
)

// oneWriter looks at which server acknowledged what, when. A promotion begins a
// new timeline, whose number is higher (PostgreSQL documentation, "Timelines"): so
// a timeline has one writer, and once a write on a later one was acknowledged, no
// server may acknowledge a write on an earlier one that was asked for afterwards.
// Operations whose times overlap prove neither order.
func oneWriter(ops []history.Op) *Claim {
	c := claim("one-writer", "At no time two servers accepted writes, and timelines never went back.")
	var writes []history.Op
	first := map[int]history.Op{} // of each timeline
	for _, o := range ops {
		switch {
		case !o.Wrote():
			continue
		case o.Server == "" || o.Timeline == 0:
			c.against("nobody knows which server did it: %s", o)
			continue
		}
		writes = append(writes, o)
		if other, known := first[o.Timeline]; !known {
			first[o.Timeline] = o
		} else if other.Server != o.Server {
			c.against("two servers wrote on one timeline: %s; %s", other, o)
		}
	}
	byEnd := slices.Clone(writes)
	slices.SortStableFunc(byEnd, func(a, b history.Op) int { return int(a.Completed - b.Completed) })
	slices.SortStableFunc(writes, func(a, b history.Op) int { return int(a.Invoked - b.Invoked) })
	var latest history.Op // of the writes that had ended, the one on the highest timeline
	for _, o := range writes {
		for len(byEnd) > 0 && byEnd[0].Completed < o.Invoked {
			if byEnd[0].Timeline > latest.Timeline {
				latest = byEnd[0]
			}
			byEnd = byEnd[1:]
		}
		if o.Timeline < latest.Timeline {
			c.against("a write was accepted on an earlier timeline, after one on a later: %s; after %s", o, latest)
		}
	}
	return c
}
