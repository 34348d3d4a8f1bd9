package cloudconfig

import (
	"fmt"
	"sort"
	"strings"
)

// Kind says what is the matter with a key.
type Kind string

const (
	Invalid     Kind = "invalid"     // the value cannot be used; the key is treated as absent
	Unknown     Kind = "unknown"     // no cloud-config key has this name
	Unsupported Kind = "unsupported" // a cloud-config key that a slipway node does not act on
	Note        Kind = "note"        // acted on, but not quite as written
)

// Finding is one thing in a document that does not take effect as written.
type Finding struct {
	Kind    Kind   `json:"kind"`
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"` // 1 is the first; 0 when it concerns the whole file
	Key     string `json:"key,omitempty"`  // path such as users[1].sudo
	Message string `json:"message"`
}

// String is the finding as one line: file:line: key: message. It never holds
// a value from the document, which may be a secret.
func (f Finding) String() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d", f.Line)
	}
	b.WriteString(": ")
	if f.Key != "" {
		b.WriteString(f.Key + ": ")
	}
	b.WriteString(f.Message)
	return b.String()
}

// Serious reports whether the finding is a mistake in the document rather than
// a key that this node merely does not act on.
func (f Finding) Serious() bool { return f.Kind == Invalid || f.Kind == Unknown }

// nearest returns the candidate that key is most likely a misspelling of, or "".
func nearest(key string, candidates []string) string {
	norm := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }
	sorted := append([]string(nil), candidates...)
	sort.Strings(sorted)
	best, bestDistance := "", 1+len(key)/3
	for _, c := range sorted {
		if d := distance(norm(key), norm(c)); d < bestDistance || (d == bestDistance && best == "") {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is Levenshtein's edit distance. Keys are short; longer ones are cut.
func distance(a, b string) int {
	const longest = 64
	a, b = a[:min(len(a), longest)], b[:min(len(b), longest)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
