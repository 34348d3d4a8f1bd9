package resolve

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/internal/fault"
)

// chain tells how n came to be chosen: "patroni → python3-psycopg2 → libpq5".
func (s *solver) chain(n *node) string {
	names := []string{n.pkg.Name}
	for by := s.why[n]; by != nil && len(names) < 50; by = s.why[by] {
		names = append(names, by.pkg.Name)
	}
	slices.Reverse(names)
	return strings.Join(names, " → ")
}

// unmet is the error for a dependency that nothing can meet.
func (s *solver) unmet(n *node, clause apt.Clause) error {
	var have []string
	for _, r := range clause {
		s.blamePin(r.Name)
		switch c := s.u.nodes[r.Name]; {
		case s.isInstalled(r.Name):
			have = append(have, "installed is "+s.present[r.Name].pkg.ID())
		case c == nil && len(s.u.providers[r.Name]) == 0:
			have = append(have, "the archive has no "+r.Name)
		case c != nil && s.barred[c] != "":
			have = append(have, s.barred[c])
		case c != nil && s.failure[c] != nil:
			have = append(have, s.failure[c].Error())
		case c != nil:
			have = append(have, "the archive has "+c.pkg.ID())
		default:
			have = append(have, "no provider of "+r.Name+" can be installed")
		}
	}
	return fmt.Errorf("%s depends on %s, but %s", s.chain(n), clause, strings.Join(have, ", "))
}

// blamePin notes that a pinned package was in the way.
func (s *solver) blamePin(name string) {
	if c := s.u.nodes[name]; c != nil && s.u.pins[name] == c.pkg.Version && !s.isInstalled(name) {
		s.blame[name] = true
	}
}

// conflict is the error for n, whose relation r excludes other.
func (s *solver) conflict(n, other *node, r apt.Relation) error {
	s.blamePin(n.pkg.Name)
	s.blamePin(other.pkg.Name)
	c := &clash{text: fmt.Sprintf("%s conflicts with %s: it excludes %s", s.describe(n), s.describe(other), r)}
	switch {
	case s.chosen[n] && !s.kept[n]:
		c.loser = n
	case s.chosen[other] && !s.kept[other]:
		c.loser = other
	}
	return c
}

func (s *solver) describe(n *node) string {
	switch {
	case s.isInstalled(n.pkg.Name):
		return n.pkg.ID() + " (installed before)"
	case s.why[n] != nil:
		return fmt.Sprintf("%s (wanted by %s)", n.pkg.ID(), s.chain(s.why[n]))
	default:
		return n.pkg.ID()
	}
}

// unknown is the error for a wanted name that is no package.
func (u *Universe) unknown(name, file string) error {
	if providers := u.providers[name]; len(providers) > 0 {
		var names []string
		for _, p := range providers {
			names = append(names, p.by.pkg.Name)
		}
		slices.Sort(names)
		return fault.New(fault.Input, "%s: %s is a virtual package, provided by %s", wanter(file), name, strings.Join(slices.Compact(names), ", ")).
			WithMend("name one of those instead%s", in(file))
	}
	e := fault.New(fault.Input, "%s: there is no package %s in the archive", wanter(file), name)
	if near := u.near(name); len(near) > 0 {
		return e.WithMend("correct the name%s; similar ones are %s", in(file), strings.Join(near, ", "))
	}
	return e.WithMend("correct or remove the name%s", in(file))
}

func in(file string) string {
	if file == "" {
		return ""
	}
	return " in " + file
}

// near lists up to five package names similar to a name that is none.
func (u *Universe) near(name string) []string {
	type scored struct {
		name     string
		distance int
	}
	var found []scored
	limit := 1 + len(name)/4
	for other := range u.nodes {
		d := limit + 1
		if strings.HasPrefix(other, name+"-") || len(other) > 3 && strings.HasPrefix(name, other+"-") {
			d = limit
		}
		d = min(d, distance(name, other, limit))
		if d <= limit {
			found = append(found, scored{other, d})
		}
	}
	slices.SortFunc(found, func(a, b scored) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	var names []string
	for _, f := range found[:min(5, len(found))] {
		names = append(names, f.name)
	}
	return names
}

// distance is the Levenshtein distance of two names, or limit+1 if it is larger.
func distance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
