package netconf

import (
	"fmt"
	"maps"
	"path"
	"slices"
)

// Card is a network card as the machine has it now.
type Card struct {
	Name         string
	PermanentMAC string // lower case with colons; the address that it has, if it has no permanent one
	Driver       string
}

// Rename is one step: the interface From is to be named To. An interface must
// be down to be renamed on kernels before 6.2.
type Rename struct{ From, To string }

// Renames returns the steps that give the cards the names which the
// configuration wants, in an order in which no step meets a name that is still
// taken: where two cards swap names, one goes by way of a temporary name. A
// card that has its name already needs no step.
func Renames(cfg *Config, cards []Card) []Rename {
	want := map[string]string{} // present name → wanted name
	for i := range cfg.Links {
		l := &cfg.Links[i]
		if l.Kind != Ethernet || l.SetName == "" {
			continue
		}
		for _, c := range cards {
			if l.matches(c) {
				if c.Name != l.SetName && want[c.Name] == "" {
					want[c.Name] = l.SetName
				}
				break
			}
		}
	}
	taken := map[string]bool{}
	for _, c := range cards {
		taken[c.Name] = true
	}
	var steps []Rename
	do := func(from, to string) {
		steps = append(steps, Rename{from, to})
		delete(taken, from)
		taken[to] = true
		target := want[from]
		delete(want, from)
		if to != target {
			want[to] = target
		}
	}
	for len(want) > 0 {
		progress := false
		for _, c := range sortedKeys(want) {
			if !taken[want[c]] {
				do(c, want[c])
				progress = true
			}
		}
		if progress {
			continue
		}
		// Every wanted name is taken. If its holder moves too, a way round
		// exists; if not (a card that the configuration does not name), the
		// holder has to make room.
		holder := want[sortedKeys(want)[0]]
		aside := spare(taken, holder)
		if want[holder] == "" {
			want[holder] = aside
		}
		do(holder, aside)
	}
	return steps
}

// spare returns a name beside name that is not taken.
func spare(taken map[string]bool, name string) string {
	for i := 0; ; i++ {
		// The kernel's limit is 15 characters.
		if s := fmt.Sprintf("%.10s-old%d", name, i); !taken[s] {
			return s
		}
	}
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// matches says whether the card is the one that the link means.
func (l *Link) matches(c Card) bool {
	m := l.Match
	if m.empty() {
		return c.Name == l.ID
	}
	if m.MAC != "" && m.MAC != c.PermanentMAC {
		return false
	}
	return globs(m.Names, c.Name) && globs(m.Drivers, c.Driver)
}

// globs says whether any of the patterns matches; no pattern matches all.
func globs(patterns []string, s string) bool {
	for _, p := range patterns {
		if p == anyCard {
			return true
		}
		if ok, err := path.Match(p, s); ok && err == nil {
			return true
		}
	}
	return len(patterns) == 0
}
