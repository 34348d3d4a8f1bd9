package checker

import (
	"maps"
	"slices"

	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
)

// set compares what was inserted with what is there.
func set(in Input) (nothingLost, nothingElse, same *Claim) {
	nothingLost = claim("nothing-lost", "Every insert that was acknowledged is there, on the primary and on every replica.")
	nothingElse = claim("nothing-else", "Nothing is there that was not inserted, or whose insert had failed.")
	same = claim("same", "The primary and all replicas hold the same.")

	inserts := map[int64]history.Op{}
	for _, o := range in.Ops {
		if o.Kind != history.Insert {
			continue
		}
		if other, twice := inserts[o.Value]; twice {
			nothingElse.against("two clients inserted the same number, so that nothing can be said of it: %s; %s", other, o)
		}
		inserts[o.Value] = o
	}
	held := map[string]map[int64]bool{}
	for node, values := range in.Final {
		held[node] = map[int64]bool{}
		for _, value := range values {
			held[node][value] = true
		}
	}
	primary, known := held[in.Primary]
	if !known {
		nothingLost.against("what the primary holds is not known")
		return nothingLost, nothingElse, same
	}
	nodes := slices.Sorted(maps.Keys(held))
	for _, value := range slices.Sorted(maps.Keys(inserts)) {
		if o := inserts[value]; o.Outcome == history.Acknowledged {
			var missing []string
			for _, node := range nodes {
				if !held[node][value] {
					missing = append(missing, node)
				}
			}
			if len(missing) > 0 {
				nothingLost.against("missing on %v: %s", missing, o)
			}
		}
	}
	there := map[int64]bool{}
	for _, node := range nodes {
		for value := range held[node] {
			there[value] = true
		}
	}
	for _, value := range slices.Sorted(maps.Keys(there)) {
		switch o, inserted := inserts[value]; {
		case !inserted:
			nothingElse.against("%d is there, and nobody inserted it", value)
		case o.Outcome == history.Failed:
			nothingElse.against("it is there, although it had failed: %s", o)
		}
		for _, node := range nodes {
			if held[node][value] != primary[value] {
				same.against("%d is there on the primary, %s: %t; on %s: %t", value, in.Primary, primary[value], node, held[node][value])
			}
		}
	}
	return nothingLost, nothingElse, same
}
