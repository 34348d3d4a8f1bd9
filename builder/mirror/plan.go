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
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/mirror/catalog"
	"github.com/slipwayhq/slipway/builder/mirror/receipt"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/registry"
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
	if err := p.lay(req); err != nil {
		return nil, err
	}
	return p, nil
}

// lay works out the catalog, and lays what the other side lacks onto volumes.
func (p *Plan) lay(req Request) error {
	c := &catalog.Catalog{Site: req.Site, Edition: req.Edition, Date: req.Date.UTC().Truncate(time.Second)}
	c.Files = slices.Collect(maps.Values(p.files))
	if r := req.Receipt; r != nil {
		if r.Site != req.Site {
			return fault.New(fault.Usage, "the receipt is of the site %s, the bundle of %s", r.Site, req.Site).WithMend("name the right site with --site DIR")
		}
		c.Base = catalog.Base{Edition: r.Edition, ID: r.Bundle}
	}
	p.Carried = map[string]int64{}
	for _, f := range c.Files {
		if err := catalog.CheckPath(f.Path); err != nil {
			return fault.New(fault.Input, "a file of the mirror: %w", err)
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
		return err
	}
	c.Volumes = len(p.Volumes)
	p.Items = slices.DeleteFunc(p.Items, func(i fetch.Item) bool { _, carried := p.Carried[i.SHA256]; return !carried })
	p.Catalog = c
	return nil
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
