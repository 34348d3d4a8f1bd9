package resolve

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Request is what to resolve.
type Request struct {
	Roots     []string       // wanted packages; where alternatives overlap, the earlier one decides
	File      string         // who wants them, for messages: a profile's file
	Installed []*apt.Package // packages that are there and stay as they are
}

// PinError is what Closure wraps when pins may be what stands in the way. Names
// are the pinned packages that were in the way of something.
type PinError struct {
	Names []string
	err   error
}

func (e *PinError) Error() string { return e.err.Error() }
func (e *PinError) Unwrap() error { return e.err }

// Closure returns the packages to install so that the wanted ones work, without
// those that are installed, sorted by name. Errors are of class Input.
func (u *Universe) Closure(req Request) ([]*apt.Package, error) {
	s := &solver{u: u, barred: map[*node]string{}, blame: map[string]bool{}}
	for _, name := range req.Roots {
		n := u.nodes[name]
		if n == nil {
			return nil, u.unknown(name, req.File)
		}
		if !slices.Contains(s.roots, n) {
			s.roots = append(s.roots, n)
		}
	}
	for _, p := range req.Installed {
		s.installed = append(s.installed, &node{pkg: p, rank: rankOf(p.Priority)})
	}
	// A conflict between two that nobody named shows only when both are chosen.
	// The later one is then barred and everything is chosen anew.
	const attempts = 50
	for range attempts {
		err := s.run()
		var clash *clash
		switch {
		case err == nil:
			return s.result(), nil
		case errors.As(err, &clash) && clash.loser != nil:
			s.barred[clash.loser] = clash.Error()
		default:
			if len(s.blame) > 0 {
				err = &PinError{slices.Sorted(maps.Keys(s.blame)), err}
			}
			return nil, fault.New(fault.Input, "%s: %w", wanter(req.File), err).
				WithMend("%s", mendFor(req.File))
		}
	}
	return nil, fault.New(fault.Input, "%s: no choice of alternatives without conflicts was found in %d attempts", wanter(req.File), attempts).
		WithMend("%s", mendFor(req.File))
}

func wanter(file string) string {
	if file == "" {
		return "the wanted packages"
	}
	return file
}

func mendFor(file string) string {
	if file == "" {
		return "want other packages, or name the alternative to take"
	}
	return "change the package list in " + file + ", or name there the alternative to take"
}

// solver chooses packages for one request.
type solver struct {
	u         *Universe
	roots     []*node
	installed []*node
	barred    map[*node]string // not to be chosen, and why
	blame     map[string]bool  // pinned packages that were in the way

	chosen  map[*node]bool
	present map[string]*node // chosen or installed, by name
	offers  map[string][]provision
	order   []*node         // chosen, in order of choosing
	why     map[*node]*node // who asked for it first; nil: the user
	failure map[*node]error // why a node could not be chosen
	kept    map[*node]bool  // must stay: wanted, or the only way to what is wanted
	busy    map[*node]bool  // its dependencies are being chosen
}

// clash is a conflict between two chosen packages.
type clash struct {
	text  string
	loser *node // the one to give up, if that is possible
}

func (c *clash) Error() string { return c.text }

func (s *solver) run() error {
	s.chosen, s.present, s.offers = map[*node]bool{}, map[string]*node{}, map[string][]provision{}
	s.order, s.why, s.failure = nil, map[*node]*node{}, map[*node]error{}
	s.kept, s.busy = map[*node]bool{}, map[*node]bool{}
	for _, n := range s.installed {
		s.enter(n)
	}
	// All wanted ones count as chosen before any dependency is looked at, so that
	// an alternative among them settles the choice.
	var todo []*node
	for _, n := range s.roots {
		if s.isInstalled(n.pkg.Name) {
			continue
		}
		s.why[n] = nil
		todo = append(todo, n)
		s.choose(n)
		s.kept[n] = true
	}
	for _, n := range todo {
		if err := s.complete(n); err != nil {
			return fmt.Errorf("%s cannot be installed: %w", n.pkg.Name, err)
		}
	}
	s.sweep()
	return s.check()
}

func (s *solver) isInstalled(name string) bool {
	n := s.present[name]
	return n != nil && !s.chosen[n]
}

// enter makes a package and what it provides present.
func (s *solver) enter(n *node) {
	s.present[n.pkg.Name] = n
	provides, err := apt.ParseRelations(n.pkg.Provides)
	if err != nil {
		return
	}
	for _, clause := range provides {
		for _, r := range clause {
			s.offers[r.Name] = append(s.offers[r.Name], provision{n, r.Version, r.Op == "="})
		}
	}
}

func (s *solver) choose(n *node) {
	s.chosen[n] = true
	s.order = append(s.order, n)
	s.enter(n)
}

// drop takes back a choice.
func (s *solver) drop(n *node) {
	delete(s.chosen, n)
	s.order = slices.DeleteFunc(s.order, func(o *node) bool { return o == n })
	delete(s.present, n.pkg.Name)
	for name, list := range s.offers {
		s.offers[name] = slices.DeleteFunc(list, func(p provision) bool { return p.by == n })
	}
}

// satisfiedBy returns a present package that meets the clause, or nil.
func (s *solver) satisfiedBy(clause apt.Clause) *node {
	for _, r := range clause {
		if found := s.presentTargets(r); len(found) > 0 {
			return found[0]
		}
	}
	return nil
}

// presentTargets lists the present packages that meet a relation.
func (s *solver) presentTargets(r apt.Relation) []*node {
	var found []*node
	if n := s.present[r.Name]; n != nil && n.is(r) {
		found = append(found, n)
	}
	for _, p := range s.offers[r.Name] {
		if p.meets(r) && !slices.Contains(found, p.by) {
			found = append(found, p.by)
		}
	}
	return found
}

// solutions lists the candidates that could meet the clause, best first.
func (s *solver) solutions(clause apt.Clause) []*node {
	var found []*node
	for _, r := range clause {
		targets := s.u.targets(r)
		slices.SortStableFunc(targets, func(a, b *node) int { return -compareBool(s.kept[a], s.kept[b]) })
		for _, n := range targets {
			if _, no := s.barred[n]; !no && !s.isInstalled(n.pkg.Name) && !slices.Contains(found, n) {
				found = append(found, n)
			}
		}
	}
	return found
}

// take chooses n, which by depends on, with all that it needs. If it fails,
// nothing of n remains chosen, though some of its dependencies may.
func (s *solver) take(n, by *node) error {
	if s.chosen[n] {
		return nil
	}
	if err := s.failure[n]; err != nil {
		return err
	}
	if why, no := s.barred[n]; no {
		return errors.New(why)
	}
	if _, known := s.why[n]; !known {
		s.why[n] = by
	}
	if err := s.possible(n); err != nil {
		s.failure[n] = err
		return err
	}
	if err := s.makeRoom(n); err != nil {
		return err
	}
	s.choose(n)
	if err := s.complete(n); err != nil {
		s.drop(n)
		s.failure[n] = err
		return err
	}
	return nil
}

// possible says whether each dependency of n could be met by some candidate.
func (s *solver) possible(n *node) error {
	depends, _, err := n.relations()
	if err != nil {
		return fmt.Errorf("%s: %w", n.pkg.ID(), err)
	}
	for _, clause := range depends {
		if s.satisfiedBy(clause) == nil && !slices.ContainsFunc(s.solutions(clause), func(c *node) bool { return s.failure[c] == nil }) {
			return s.unmet(n, clause)
		}
	}
	return nil
}

// makeRoom gives up chosen packages that n conflicts with, where they may go.
func (s *solver) makeRoom(n *node) error {
	_, conflicts, err := n.relations()
	if err != nil {
		return err
	}
	for _, clause := range conflicts {
		for _, r := range clause {
			for _, other := range s.presentTargets(r) {
				if other.pkg.Name == n.pkg.Name {
					continue
				}
				if !s.chosen[other] || s.kept[other] || s.busy[other] {
					return s.conflict(n, other, r)
				}
				s.drop(other)
			}
		}
	}
	return nil
}

// complete chooses what n, which is chosen, depends on.
func (s *solver) complete(n *node) error {
	depends, _, err := n.relations()
	if err != nil {
		return fmt.Errorf("%s: %w", n.pkg.ID(), err)
	}
	s.busy[n] = true
	defer delete(s.busy, n)
	for _, clause := range depends {
		if err := s.meet(n, clause); err != nil {
			return err
		}
	}
	return nil
}

// meet sees to it that one dependency of n is met. The only way to something
// that must stay must itself stay.
func (s *solver) meet(n *node, clause apt.Clause) error {
	if have := s.satisfiedBy(clause); have != nil {
		if s.kept[n] && s.chosen[have] && !s.kept[have] && len(s.solutions(clause)) == 1 {
			s.kept[have] = true
			return s.complete(have)
		}
		return nil
	}
	solutions := s.solutions(clause)
	only := s.kept[n] && len(solutions) == 1
	var first error
	for _, c := range solutions {
		if only {
			s.kept[c] = true
		}
		err := s.take(c, n)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		return s.unmet(n, clause)
	}
	return first
}

// sweep drops what was chosen on the way, but that nothing needs in the end. As
// apt does, it follows every alternative, and Recommends and Suggests too,
// among what is chosen.
func (s *solver) sweep() {
	needed := map[*node]bool{}
	queue := slices.Clone(s.roots)
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		if needed[n] || !s.chosen[n] {
			continue
		}
		needed[n] = true
		for _, field := range []string{n.pkg.PreDepends, n.pkg.Depends, n.pkg.Recommends, n.pkg.Suggests} {
			clauses, err := apt.ParseRelations(field)
			if err != nil {
				continue
			}
			for _, clause := range clauses {
				for _, r := range clause {
					queue = append(queue, s.presentTargets(r)...)
				}
			}
		}
	}
	for _, n := range slices.Clone(s.order) {
		if !needed[n] {
			s.drop(n)
		}
	}
}

// check looks whether what was chosen holds together.
func (s *solver) check() error {
	for _, n := range s.order {
		depends, conflicts, err := n.relations()
		if err != nil {
			return err
		}
		for _, clause := range depends {
			if s.satisfiedBy(clause) == nil {
				return s.unmet(n, clause)
			}
		}
		if err := s.checkConflicts(n, conflicts); err != nil {
			return err
		}
	}
	for _, n := range s.installed {
		_, conflicts, err := n.relations()
		if err != nil {
			return err
		}
		if err := s.checkConflicts(n, conflicts); err != nil {
			return err
		}
	}
	return nil
}

func (s *solver) checkConflicts(n *node, conflicts []apt.Clause) error {
	for _, clause := range conflicts {
		for _, r := range clause {
			for _, other := range s.presentTargets(r) {
				if other.pkg.Name != n.pkg.Name && (s.chosen[n] || s.chosen[other]) {
					return s.conflict(n, other, r)
				}
			}
		}
	}
	return nil
}

// result is what was chosen, sorted by name.
func (s *solver) result() []*apt.Package {
	packages := make([]*apt.Package, len(s.order))
	for i, n := range s.order {
		packages[i] = n.pkg
	}
	slices.SortFunc(packages, func(a, b *apt.Package) int { return strings.Compare(a.Name, b.Name) })
	return packages
}
