package checker

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Addresses are sightings of virtual addresses.
type Addresses struct {
	// Frames are moments at which a node sent from a virtual address, as the switch
	// saw it, by the address's name, in order.
	Frames map[string][]Sighting
	// Samples are what the nodes said of themselves, in order.
	Samples []Sample
}

// Sighting is a node that sent from a virtual address.
type Sighting struct {
	At   time.Duration `json:"at"`
	Node string        `json:"node"`
}

// Sample is what the nodes of a cluster say at one moment.
type Sample struct {
	At time.Duration `json:"at"`
	// Primaries are the nodes that call themselves the writable leader.
	Primaries []string `json:"primaries"`
	// Holders are the nodes that say that they hold a virtual address, by its name.
	Holders map[string][]string `json:"holders"`
	// Writable are the nodes from which a virtual address leads to a database that
	// can be written to, by its name.
	Writable map[string][]string `json:"writable"`
	Silent   []string            `json:"silent,omitempty"` // nodes that gave no answer
	Whole    bool                `json:"whole"`            // all are ready and nothing contradicts
	Problems []string            `json:"problems,omitempty"`
}

// Words are why a sample is not whole.
func (s Sample) Words() string {
	words := slices.Clone(s.Problems)
	if len(s.Silent) > 0 {
		words = append(words, "no answer from "+strings.Join(s.Silent, ", "))
	}
	return strings.Join(words, "; ")
}

// Tolerances, and why they are not 0.
const (
	// frameTolerance: a machine that was paused goes on sending from an address that it no longer has, until
	// keepalived in it hears of the other holder, an advertisement (1 s) later; the guests are slow.
	frameTolerance = 5 * time.Second
	// sampleTolerance: an agent looks at its own services every 10 s and takes up to 4 s for each, so two
	// answers to one question may be half a minute apart.
	sampleTolerance = 30 * time.Second
)

// oneHolder looks for two nodes that had an address at once.
func oneHolder(a Addresses) *Claim {
	c := claim("one-holder", "No virtual address was on two nodes at once.")
	for _, vip := range slices.Sorted(maps.Keys(a.Frames)) {
		alternating(a.Frames[vip], func(x, y Sighting, until time.Duration) {
			c.against("%s: %s and %s both sent from it, from %.1f s to %.1f s", vip, x.Node, y.Node, y.At.Seconds(), until.Seconds())
		})
	}
	lasting(a.Samples, func(s Sample) map[string]string {
		two := map[string]string{}
		for vip, holders := range s.Holders {
			if len(holders) > 1 {
				two[vip] = fmt.Sprintf("%s says of itself that it is on each of %v", vip, holders)
			}
		}
		return two
	}, c)
	return c
}

// alternating finds stretches in which two nodes take turns: between two frames of
// one there is a frame of the other. An address that moves and later comes back
// has frames far apart.
func alternating(seen []Sighting, report func(x, y Sighting, until time.Duration)) {
	last := map[string]Sighting{}
	var since, other Sighting
	var until time.Duration
	flush := func() {
		if since.Node != "" && until-since.At > frameTolerance {
			report(other, since, until)
		}
		since = Sighting{}
	}
	before := Sighting{}
	began := map[string]Sighting{} // the frame with which a node's present turn began
	for _, s := range seen {
		if before.Node != "" && s.Node != before.Node {
			mine, known := last[s.Node]
			if known && s.At-mine.At <= 2*frameTolerance {
				if since.Node == "" {
					since, other = began[before.Node], mine
				}
				until = s.At
			} else {
				flush()
			}
			began[s.Node] = s
		} else if before.Node == "" {
			began[s.Node] = s
		}
		last[s.Node], before = s, s
	}
	flush()
}

// holderWritable looks for an address that led nowhere while there was a primary.
func holderWritable(a Addresses) *Claim {
	c := claim("holder-writable", "The holder of a virtual address led to the writable primary while there was one.")
	lasting(a.Samples, func(s Sample) map[string]string {
		dead := map[string]string{}
		for vip, holders := range s.Holders {
			if len(s.Primaries) == 0 || len(holders) == 0 {
				continue
			}
			if !slices.ContainsFunc(holders, func(h string) bool { return slices.Contains(s.Writable[vip], h) }) {
				dead[vip] = fmt.Sprintf("%s is on %v, which leads to no writable database, while %v is the primary", vip, holders, s.Primaries)
			}
		}
		return dead
	}, c)
	return c
}

// lasting reports what samples find wrong for longer than can be explained by the
// age of their answers.
func lasting(samples []Sample, wrong func(Sample) map[string]string, c *Claim) {
	type stretch struct {
		since time.Duration
		text  string
		told  bool
	}
	open := map[string]*stretch{}
	for _, s := range samples {
		now := wrong(s)
		for vip := range open {
			if now[vip] == "" {
				delete(open, vip)
			}
		}
		for _, vip := range slices.Sorted(maps.Keys(now)) {
			if open[vip] == nil {
				open[vip] = &stretch{since: s.At}
			}
			o := open[vip]
			if o.text = now[vip]; s.At-o.since > sampleTolerance && !o.told {
				o.told = true
				c.against("from %.1f s to %.1f s and perhaps longer: %s", o.since.Seconds(), s.At.Seconds(), o.text)
			}
		}
	}
}
