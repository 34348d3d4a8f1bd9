// Package schedule works out what a drill does when: rounds of a fault, its
// targets, how long it is held, how long the cluster rests afterwards.
//
// In go a cluster's plan, the faults that are wanted, how many rounds of each, and
// a seed; out come Rounds. It is a pure function: the same four give the same
// rounds, in every version of slipway that has this Format, so that a run can be
// repeated from what its report says. Targets have Jepsen's names (Jepsen,
// "nemesis": one, minority, majority, primary, all).
package schedule

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Format is the version of the way from a seed to rounds.
const Format = 1

// Target says which nodes a fault hits.
type Target string

const (
	One      Target = "one"      // a database node of the site that serves
	Minority Target = "minority" // as many of the site's voters as may be lost
	Majority Target = "majority" // one voter more than that
	Primary  Target = "primary"  // the writable database, whichever that is then
	All      Target = "all"      // every node of the site that serves
	Holder   Target = "holder"   // who has the virtual address then
)

// Targets are all targets, the gentlest first.
var Targets = []Target{One, Primary, Holder, Minority, Majority, All}

// Fault is what the schedule knows of a fault.
type Fault struct {
	Name string
	// Targets are those that make sense for it.
	Targets []Target
	// Shortest and Longest bound how long it is held. Both 0: it is over when it
	// has happened, such as a killed process.
	Shortest, Longest time.Duration
}

// Round is one fault.
type Round struct {
	Number int    `json:"number"` // from 1
	Fault  string `json:"fault"`
	Target Target `json:"target"`
	// Nodes are whom it hits; nil where only the moment tells (primary, holder).
	Nodes []string      `json:"nodes,omitempty"`
	Hold  time.Duration `json:"hold_ns"`
	Rest  time.Duration `json:"rest_ns"` // before it, with the cluster whole
	Seed  uint64        `json:"seed"`    // of what chance the fault itself needs
}

// Rest is how long clients work undisturbed before a fault, at least and at most.
const (
	shortestRest = 5 * time.Second
	longestRest  = 15 * time.Second
)

// New works out rounds: each fault as often as said, one after the other, its
// targets in turn.
func New(p *plan.Plan, faults []Fault, rounds int, seed uint64) ([]Round, error) {
	site, err := Serving(p)
	if err != nil {
		return nil, err
	}
	if rounds < 1 || rounds > 10_000 {
		return nil, fault.New(fault.Usage, "there are 1 to 10000 rounds of each fault, not %d", rounds)
	}
	var all []Round
	for _, f := range faults {
		// Each fault has its own sequence, so that its rounds are the same whatever else is wanted.
		random := rand.New(rand.NewPCG(seed, hash(f.Name)))
		turn := possible(p, site, f.Targets)
		if len(turn) == 0 {
			return nil, fault.New(fault.Usage, "the fault %s has no target in cluster %s", f.Name, p.Cluster)
		}
		first := random.IntN(len(turn))
		for i := range rounds {
			target := turn[(first+i)%len(turn)]
			all = append(all, Round{
				Number: len(all) + 1, Fault: f.Name, Target: target, Nodes: choose(p, site, target, random),
				Hold: between(random, f.Shortest, f.Longest), Rest: between(random, shortestRest, longestRest), Seed: random.Uint64(),
			})
		}
	}
	return all, nil
}

// Serving is the site whose database can be written to.
func Serving(p *plan.Plan) (string, error) {
	if site := p.WritableSite(); site != "" {
		return site, nil
	}
	return "", fault.New(fault.Usage, "cluster %s has no database to drill", p.Cluster)
}

// possible leaves out targets that a cluster does not have, or that are another
// target there.
func possible(p *plan.Plan, site string, wanted []Target) (turn []Target) {
	voters := len(p.ConsensusNodes(site))
	for _, t := range Targets {
		switch {
		case !slices.Contains(wanted, t):
		case t == Minority && voters < 5: // that is one
		case t == Majority && voters < 3: // that is all
		case t == Holder && len(p.VIPs) == 0:
		default:
			turn = append(turn, t)
		}
	}
	return turn
}

func choose(p *plan.Plan, site string, t Target, random *rand.Rand) []string {
	var from []plan.Node
	count := 0
	switch t {
	case One:
		from, count = p.DatabaseNodes(site), 1
	case Minority:
		from = p.ConsensusNodes(site)
		count = (len(from) - 1) / 2
	case Majority:
		from = p.ConsensusNodes(site)
		count = len(from)/2 + 1
	case All:
		for _, n := range p.Nodes {
			if n.Site == site {
				from = append(from, n)
			}
		}
		count = len(from)
	default:
		return nil
	}
	var names []string
	for _, i := range random.Perm(len(from))[:count] {
		names = append(names, from[i].Name)
	}
	slices.Sort(names)
	return names
}

// between is a time in whole seconds, which reads well.
func between(random *rand.Rand, shortest, longest time.Duration) time.Duration {
	steps := int64((longest - shortest) / time.Second)
	return shortest + time.Duration(random.Int64N(steps+1))*time.Second
}

// hash is FNV-1a (draft-eastlake-fnv), 64 bits.
func hash(text string) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range []byte(text) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h
}

// Whom names the round's nodes, or how they are found.
func (r Round) Whom() string {
	if len(r.Nodes) > 0 {
		return strings.Join(r.Nodes, ", ")
	}
	return map[Target]string{Primary: "the primary", Holder: "the holder of the virtual address"}[r.Target]
}

// Text is a schedule as people read it.
func Text(rounds []Round) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ROUND\tREST\tFAULT\tTARGET\tHELD\tNODES")
	for _, r := range rounds {
		held := "-"
		if r.Hold > 0 {
			held = r.Hold.String()
		}
		fmt.Fprintf(w, "%d\t%v\t%s\t%s\t%s\t%s\n", r.Number, r.Rest, r.Fault, r.Target, held, r.Whom())
	}
	w.Flush()
	return b.String()
}
