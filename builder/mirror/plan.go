// Package mirror carries everything that building and running needs over an air gap. This
// package is the connected side: it works out what a bundle holds and writes its volumes.
//
// In: images.lock, the cache, the archive's mirrors, finished layers, OCI images, and the keys of a
// site. Out: volumes (builder/mirror/volume). The isolated side is builder/mirror/store, which imports
// volumes and publishes them, and builder/mirror/serve.
//
// What is published is a tree of files, each known by path, size and SHA-256
// (builder/mirror/catalog):
//
//	debian/, debian-security/ …   an archive each: pool, and indices signed with the site's key
//	upstream/ALIAS/dists/…        the InRelease and indices of the archive's owner, as they were: evidence
//	oci/                          an OCI image layout: images, and layers of the appliances
//	keys/site.asc                 the site's public keys
//	slipway/                      the lock, the project with it, and the slipway that made the bundle
//
// Equal input, keys, number and date give equal bytes.
package mirror

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/mirror/catalog"
	"github.com/slipwayhq/slipway/builder/mirror/receipt"
	"github.com/slipwayhq/slipway/builder/mirror/repository"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/registry"
	"github.com/slipwayhq/slipway/builder/resolve"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// Paths of the published tree that are not archives.
const (
	KeysPath     = "keys/site.asc"
	UpstreamPath = "upstream"
	OCIPath      = "oci"
	SlipwayPath  = "slipway"
)

// Request is what a bundle is to hold.
type Request struct {
	Lock      *lock.Lock
	LockData  []byte              // the lock's file
	Extra     []string            // packages to carry beside the lock's, with all that they depend on
	Bootstrap bool                // also what debootstrap installs: packages of priority required, and apt
	Sources   bool                // the source package of every package too
	All       []string            // suites to carry whole
	Artifacts []registry.Artifact // finished layers, in the cache
	Images    []Image             // OCI images, in the cache
	Programs  map[string]string   // files for slipway/, by name: paths on this machine
	Project   Project             // no Dir: none is carried

	Site    string
	Keys    []*sign.Key
	Edition int64
	Date    time.Time
	States  []apt.State      // of a bundle that is gone on with: load these, not what mirrors serve now
	Receipt *receipt.Receipt // what the other side has; nil: nothing
	Volume  int64            // bytes that a volume holds; 0: no limit
}

// Means are what is worked with.
type Means struct {
	Cache        *cache.Cache
	Distribution *apt.Distribution
	Locations    fetch.Locations
	Fetch        fetch.Options
	Progress     progress.Reporter
	Log          logrus.FieldLogger
	Now          time.Time // by this machine's clock, whatever date a bundle bears; zero: look at the clock
}

// Plan is a bundle before it is written.
type Plan struct {
	Catalog  *catalog.Catalog // complete but for its parts
	Items    []fetch.Item     // packages that the bundle brings
	Carried  map[string]int64 // files that the bundle brings: size by SHA-256
	Volumes  [][]catalog.Cut
	States   []apt.State // of the archives that were loaded beside those of the lock; nil: none
	Packages int         // one that two archives have counts twice
	Sources  int         // source packages
	Unproven []string    // packages that no upstream signature vouches for, only the lock
	NoSource []string    // packages whose source the archive no longer has, where sources were asked for

	files map[string]catalog.File // by path
	local map[string]string       // files that are not in the cache, by SHA-256
	cache *cache.Cache
}

// NewPlan works out a bundle. It gets indices, but no package.
func NewPlan(ctx context.Context, req Request, m Means) (*Plan, error) {
	p := &Plan{files: map[string]catalog.File{}, local: map[string]string{}, cache: m.Cache}

	// 1. The indices: those of the lock, and today's where they are needed.
	g := &gatherer{Request: req, Means: m, plan: p, suites: map[string]*suite{}, built: map[source]string{}}
	if err := g.indices(ctx); err != nil {
		return nil, err
	}

	// 2. The packages with their sources, and in which suites they are listed.
	if err := g.packages(ctx); err != nil {
		return nil, err
	}
	if err := g.sources(ctx); err != nil {
		return nil, err
	}

	// 3. What is generated: indices of the subset, the OCI layout; what stands beside.
	if err := errors.Join(g.repositories(), g.oci(), g.beside()); err != nil {
		return nil, err
	}

	// 4. What the other side lacks goes onto volumes.
	c := &catalog.Catalog{Site: req.Site, Edition: req.Edition, Date: req.Date.UTC().Truncate(time.Second)}
	c.Files = slices.Collect(maps.Values(p.files))
	if r := req.Receipt; r != nil {
		if r.Site != req.Site {
			return nil, fault.New(fault.Usage, "the receipt is of the site %s, the bundle of %s", r.Site, req.Site).WithMend("name the right site with --site DIR")
		}
		c.Base = catalog.Base{Edition: r.Edition, ID: r.Bundle}
	}
	p.Carried = map[string]int64{}
	for _, f := range c.Files {
		if err := catalog.CheckPath(f.Path); err != nil {
			return nil, fault.New(fault.Input, "a file of the mirror: %w", err)
		}
		if req.Receipt != nil {
			if size, ok := req.Receipt.Have[f.SHA256]; ok && size == f.Size {
				continue
			}
		}
		p.Carried[f.SHA256] = f.Size
	}
	var err error
	if p.Volumes, err = catalog.Lay(p.Carried, req.Volume, int64(len(c.Bytes())+200*2*len(p.Carried))); err != nil {
		return nil, err
	}
	c.Volumes = len(p.Volumes)
	p.Items = slices.DeleteFunc(p.Items, func(i fetch.Item) bool { _, carried := p.Carried[i.SHA256]; return !carried })
	p.Catalog = c
	return p, nil
}

// Size is how many bytes of files the bundle brings.
func (p *Plan) Size() int64 {
	var sum int64
	for _, n := range p.Carried {
		sum += n
	}
	return sum
}

// source says where a file of the bundle is.
func (p *Plan) source(sum string) (string, error) {
	if path, ok := p.local[sum]; ok {
		return path, nil
	}
	if path, ok := p.cache.CheckedBlob(sum, p.Carried[sum]); ok {
		return path, nil
	}
	return "", fault.New(fault.Integrity, "%s left the cache while it was needed", sum).WithMend("run the command again")
}

// add puts a file into the tree.
func (p *Plan) add(path, sum string, size int64) error {
	f := catalog.File{Path: path, Size: size, SHA256: sum}
	if old, ok := p.files[path]; ok && old != f {
		return fault.New(fault.Input, "two files of the mirror want the path %s", path)
	}
	p.files[path] = f
	return nil
}

// generate puts a file that was made here into the tree, and its bytes into the cache.
func (p *Plan) generate(path string, content []byte) error {
	raw := sha256.Sum256(content)
	sum := hex.EncodeToString(raw[:])
	if _, ok := p.cache.CheckedBlob(sum, int64(len(content))); !ok {
		if err := p.cache.PutBlob(sum, int64(len(content)), bytes.NewReader(content)); err != nil {
			return err
		}
	}
	return p.add(path, sum, int64(len(content)))
}

// gatherer is the work of NewPlan.
type gatherer struct {
	Request
	Means
	plan   *Plan
	order  []*suite
	suites map[string]*suite // by alias and name
	built  map[source]string // what the packages were built from, with the name of one of them
}

// suite is a suite of the mirror in the making.
type suite struct {
	spec       apt.ArchiveSpec
	name       string
	release    *apt.Release // upstream's fields
	indices    []apt.Index  // those of the lock first
	evidence   []evidence
	paragraphs map[string][]repository.Paragraph // by component
	sources    map[string][]repository.Paragraph // by component; nil: no sources are carried
	listed     map[string]bool                   // component and hash, to have each once
}

// evidence is an upstream InRelease with the indices that it vouches for.
type evidence struct {
	inRelease string
	release   *apt.Release
	indices   []apt.Index
}

// Base is where an archive stands in the tree.
func Base(spec apt.ArchiveSpec) string {
	if spec.Path != "" {
		return spec.Path
	}
	return spec.Alias
}

// indices finds the signed indices that the lock was made from. What the cache has not and the
// mirrors no longer serve is replaced by what they serve now.
func (g *gatherer) indices(ctx context.Context) error {
	used := map[string]bool{KeysPath: true, UpstreamPath: true, OCIPath: true, SlipwayPath: true, "keys": true}
	for _, spec := range g.Distribution.Archives {
		if top, _, _ := strings.Cut(Base(spec), "/"); used[top] {
			return fault.New(fault.Input, "%s: archives: %s: the path %q is the mirror's own", g.Distribution.File, spec.Alias, Base(spec))
		}
		for _, name := range spec.Suites {
			s := &suite{spec: spec, name: name, paragraphs: map[string][]repository.Paragraph{}, listed: map[string]bool{}}
			g.order = append(g.order, s)
			g.suites[spec.Alias+" "+name] = s
		}
	}
	now := len(g.Extra) > 0 || len(g.All) > 0 || g.Bootstrap || g.Sources
	for _, ls := range g.Lock.Suites {
		s, ok := g.suites[ls.Alias+" "+ls.Name]
		if !ok {
			return fault.New(fault.Input, "the lock has the suite %s of archive %s, which %s has not", ls.Name, ls.Alias, g.Distribution.File).WithMend("run `slipway lock`")
		}
		have, err := g.lockedSuite(ctx, s, ls)
		if err != nil {
			return err
		}
		now = now || !have
	}
	if now {
		return g.today(ctx)
	}
	return nil
}

// lockedSuite takes a suite in the state that the lock was made from, if it is still to be had.
func (g *gatherer) lockedSuite(ctx context.Context, s *suite, ls lock.Suite) (bool, error) {
	data, err := g.inRelease(ctx, ls)
	if err != nil || data == nil {
		return false, err
	}
	e := evidence{inRelease: ls.InRelease}
	if e.release, err = g.verified(s, data, ls.Date); err != nil {
		return false, err
	}
	for _, i := range ls.Indices {
		item := fetch.Item{Name: ls.Name + " " + i.Path, Path: i.Path, Alias: ls.Alias, Size: i.Size, SHA256: i.SHA256}
		if at := strings.LastIndex(i.Path, "/"); at > 0 {
			item.First = i.Path[:at] + "/by-hash/SHA256/" + i.SHA256
		}
		if had, err := g.try(ctx, item); err != nil || !had {
			return false, err
		}
		e.indices = append(e.indices, apt.Index(i))
	}
	s.evidence = append(s.evidence, e)
	s.indices = append(s.indices, e.indices...)
	return true, nil
}

// try gets what may no longer be to be had.
func (g *gatherer) try(ctx context.Context, item fetch.Item) (had bool, err error) {
	if err := fetch.Fetch(ctx, g.Cache, g.Locations, []fetch.Item{item}, g.Fetch); err != nil {
		g.Log.Debugf("%s: %v", item.Name, err)
		return false, ctx.Err()
	}
	return true, nil
}

// inRelease is the signed file of a suite that the lock names; nil if nobody has it any more.
func (g *gatherer) inRelease(ctx context.Context, ls lock.Suite) ([]byte, error) {
	if path, ok := g.Cache.Blob(ls.InRelease); ok {
		return os.ReadFile(path)
	}
	if g.Fetch.Offline && !slices.ContainsFunc(g.Locations[ls.Alias], func(b string) bool { return strings.HasPrefix(b, "file:") }) {
		return nil, nil
	}
	bases := slices.Concat(g.Locations[ls.Alias], g.Fetch.Snapshot[ls.Alias])
	opts := g.Fetch
	opts.Tries = 1
	for _, base := range bases {
		data, _, err := fetch.Get(ctx, []string{base}, "dists/"+ls.Name+"/InRelease", 16<<20, opts)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		sum := sha256.Sum256(data)
		if err == nil && hex.EncodeToString(sum[:]) == ls.InRelease {
			return data, g.Cache.PutBlob(ls.InRelease, int64(len(data)), bytes.NewReader(data))
		}
	}
	return nil, nil
}

// verified reads the fields of an upstream Release, as of the time it was current.
func (g *gatherer) verified(s *suite, data []byte, when time.Time) (*apt.Release, error) {
	text, _, err := apt.VerifyInRelease(data, g.Distribution.Keyring, s.spec.SignedBy, when.Add(time.Hour))
	if err != nil {
		return nil, fmt.Errorf("upstream's InRelease of %s: %w", s.name, err)
	}
	s.release, err = apt.ParseRelease(text)
	return s.release, err
}

// today loads the archives as the mirrors serve them now, or as they did when the bundle was begun.
func (g *gatherer) today(ctx context.Context) error {
	archive, err := apt.Load(ctx, g.Cache, g.Distribution, g.Locations, apt.LoadOptions{Now: g.Now, AllowExpired: true, Fetch: g.Fetch, States: g.States})
	if err != nil {
		return fmt.Errorf("beside the lock, the bundle needs the archives' indices: %w", err)
	}
	for _, as := range archive.Suites {
		g.plan.States = append(g.plan.States, apt.State{Alias: as.Alias, Suite: as.Name, InRelease: as.InReleaseSHA256})
		s := g.suites[as.Alias+" "+as.Name]
		if slices.ContainsFunc(s.evidence, func(e evidence) bool { return e.inRelease == as.InReleaseSHA256 }) {
			continue
		}
		if len(s.evidence) == 0 {
			g.Log.Warnf("%s: the signed state that the lock was made from (%s) is no longer to be had; today's goes along", as.Name, as.Alias)
		}
		path, ok := g.Cache.Blob(as.InReleaseSHA256)
		if !ok {
			return fault.New(fault.Integrity, "%s left the cache while it was needed", as.InReleaseSHA256)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		release, err := g.verified(s, data, as.Date)
		if err != nil {
			return err
		}
		s.evidence = append(s.evidence, evidence{as.InReleaseSHA256, release, as.Indices})
		for _, i := range as.Indices {
			if !slices.Contains(s.indices, i) {
				s.indices = append(s.indices, i)
			}
		}
	}
	// Of packages that the lock does not have, today's are the ones to be had.
	return g.choose(archive)
}

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

// repositories makes the indices of every suite, and puts the evidence beside.
func (g *gatherer) repositories() error {
	for _, s := range g.order {
		r := repository.Suite{Name: s.name, Date: g.Date, Arch: g.Distribution.Arch, Components: g.Distribution.Components, Packages: s.paragraphs, Sources: s.sources, Keys: g.Keys}
		if s.release == nil {
			r.Codename = s.name // the lock has nothing of it
		} else {
			r.Origin, r.Label, r.Suite, r.Codename, r.Version = s.release.Origin, s.release.Label, s.release.Suite, s.release.Codename, s.release.Version
			r.NotAutomatic, r.ButAutomaticUpgrades = s.release.NotAutomatic, s.release.ButAutomaticUpgrades
		}
		files, err := repository.Files(r)
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := g.plan.generate(Base(s.spec)+"/"+f.Path, f.Content); err != nil {
				return err
			}
		}
		for i, e := range s.evidence {
			if err := g.evidence(s, i, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// evidence puts upstream's files into the tree: the first state of a suite at its own path, a second
// one below its date's name.
func (g *gatherer) evidence(s *suite, n int, e evidence) error {
	base := fmt.Sprintf("%s/%s/", UpstreamPath, s.spec.Alias)
	if n > 0 {
		base = fmt.Sprintf("%s/%s@%d/", UpstreamPath, s.spec.Alias, n+1)
	}
	path, ok := g.Cache.Blob(e.inRelease)
	if !ok {
		return fault.New(fault.Integrity, "%s left the cache while it was needed", e.inRelease)
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	err = g.plan.add(base+"dists/"+s.name+"/InRelease", e.inRelease, st.Size())
	for _, i := range e.indices {
		err = errors.Join(err, g.plan.add(base+i.Path, i.SHA256, i.Size))
	}
	return err
}

// beside puts the rest into the tree: keys, the lock, the project, programs.
func (g *gatherer) beside() error {
	err := errors.Join(
		g.plan.generate(KeysPath, sign.Public(g.Keys)),
		g.plan.generate(SlipwayPath+"/images.lock", g.LockData),
		g.project(),
	)
	for _, name := range slices.Sorted(maps.Keys(g.Programs)) {
		err = errors.Join(err, g.file(SlipwayPath+"/"+name, g.Programs[name]))
	}
	return err
}

// file puts a file of this machine into the tree.
func (g *gatherer) file(to, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := g.Cache.NewBlob()
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := f.WriteTo(w); err != nil {
		return err
	}
	sum, size, err := w.Commit()
	if err != nil {
		return err
	}
	return g.plan.add(to, sum, size)
}
