package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/mirror/repository"
	"github.com/slipwayhq/slipway/builder/resolve"
	"github.com/slipwayhq/slipway/internal/fault"
)

// choose adds the packages that the request names beside the lock.
func (g *gatherer) choose(archive *apt.Archive) error {
	add := func(p *apt.Package) {
		g.plan.Items = append(g.plan.Items, fetch.Item{Name: p.ID(), Path: p.Path, Alias: p.Alias, Size: p.Size, SHA256: p.SHA256})
	}
	for _, name := range g.All {
		if !slices.ContainsFunc(g.order, func(s *suite) bool { return s.name == name }) {
			var names []string
			for _, s := range g.order {
				names = append(names, s.name)
			}
			return fault.New(fault.Usage, "there is no suite %q in %s", name, g.Distribution.File).WithMend("its suites are %s", strings.Join(names, ", "))
		}
	}
	for _, p := range archive.Packages {
		if slices.Contains(g.All, p.Suite) {
			add(p)
		}
	}
	pins := map[string]string{}
	for _, p := range g.Lock.Packages {
		pins[p.Name] = p.Version
	}
	roots := slices.Clone(g.Extra)
	if g.Bootstrap {
		roots = append(roots, bootstrap(archive.Packages)...)
		// debootstrap reads one suite only and wants all of it there, in the versions of that suite.
		first := g.Distribution.Archives[0]
		one := slices.DeleteFunc(slices.Clone(archive.Packages), func(p *apt.Package) bool {
			return p.Alias != first.Alias || p.Suite != first.Suites[0]
		})
		chosen, err := closure(one, nil, bootstrap(one))
		if err != nil {
			return err
		}
		for _, p := range chosen {
			add(p)
		}
	}
	if len(roots) == 0 {
		return nil
	}
	chosen, err := closure(archive.Packages, pins, roots)
	for _, p := range chosen {
		add(p)
	}
	return err
}

// bootstrap names what debootstrap's smallest variant installs.
func bootstrap(packages []*apt.Package) []string {
	names := []string{"apt"}
	for _, p := range packages {
		if p.Priority == "required" {
			names = append(names, p.Name)
		}
	}
	return names
}

// closure is what apt would install for roots on a machine with nothing; pins give way where they cannot hold.
func closure(packages []*apt.Package, pins map[string]string, roots []string) ([]*apt.Package, error) {
	pins = maps.Clone(pins)
	for {
		u := resolve.NewUniverse(packages, pins)
		all := append(u.Essential(), roots...)
		slices.Sort(all)
		chosen, err := u.Closure(resolve.Request{Roots: slices.Compact(all), File: "--package"})
		var blocked *resolve.PinError
		if !errors.As(err, &blocked) {
			return chosen, err
		}
		for _, name := range blocked.Names {
			delete(pins, name)
		}
	}
}

// packages collects the packages and the paragraphs that list them.
func (g *gatherer) packages(ctx context.Context) error {
	// One .deb may be in several archives: point releases take those of security into main unchanged.
	items := map[file]fetch.Item{}
	for _, i := range append(g.Lock.Items(), g.plan.Items...) {
		if i.Alias == apt.ProjectAlias {
			continue // travels with the project
		}
		items[file{i.Alias, i.Path, i.SHA256}] = i
	}
	found := map[file]bool{}
	for _, s := range g.order {
		for _, index := range s.indices {
			if err := ctx.Err(); err != nil {
				return err
			}
			component := componentOf(index.Path, s.name)
			err := apt.EachInIndex(g.Cache, index, func(p *apt.Paragraph) error {
				at := file{s.spec.Alias, p.Get("Filename"), p.Get("SHA256")}
				item, ok := items[at]
				if !ok {
					return nil
				}
				found[at] = true
				g.built[sourceOf(s.spec.Alias, p.Get)] = item.Name
				s.list(component, at.sha256, repository.Paragraph{Name: p.Get("Package"), Version: p.Get("Version"), Text: p.AppendText(nil)})
				return nil
			})
			if err != nil {
				return fmt.Errorf("%s of %s: %w", index.Path, s.spec.Alias, err)
			}
		}
	}
	var orphans []fetch.Item
	g.plan.Items = nil
	for _, at := range slices.SortedFunc(maps.Keys(items), file.compare) {
		item := items[at]
		spec, ok := g.Distribution.Archive(item.Alias)
		if !ok {
			return fault.New(fault.Input, "%s is of the archive %q, which %s has not", item.Name, item.Alias, g.Distribution.File)
		}
		if err := g.plan.add(Base(spec)+"/"+item.Path, item.SHA256, item.Size); err != nil {
			return err
		}
		g.plan.Items = append(g.plan.Items, item)
		if !found[at] {
			orphans = append(orphans, item)
			g.plan.Unproven = append(g.plan.Unproven, item.Name)
		}
	}
	g.plan.Packages = len(items)
	return g.describe(ctx, orphans)
}

// file is where an archive has which .deb.
type file struct{ alias, path, sha256 string }

func (a file) compare(b file) int {
	return cmp.Or(strings.Compare(a.sha256, b.sha256), strings.Compare(a.alias, b.alias), strings.Compare(a.path, b.path))
}

// list puts a package into a component, once.
func (s *suite) list(component, sum string, p repository.Paragraph) {
	if key := component + " " + sum; !s.listed[key] {
		s.listed[key] = true
		s.paragraphs[component] = append(s.paragraphs[component], p)
	}
}

// componentOf is the component of an index path such as dists/trixie/main/binary-amd64/Packages.xz.
func componentOf(path, suite string) string {
	inner := strings.TrimPrefix(path, "dists/"+suite+"/")
	component, _, _ := strings.Cut(inner, "/binary-")
	return component
}

// describe makes the paragraphs of packages that no index lists any more, out of the packages
// themselves; they go into the first suite of their archive.
func (g *gatherer) describe(ctx context.Context, orphans []fetch.Item) error {
	if len(orphans) == 0 {
		return nil
	}
	if err := fetch.Fetch(ctx, g.Cache, g.Locations, orphans, g.Fetch); err != nil {
		return err
	}
	for _, item := range orphans {
		path, ok := g.Cache.CheckedBlob(item.SHA256, item.Size)
		if !ok {
			return fault.New(fault.Integrity, "%s left the cache while it was needed", item.Name)
		}
		f, err := deb.Open(path)
		if err != nil {
			return err
		}
		fields := f.Fields
		f.Close()
		text := fields.String() + fmt.Sprintf("Filename: %s\nSize: %d\nSHA256: %s\n", item.Path, item.Size, item.SHA256)
		spec, _ := g.Distribution.Archive(item.Alias)
		s := g.suites[spec.Alias+" "+spec.Suites[0]]
		g.built[sourceOf(spec.Alias, fields.Get)] = item.Name
		s.list(g.Distribution.Components[0], item.SHA256, repository.Paragraph{Name: fields.Get("Package"), Version: fields.Get("Version"), Text: []byte(text)})
	}
	return nil
}
