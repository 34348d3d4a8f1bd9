package status

import (
	"fmt"
	"strings"
	"time"
)

// Version is one version of the image that a node has.
type Version struct {
	Version  string    `json:"version"`
	Created  time.Time `json:"created,omitzero"`
	Manifest string    `json:"manifest"` // SHA-256 of its manifest, hexadecimal
	// PostgreSQL is the major version that it brings; "" if none.
	PostgreSQL string `json:"postgresql,omitempty"`
	Running    bool   `json:"running,omitempty"`
	Good       bool   `json:"good,omitempty"`     // the one to start from
	Previous   bool   `json:"previous,omitempty"` // good before that: what a rollback goes to
	Trial      bool   `json:"trial,omitempty"`    // to be tried, with so many starts left
	Tries      int    `json:"tries,omitempty"`
	// Failed is why it did not come up when it was tried; "" if it did.
	Failed string `json:"failed,omitempty"`
	// Incomplete is a version that an interrupted upgrade or clean-up left behind. It
	// cannot be started.
	Incomplete bool `json:"incomplete,omitempty"`
}

// What is the version's part on the node, in words.
func (v Version) What() string {
	var words []string
	for _, w := range []struct {
		is   bool
		word string
	}{
		{v.Running, "runs"}, {v.Good, "good"}, {v.Previous, "previous"}, {v.Trial, fmt.Sprintf("on trial, %d starts left", v.Tries)},
		{v.Incomplete, "incomplete"}, {v.Failed != "", "failed: " + v.Failed},
	} {
		if w.is {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, ", ")
}
