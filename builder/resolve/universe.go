// Package resolve computes which packages come with a list of wanted ones: the
// closure that `apt-get --no-install-recommends install` would choose.
//
// In: the packages of an archive (or of several), the wanted names, the packages
// that are installed already. Out: the packages to install, or an error that
// names the chain of dependencies that leads to what cannot be.
//
// The relations are those of Debian Policy, chapter 7. Where Policy leaves a
// choice, the order of choosing follows apt's: highest version first, depth
// first in the order of the fields, alternatives from left to right, the real
// package before its providers, providers by priority. A test holds the result
// against the machine's own apt.
package resolve

import (
	"cmp"
	"slices"
	"strings"

	"pault.ag/go/debian/version"

	"github.com/slipwayhq/slipway/builder/apt"
)

// Universe is what can be chosen from: of each name one candidate.
type Universe struct {
	nodes     map[string]*node
	pins      map[string]string
	providers map[string][]provision // by the name that is provided
}

// node is a candidate with its relations, which are parsed when first needed.
type node struct {
	pkg    *apt.Package
	parsed bool
	depends,
	conflicts []apt.Clause
	rank int // of its Priority, lower is more important
	seen int // place of its name among all names, by first mention
}

// provision is a candidate that provides a name.
type provision struct {
	by      *node
	version version.Version
	named   bool // it has a version: an unversioned one meets no version condition
}

// NewUniverse makes candidates of packages: of each name the highest version,
// and of equal versions the first. pins overrides that: a name in it gets just
// that version, if packages have it.
func NewUniverse(packages []*apt.Package, pins map[string]string) *Universe {
	u := &Universe{nodes: make(map[string]*node, len(packages)), pins: pins, providers: map[string][]provision{}}
	pinned := map[string]bool{}
	seen := mentions(packages)
	for _, p := range packages {
		isPin := pins[p.Name] == p.Version
		have, ok := u.nodes[p.Name]
		switch {
		case ok && pinned[p.Name]:
			continue
		case ok && !isPin && version.Compare(p.Parsed, have.pkg.Parsed) <= 0:
			continue
		}
		pinned[p.Name] = isPin
		u.nodes[p.Name] = &node{pkg: p, rank: rankOf(p.Priority), seen: seen[p.Name]}
	}
	for _, n := range u.nodes {
		provides, err := apt.ParseRelations(n.pkg.Provides)
		if err != nil {
			continue // dpkg would not take such a package; a wanted one fails in relations
		}
		for _, clause := range provides {
			for _, r := range clause {
				u.providers[r.Name] = append(u.providers[r.Name], provision{n, r.Version, r.Op == "="})
			}
		}
	}
	for _, list := range u.providers {
		slices.SortFunc(list, func(a, b provision) int { return compareProviders(a.by, b.by) })
	}
	return u
}

// mentions numbers the names of packages in the order in which the indices first
// mention them: as a package, or in one of its fields. It is by this order that
// apt decides between providers that are equal in every other respect.
func mentions(packages []*apt.Package) map[string]int {
	seen := make(map[string]int, 2*len(packages))
	note := func(name string) {
		if _, known := seen[name]; !known {
			seen[name] = len(seen)
		}
	}
	for _, p := range packages {
		note(p.Name)
		for _, field := range []string{p.PreDepends, p.Depends, p.Conflicts, p.Breaks, p.Recommends, p.Suggests, p.Replaces, p.Enhances, p.Provides} {
			for field != "" {
				var relation string
				if i := strings.IndexAny(field, ",|"); i >= 0 {
					relation, field = field[:i], field[i+1:]
				} else {
					relation, field = field, ""
				}
				relation = strings.TrimSpace(relation)
				if i := strings.IndexAny(relation, " ("); i >= 0 {
					relation = relation[:i]
				}
				name, arch, _ := strings.Cut(relation, ":")
				if name != "" && arch != "any" { // to apt, NAME:any is a name of its own
					note(name)
				}
			}
		}
	}
	return seen
}

// compareProviders orders those that provide the same: essential ones, then
// important ones, then by priority, then those first mentioned last.
func compareProviders(a, b *node) int {
	return cmp.Or(
		-compareBool(a.pkg.Essential, b.pkg.Essential),
		-compareBool(a.pkg.Protected, b.pkg.Protected),
		cmp.Compare(a.rank, b.rank),
		cmp.Compare(b.seen, a.seen),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

func rankOf(priority string) int {
	order := []string{"required", "important", "standard", "optional", "extra"}
	if i := slices.Index(order, priority); i >= 0 {
		return i
	}
	return len(order)
}

// Candidate returns the package that the name stands for, or nil.
func (u *Universe) Candidate(name string) *apt.Package {
	if n := u.nodes[name]; n != nil {
		return n.pkg
	}
	return nil
}

// Essential returns the names of the essential packages, sorted. A system has
// them all, wanted or not.
func (u *Universe) Essential() []string {
	var names []string
	for name, n := range u.nodes {
		if n.pkg.Essential {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// relations parses a node's dependencies and conflicts. Pre-Depends come first,
// as apt reads them.
func (n *node) relations() (depends, conflicts []apt.Clause, err error) {
	if n.parsed {
		return n.depends, n.conflicts, nil
	}
	for _, f := range []struct {
		text string
		into *[]apt.Clause
	}{
		{n.pkg.PreDepends, &depends}, {n.pkg.Depends, &depends},
		{n.pkg.Conflicts, &conflicts}, {n.pkg.Breaks, &conflicts},
	} {
		clauses, err := apt.ParseRelations(f.text)
		if err != nil {
			return nil, nil, err
		}
		*f.into = append(*f.into, clauses...)
	}
	n.depends, n.conflicts, n.parsed = depends, conflicts, true
	return depends, conflicts, nil
}

// targets lists the candidates that meet one relation: the package of that name
// first, then those that provide it.
func (u *Universe) targets(r apt.Relation) []*node {
	var found []*node
	if n := u.nodes[r.Name]; n != nil && n.is(r) {
		found = append(found, n)
	}
	for _, p := range u.providers[r.Name] {
		if p.meets(r) && !slices.Contains(found, p.by) {
			found = append(found, p.by)
		}
	}
	return found
}

// is says whether the package itself meets the relation.
func (n *node) is(r apt.Relation) bool {
	return n.pkg.Name == r.Name && archFits(n.pkg, r) && r.Allows(n.pkg.Parsed)
}

// meets says whether the provision meets the relation.
func (p provision) meets(r apt.Relation) bool {
	if !archFits(p.by.pkg, r) {
		return false
	}
	return r.Op == "" || p.named && r.Allows(p.version)
}

// archFits judges an architecture qualifier where there is one architecture:
// "any" asks for a package that lets others use it across architectures.
func archFits(p *apt.Package, r apt.Relation) bool {
	switch r.Arch {
	case "", "native":
		return true
	case "any":
		return p.MultiArch == "allowed"
	default:
		return r.Arch == p.Arch
	}
}
