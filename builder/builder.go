// Package builder turns profiles, overlays and a lock into appliance images. It
// knows nothing of packages, file systems or disk formats itself: each stage is a
// package, and Build hands the result of one to the next.
//
// Every layer is looked up in the cache first, by the hash of all that goes
// into it, so that a build does only what changed. docs/architecture.md has the
// picture.
package builder

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/agent"
	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/builder/registry"
	"github.com/slipwayhq/slipway/internal/progress"
)

// Version is slipway's own version. It stands in every manifest, so it is a
// constant: what the Go toolchain stamps into a binary depends on how it was called,
// and equal inputs must give equal bytes.
const Version = "0.1.0"

// Request is what to build, and out of what.
type Request struct {
	Project  string   // directory with profiles/, overlays/ and the agent's source
	LockFile string   // images.lock
	Roles    []string // names of roles; none means every role
	Formats  []Format
	Output   string // directory for the images, made if need be
	// Shell opens a shell in the sandbox when a maintainer script fails.
	Shell bool
}

// Means are what the build works with.
type Means struct {
	Cache        *cache.Cache
	Distribution *apt.Distribution
	Locations    fetch.Locations
	Fetch        fetch.Options
	Progress     progress.Reporter
	Log          logrus.FieldLogger
	// Registry is where layers that the cache lacks are looked for before they are
	// made, and where Push puts them; nil is none.
	Registry *registry.Repository
}

// Result tells what was built.
type Result struct {
	Images  []Image       `json:"images"`
	Layers  []LayerReport `json:"layers"`
	Seconds float64       `json:"seconds"`
}

// Image is one file that was written.
type Image struct {
	Role    string `json:"role"`
	Version string `json:"version"`
	Format  Format `json:"format"`
	Path    string `json:"path"`
	Size    int64  `json:"size"` // bytes of the file
}

// LayerReport is one layer that the images stand on.
type LayerReport struct {
	manifest.Layer
	Roles  []string `json:"roles"`
	Cached bool     `json:"cached"` // taken from the cache as it was
}

// build is what stays the same from the first stage to the last.
type build struct {
	Request
	Means
	profiles *profile.Set
	lock     *lock.Lock
	spool    *layer.Spool // packages decompressed ahead, while layers are made
}

// Build makes the images. What it writes into the output directory is whole;
// when it fails or ctx ends, files of earlier builds are as they were.
func Build(ctx context.Context, req Request, means Means) (*Result, error) {
	began := time.Now()

	// 1. The profiles say what a role is, the lock with which packages.
	b := &build{Request: req, Means: means}
	roles, err := b.open()
	if err != nil {
		return nil, err
	}

	// 2. Packages become layers, and the locked tools make the boot loaders. The
	// agent compiles meanwhile.
	var (
		layers   *layers
		binaries agent.Binaries
		command  string
	)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { layers, err = b.layers(gctx, roles); return err })
	g.Go(func() (err error) { binaries, err = b.programs(gctx); return err })
	if slices.ContainsFunc(roles, carriesCommand) {
		g.Go(func() (err error) { command, err = b.command(gctx, agent.CommandPackage); return err })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}

	// 3. The init and the base's kernel modules become the initramfs.
	initrd, err := b.initramfs(layers.base, binaries.Init)
	if err != nil {
		return nil, err
	}

	// 4. The product's OCI images become a layer of their own. Overlays, Butane and
	// the agent become each role's config layer, which makes a version complete; the
	// version's disk is written in every format.
	result := &Result{}
	for _, role := range roles {
		images, err := b.images(ctx, role)
		if err != nil {
			return nil, err
		}
		config, err := b.config(ctx, role, layers, images, binaries.Firstboot, command)
		if err != nil {
			return nil, err
		}
		version, err := b.version(role, layers, images, config, initrd)
		if err != nil {
			return nil, err
		}
		written, err := b.export(ctx, version)
		if err != nil {
			return nil, err
		}
		result.Images = append(result.Images, written...)
		result.report(role.Role, append(stackOf(layers, role, images), config)...)
	}
	result.Seconds = time.Since(began).Seconds()
	return result, nil
}

// report adds a role's layers to the result, each layer once.
func (r *Result) report(role string, stack ...madeLayer) {
next:
	for _, l := range stack {
		for i := range r.Layers {
			if r.Layers[i].Digest == l.Digest {
				r.Layers[i].Roles = append(r.Layers[i].Roles, role)
				continue next
			}
		}
		r.Layers = append(r.Layers, LayerReport{Layer: l.Layer, Roles: []string{role}, Cached: l.cached})
	}
}

// open reads the profiles and the lock, and refuses a lock that does not hold
// what the profiles ask for.
func (b *build) open() (roles []*profile.Profile, err error) {
	if b.profiles, err = profile.Load(filepath.Join(b.Project, "profiles")); err != nil {
		return nil, err
	}
	names := b.Roles
	if len(names) == 0 {
		names = b.profiles.Names()
	}
	seen := map[string]bool{}
	for _, name := range names {
		p, err := b.profiles.Role(name)
		if err != nil {
			return nil, err
		}
		if !seen[name] {
			roles = append(roles, p)
		}
		seen[name] = true
	}
	if b.lock, err = lock.Read(b.LockFile); err != nil {
		return nil, err
	}
	b.Fetch.Snapshot = b.Distribution.SnapshotLocations(b.lock.Dates())
	return roles, b.lock.Check(Want(b.Distribution, b.profiles))
}

// Want is what the lock must hold for the profiles: one set of packages for
// base, one for the build's tools, one for each role.
func Want(d *apt.Distribution, set *profile.Set) lock.Want {
	want := lock.Want{Distribution: d.Name, Sets: []lock.Set{
		{Name: set.Base.Role, File: set.Base.File(), Packages: set.Base.Packages},
		{Name: set.Tools.Role, File: set.Tools.File(), Extends: set.Base.Role, Packages: set.Tools.Packages},
	}}
	for _, p := range set.Roles {
		want.Sets = append(want.Sets, lock.Set{Name: p.Role, File: p.File(), Extends: set.Base.Role, Packages: p.Packages})
	}
	want.Images = wantedImages(set)
	return want
}

// date is the time that everything in the images has, in Unix seconds.
func (b *build) date() int64 { return b.lock.Date().Unix() }
