package layer

import (
	"fmt"
	"runtime"
	"sort"
	"strings"

	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/internal/fault"
	"golang.org/x/sync/errgroup"
)

// pkg is a package on its way into a layer.
type pkg struct {
	Deb
	file     *deb.File
	contents *deb.Contents
	lost     map[string]bool // paths that another package replaces
	inPlace  bool            // configuration files stand at their own names at once

	needs    []string // names in Pre-Depends and Depends
	preNeeds []string // names in Pre-Depends
	replaces []string
}

// readPackages opens all packages and checks that they are what the lock says.
// They come back ordered by name, which every later step keeps.
func readPackages(debs []Deb) ([]*pkg, error) {
	pkgs := make([]*pkg, len(debs))
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i, d := range debs {
		group.Go(func() error {
			f, err := deb.Open(d.Path)
			if err != nil {
				return err
			}
			p := &pkg{Deb: d, file: f, lost: map[string]bool{}}
			pkgs[i] = p
			for _, check := range []struct{ field, want string }{{"Package", d.Name}, {"Version", d.Version}, {"Architecture", d.Arch}} {
				if got := f.Fields.Get(check.field); got != check.want {
					return fault.New(fault.Integrity, "%s: its %s is %q, the lock says %q", d.Path, check.field, got, check.want).
						WithMend("remove it from the cache and fetch it again")
				}
			}
			p.preNeeds = relationNames(f.Fields.Get("Pre-Depends"))
			p.needs = append(relationNames(f.Fields.Get("Depends")), p.preNeeds...)
			p.replaces = relationNames(f.Fields.Get("Replaces"))
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		closePackages(pkgs)
		return nil, err
	}
	sort.Slice(pkgs, func(i, j int) bool { return pkgs[i].Name < pkgs[j].Name })
	for i := 1; i < len(pkgs); i++ {
		if pkgs[i].Name == pkgs[i-1].Name {
			closePackages(pkgs)
			return nil, fault.New(fault.Input, "package %s is given twice, as %s and %s", pkgs[i].Name, pkgs[i-1].Version, pkgs[i].Version)
		}
	}
	return pkgs, nil
}

func closePackages(pkgs []*pkg) {
	for _, p := range pkgs {
		if p != nil {
			p.file.Close()
		}
	}
}

// has tells whether the package ships the control file.
func (p *pkg) has(control string) bool { _, ok := p.file.Control[control]; return ok }

func (p *pkg) essential() bool { return strings.EqualFold(p.file.Fields.Get("Essential"), "yes") }

// instance is the name that dpkg files a package under: packages that may be
// there for several architectures carry theirs.
func (p *pkg) instance() string {
	if p.file.Fields.Get("Multi-Arch") == "same" {
		return p.Name + ":" + p.Arch
	}
	return p.Name
}

// relationNames returns all package names in a relationship field, those of
// alternatives too, without versions and architectures.
func relationNames(field string) []string {
	var names []string
	for _, clause := range strings.FieldsFunc(field, func(r rune) bool { return r == ',' || r == '|' }) {
		name := strings.TrimSpace(clause)
		if i := strings.IndexAny(name, " \t\n([:"); i >= 0 {
			name = name[:i]
		}
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

// graph answers what needs what within one layer.
type graph struct {
	byName    map[string]*pkg
	providers map[string][]*pkg
}

func newGraph(pkgs []*pkg) *graph {
	g := &graph{byName: map[string]*pkg{}, providers: map[string][]*pkg{}}
	for _, p := range pkgs {
		g.byName[p.Name] = p
	}
	for _, p := range pkgs {
		for _, name := range relationNames(p.file.Fields.Get("Provides")) {
			g.providers[name] = append(g.providers[name], p)
		}
	}
	return g
}

// find returns the packages of this layer that go by a name.
func (g *graph) find(name string) []*pkg {
	if p, ok := g.byName[name]; ok {
		return append([]*pkg{p}, g.providers[name]...)
	}
	return g.providers[name]
}

// ordered returns the roots and all they need, a package after what it needs
// as far as there is no cycle. Alternatives count as needed if they are there.
func (g *graph) ordered(roots []*pkg) []*pkg {
	var out []*pkg
	seen := map[*pkg]bool{}
	var visit func(p *pkg)
	visit = func(p *pkg) {
		if seen[p] {
			return
		}
		seen[p] = true
		for _, name := range append(append([]string(nil), p.preNeeds...), p.needs...) {
			for _, q := range g.find(name) {
				visit(q)
			}
		}
		out = append(out, p)
	}
	for _, p := range roots {
		visit(p)
	}
	return out
}

// plan says when packages are unpacked.
type plan struct {
	bootstrap []*pkg // by this process, before there is a sandbox
	first     []*pkg // unpacked before their preinst: Essential and their needs
	early     []*pkg // without preinst; unpacked with first
	late      []*pkg // unpacked after their preinst
}

// makePlan sorts packages into the plan. Only a base layer has Essential
// packages to bring up from nothing.
func makePlan(g *graph, pkgs []*pkg, base bool) (plan, error) {
	var pl plan
	is := map[*pkg]bool{}
	if base {
		dpkg, ok := g.byName["dpkg"]
		if !ok {
			return pl, fault.New(fault.Input, "the base layer's packages lack dpkg").WithMend("lock again: slipway lock")
		}
		var roots []*pkg
		for _, p := range pkgs {
			if p.essential() {
				roots = append(roots, p)
			}
		}
		pl.bootstrap = g.ordered([]*pkg{dpkg})
		pl.first = g.ordered(roots)
		for _, p := range pl.bootstrap {
			is[p] = true
		}
	}
	for _, p := range pl.first {
		p.inPlace = true
	}
	for _, p := range pl.bootstrap {
		p.inPlace = true
	}
	for _, p := range pkgs {
		switch {
		case is[p] || p.inPlace && base:
		case p.has("preinst"):
			pl.late = append(pl.late, p)
		default:
			pl.early = append(pl.early, p)
		}
	}
	return pl, nil
}

// nextWave takes from late the packages whose Pre-Depends can be configured
// now: nothing that these need waits itself. toConfigure is what must be.
func nextWave(g *graph, late []*pkg, configured map[*pkg]bool) (wave, rest, toConfigure []*pkg) {
	waiting := map[*pkg]bool{}
	for _, p := range late {
		waiting[p] = true
	}
	needed := map[*pkg]bool{}
	for _, p := range late {
		var roots []*pkg
		for _, name := range p.preNeeds {
			roots = append(roots, g.find(name)...)
		}
		closure := g.ordered(roots)
		ready := true
		for _, q := range closure {
			ready = ready && !waiting[q]
		}
		if !ready {
			rest = append(rest, p)
			continue
		}
		wave = append(wave, p)
		for _, q := range closure {
			if !configured[q] && !needed[q] {
				needed[q] = true
				toConfigure = append(toConfigure, q)
			}
		}
	}
	if len(wave) == 0 { // a cycle: dpkg would break it at any place, so do we
		return late, nil, nil
	}
	return wave, rest, toConfigure
}

// describe turns packages into what a Result says of them.
func describe(pkgs []*pkg) []Package {
	var out []Package
	for _, p := range pkgs {
		var kib int64
		fmt.Sscan(p.file.Fields.Get("Installed-Size"), &kib)
		source, _, _ := strings.Cut(p.file.Fields.Get("Source"), " ")
		out = append(out, Package{Name: p.Name, Version: p.Version, Arch: p.Arch, Source: source, InstalledSize: kib << 10})
	}
	return out
}
