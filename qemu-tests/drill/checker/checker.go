// Package checker judges a history of clients (package history), what the
// databases hold afterwards, and who was seen with the virtual addresses.
//
// In goes an Input, out comes a Verdict: claims that held or did not, each with the
// operations that show it. Nothing is believed of the cluster but what its
// clients, its databases' contents and the frames on its switch say. The claims on
// the set are those of Jepsen's "set" workload; registers are judged by
// Porcupine, after Herlihy and Wing's linearizability and Lowe's "Testing for
// linearizability" (2017).
package checker

import (
	"fmt"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
)

// Input is what is judged.
type Input struct {
	Ops []history.Op
	// Final is what the set holds on each database node once the cluster has
	// recovered; Primary is the one of them that is writable.
	Final   map[string][]int64
	Primary string
	// Addresses are who was seen with virtual addresses.
	Addresses Addresses
	// Minimum is how many acknowledged operations a run must have to say anything.
	Minimum int
}

// Verdict is the outcome of all checks.
type Verdict struct {
	Claims []Claim `json:"claims"`
	Counts Counts  `json:"counts"`
}

// Counts are how many operations had which outcome.
type Counts struct {
	Acknowledged int `json:"acknowledged"`
	Failed       int `json:"failed"`
	Unknown      int `json:"unknown"`
	// Lost are acknowledged inserts that are missing.
	Lost int `json:"lost"`
}

// Claim is what was checked, and what speaks against it.
type Claim struct {
	Name string `json:"name"` // one word, for programs
	What string `json:"what"` // a sentence that is true if the claim held
	Held bool   `json:"held"`
	// Evidence is what speaks against it, at most mostEvidence of Found.
	Evidence []string `json:"evidence"`
	Found    int      `json:"found"`
}

// mostEvidence is how much of what speaks against a claim is told.
const mostEvidence = 20

// against puts down something that speaks against the claim.
func (c *Claim) against(format string, args ...any) {
	c.Held = false
	if c.Found++; len(c.Evidence) < mostEvidence {
		c.Evidence = append(c.Evidence, fmt.Sprintf(format, args...))
	}
}

func claim(name, what string) *Claim {
	return &Claim{Name: name, What: what, Held: true, Evidence: []string{}}
}

// Held says whether all claims held.
func (v Verdict) Held() bool {
	for _, c := range v.Claims {
		if !c.Held {
			return false
		}
	}
	return true
}

// Claim finds a claim by name.
func (v Verdict) Claim(name string) Claim {
	for _, c := range v.Claims {
		if c.Name == name {
			return c
		}
	}
	return Claim{Name: name}
}

// registerTime bounds the search for an order of one register's operations.
const registerTime = 30 * time.Second

// Check judges.
func Check(in Input) Verdict {
	v := Verdict{Counts: count(in.Ops)}
	nothingLost, nothingElse, same := set(in)
	if _, known := in.Final[in.Primary]; known {
		v.Counts.Lost = nothingLost.Found
	}
	for _, c := range []*Claim{
		nothingLost, nothingElse, same, oneWriter(in.Ops), linearizable(in.Ops, registerTime),
		oneHolder(in.Addresses), holderWritable(in.Addresses), enough(v.Counts, in.Minimum),
	} {
		v.Claims = append(v.Claims, *c)
	}
	return v
}

func count(ops []history.Op) (c Counts) {
	for _, o := range ops {
		switch o.Outcome {
		case history.Acknowledged:
			c.Acknowledged++
		case history.Failed:
			c.Failed++
		case history.Unknown:
			c.Unknown++
		}
	}
	return c
}

func enough(c Counts, minimum int) *Claim {
	enough := claim("enough", "There are enough acknowledged operations to judge by.")
	if c.Acknowledged < minimum {
		enough.against("%d operations were acknowledged, and %d are the minimum", c.Acknowledged, minimum)
	}
	return enough
}
