package lock

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/resolve"
	"github.com/slipwayhq/slipway/internal/fault"
)

// All, as the only name to upgrade, upgrades every package.
const All = "*"

// Resolve makes a lock that answers what is wanted. Packages that previous has
// keep their version, as long as the archive, the mirror's pool or the cache
// has it and unless upgrade names them (or is All); the others get the highest
// version. A previous lock of another distribution counts for nothing. If nothing but the state of the suites changed, previous is
// returned as it is, so that locking anew changes no byte.
func Resolve(ctx context.Context, c *cache.Cache, archive *apt.Archive, want Want, previous *Lock, upgrade []string, opts fetch.Options) (*Lock, error) {
	if previous != nil && previous.Distribution != archive.Distribution.Name {
		previous = nil // nothing of another distribution can stay
	}
	packages := archive.Packages
	pins := map[string]string{}
	if previous != nil && !slices.Contains(upgrade, All) {
		released, err := released(previous, upgrade)
		if err != nil {
			return nil, err
		}
		superseded, err := stillThere(ctx, c, archive, previous, released, opts)
		if err != nil {
			return nil, err
		}
		packages = append(slices.Clip(packages), superseded...)
		for _, p := range previous.Packages {
			if !released[p.Source] {
				pins[p.Name] = p.Version
			}
		}
	}
	for {
		l, err := resolveSets(archive, packages, pins, want)
		var blocked *resolve.PinError
		if errors.As(err, &blocked) {
			// What is newly wanted does not go with what is locked: let that move.
			for _, name := range blocked.Names {
				delete(pins, name)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if previous != nil && !previous.salvaged && sameContent(previous, l) {
			return previous, nil
		}
		return l, nil
	}
}

// released returns the sources of the packages that upgrade names: packages of
// one source move together.
func released(previous *Lock, upgrade []string) (map[string]bool, error) {
	sources := map[string]bool{}
	for _, name := range upgrade {
		found := false
		for _, p := range previous.Packages {
			if p.Name == name {
				sources[p.Source], found = true, true
			}
		}
		if !found {
			return nil, fault.New(fault.Usage, "cannot upgrade %s: the lock has no such package", name).
				WithMend("name a package of %s, or use --upgrade alone for all", FileName)
		}
	}
	return sources, nil
}

// stillThere returns those packages of previous that the archive no longer
// lists, but that can be had. What they depend on is read from the index that
// they were locked from, if the cache still has it.
func stillThere(ctx context.Context, c *cache.Cache, archive *apt.Archive, previous *Lock, released map[string]bool, opts fetch.Options) ([]*apt.Package, error) {
	listed := map[string]bool{}
	for _, p := range archive.Packages {
		listed[p.SHA256] = true
	}
	gone := map[string]Package{}
	for _, p := range previous.Packages {
		if !listed[p.SHA256] && !released[p.Source] {
			gone[p.SHA256] = p
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	var found []*apt.Package
	for _, s := range previous.Suites {
		for _, i := range s.Indices {
			if _, ok := c.CheckedBlob(i.SHA256, i.Size); !ok {
				continue
			}
			packages, err := apt.ReadIndex(c, apt.Index(i), nil, s.Alias, s.Name, previous.Arch)
			if err != nil {
				return nil, err
			}
			for _, p := range packages {
				locked, ok := gone[p.SHA256]
				if !ok {
					continue
				}
				delete(gone, p.SHA256)
				if Available(ctx, c, archive.Locations, locked, opts) {
					found = append(found, p)
				}
			}
		}
	}
	return found, nil
}

// Available says whether a locked package is in the cache or at a mirror.
func Available(ctx context.Context, c *cache.Cache, locations fetch.Locations, p Package, opts fetch.Options) bool {
	if _, ok := c.CheckedBlob(p.SHA256, p.Size); ok {
		return true
	}
	found, err := fetch.Exists(ctx, locations[p.Alias], p.Path, opts)
	return err == nil && found
}

// resolveSets resolves every wanted set: those that stand alone first, then
// those on top of them, of which only what is added counts.
func resolveSets(archive *apt.Archive, packages []*apt.Package, pins map[string]string, want Want) (*Lock, error) {
	d := archive.Distribution
	l := &Lock{Distribution: d.Name, Arch: d.Arch}
	for _, s := range archive.Suites {
		suite := Suite{Alias: s.Alias, Name: s.Name, Date: s.Date, InRelease: s.InReleaseSHA256, Signers: slices.Clone(s.Signers)}
		for _, i := range s.Indices {
			suite.Indices = append(suite.Indices, Index(i))
		}
		l.Suites = append(l.Suites, suite)
		if s.Date.After(l.Created) {
			l.Created = s.Date
		}
	}
	u := resolve.NewUniverse(packages, pins)
	sets := slices.Clone(want.Sets)
	slices.SortFunc(sets, compareSets)
	closures := map[string][]*apt.Package{}
	locked := map[string]*Package{}
	for _, s := range sets {
		req := resolve.Request{File: s.File, Roots: sortedSet(s.Packages)}
		if s.Extends == "" {
			req.Roots = sortedSet(append(u.Essential(), req.Roots...))
		} else {
			below, ok := closures[s.Extends]
			if !ok {
				return nil, fault.New(fault.Internal, "set %s extends %s, which is not wanted", s.Name, s.Extends)
			}
			req.Installed = below
		}
		chosen, err := u.Closure(req)
		if err != nil {
			return nil, err
		}
		closures[s.Name] = chosen
		for _, p := range chosen {
			e := locked[p.SHA256]
			if e == nil {
				e = &Package{Name: p.Name, Version: p.Version, Arch: p.Arch, Size: p.Size, InstalledSize: p.InstalledSize,
					SHA256: p.SHA256, Path: p.Path, Alias: p.Alias, Source: p.Source}
				locked[p.SHA256] = e
			}
			e.Sets = append(e.Sets, s.Name)
		}
		l.Sets = append(l.Sets, Set{Name: s.Name, File: shortFile(s.File), Extends: s.Extends, Packages: sortedSet(s.Packages)})
	}
	for _, p := range locked {
		l.Packages = append(l.Packages, *p)
	}
	l.normalize()
	return l, nil
}

// shortFile keeps of a profile's path what does not depend on where the project
// stands or who is in which directory: profiles/NAME.
func shortFile(file string) string {
	dir, name := path.Split(filepath.ToSlash(file))
	return path.Join(path.Base(dir), name)
}

// sameContent says whether two locks have the same packages for the same sets.
func sameContent(a, b *Lock) bool {
	strip := func(l *Lock) []Package {
		out := slices.Clone(l.Packages)
		for i := range out {
			out[i].Line = 0
		}
		return out
	}
	return a.Distribution == b.Distribution && a.Arch == b.Arch &&
		reflect.DeepEqual(a.Sets, b.Sets) && reflect.DeepEqual(strip(a), strip(b))
}

// Items are the downloads of the named sets; of all sets if none is named.
func (l *Lock) Items(sets ...string) []fetch.Item {
	var items []fetch.Item
	for _, p := range l.Packages {
		if len(sets) > 0 && !slices.ContainsFunc(p.Sets, func(s string) bool { return slices.Contains(sets, s) }) {
			continue
		}
		items = append(items, fetch.Item{Name: p.ID(), Path: p.Path, Alias: p.Alias, Size: p.Size, SHA256: p.SHA256, Line: p.Line})
	}
	return items
}

// DriftReport is what Drift found.
type DriftReport struct {
	Changes Summary   `json:"changes"` // what locking anew with --upgrade would change
	Gone    []Package `json:"gone"`    // locked packages that neither the cache nor a mirror has
}

// None says that there is no drift at all.
func (r *DriftReport) None() bool { return r.Changes.Empty() && len(r.Gone) == 0 }

// Drift compares a lock with what the archive has now, and with the images that
// pin gives to a lock that has none.
func Drift(ctx context.Context, c *cache.Cache, archive *apt.Archive, want Want, current *Lock, pin func(*Lock) error, opts fetch.Options) (*DriftReport, error) {
	fresh, err := Resolve(ctx, c, archive, want, nil, nil, opts)
	if err != nil {
		return nil, fmt.Errorf("resolving anew: %w", err)
	}
	if err := pin(fresh); err != nil {
		return nil, fmt.Errorf("looking for images anew: %w", err)
	}
	listed := map[string]bool{}
	for _, p := range archive.Packages {
		listed[p.SHA256] = true
	}
	report := &DriftReport{Changes: Diff(current, fresh)}
	for _, p := range current.Packages {
		if !listed[p.SHA256] && !Available(ctx, c, archive.Locations, p, opts) {
			report.Gone = append(report.Gone, p)
		}
	}
	return report, nil
}

// String words the report for people, one fact a line; it is empty without drift.
func (r *DriftReport) String() string {
	var b strings.Builder
	b.WriteString(r.Changes.String())
	for _, p := range r.Gone {
		fmt.Fprintf(&b, "gone      %s: neither in the cache nor at a mirror\n", p.ID())
	}
	return b.String()
}
