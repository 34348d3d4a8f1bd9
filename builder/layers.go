package builder

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/boot"
	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/builder/squashfs"
	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/progress"
)

// recipe counts up when the way layers are made changes, so that layers of an
// older slipway in the cache are not taken for ours.
const recipe = 1

// Kinds of the cache's records.
const (
	layerRecord  = "layer"
	loaderRecord = "loader"
	initrdRecord = "initrd"
)

// madeLayer is a layer in the cache.
type madeLayer struct {
	manifest.Layer
	Kernel  string `json:"kernel,omitempty"`  // base only: release of the kernel
	Vmlinuz string `json:"vmlinuz,omitempty"` // base only: digest of its image

	key    string
	cached bool
}

// layers is everything that is made of packages.
type layers struct {
	base     madeLayer
	packages map[string]madeLayer // by role; roles with equal lists share one
	loader   loader
}

// plan is a layer before it is made: the packages that go in and the key that
// stands for all of them.
type plan struct {
	name     string // base, tools or packages
	title    string // for people
	packages []lock.Package
	preseed  map[string]string
	key      string
}

// plan works out the key of a profile's package layer on top of lower.
func (b *build) plan(name, title string, p *profile.Profile, packages []lock.Package, lower string) plan {
	parts := []any{recipe, boot.RulesDigest(), name == "base", lower, b.date(), p.Preseed}
	for _, pkg := range packages {
		parts = append(parts, pkg.Name, pkg.Version, pkg.SHA256)
	}
	return plan{name: name, title: title, packages: packages, preseed: p.Preseed, key: hashKey(parts...)}
}

// stack is the plans of everything that is made of packages.
type stack struct {
	base, tools plan
	packages    map[string]plan   // by key
	keyOf       map[string]string // of a role's package layer
}

// stack plans the layers of the roles.
func (b *build) stack(roles []*profile.Profile) stack {
	s := stack{packages: map[string]plan{}, keyOf: map[string]string{}}
	s.base = b.plan("base", "base", b.profiles.Base, b.lock.Closure("base"), "")
	s.tools = b.plan("tools", "tools", b.profiles.Tools, b.lock.Own("tools"), s.base.key)
	for _, p := range roles {
		pl := b.plan("packages", p.Role, p, b.lock.Own(p.Role), s.base.key)
		s.keyOf[p.Role] = pl.key
		s.packages[pl.key] = pl
	}
	return s
}

// layers makes what neither the cache nor the registry has yet: the base, the
// package layers of the roles, and the boot loaders.
func (b *build) layers(ctx context.Context, roles []*profile.Profile) (*layers, error) {
	st := b.stack(roles)
	base, tools, packages, keyOf := st.base, st.tools, st.packages, st.keyOf
	out := &layers{packages: map[string]madeLayer{}}
	if err := b.pull(ctx, st); err != nil {
		return nil, err
	}

	missing := map[string]plan{}
	for key, pl := range packages {
		if !b.cachedLayer(key, new(madeLayer)) {
			missing[key] = pl
		}
	}
	haveLoader := b.cachedLoader(tools.key, &out.loader)
	haveBase := b.cachedLayer(base.key, &out.base)
	made := map[string]madeLayer{}

	if !haveBase || !haveLoader || len(missing) > 0 {
		unlock, err := b.Cache.Lock(ctx, "base-"+base.key) // a second slipway waits, then finds the layers made
		if err != nil {
			return nil, err
		}
		defer unlock()
		onTop := sortedPlans(missing)
		if !haveLoader {
			onTop = append(onTop, tools)
		}
		if b.spool, err = b.newSpool(); err != nil {
			return nil, err
		}
		defer b.spool.Close()
		lower, err := b.baseTree(ctx, base, onTop)
		if err != nil {
			return nil, err
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(3)
		results := make(chan madeLayer, len(missing))
		for _, pl := range onTop {
			g.Go(func() (err error) {
				if pl.key == tools.key {
					out.loader, err = b.makeLoader(gctx, pl, lower)
					return err
				}
				l, err := b.makePackages(gctx, pl, lower)
				results <- l
				return err
			})
		}
		if !haveBase {
			// Scripts run one after the other, so the base is compressed beside them.
			g.Go(func() (err error) { out.base, err = b.compressBase(gctx, base, lower); return err })
		}
		err = g.Wait()
		close(results)
		if err != nil {
			return nil, err
		}
		for l := range results {
			made[l.key] = l
		}
	}
	for role, key := range keyOf {
		l, ok := made[key]
		if !ok {
			b.cachedLayer(key, &l)
		}
		out.packages[role] = l
	}
	return out, nil
}

// sortedPlans puts the largest layer first: it takes longest.
func sortedPlans(plans map[string]plan) []plan {
	return slices.SortedFunc(maps.Values(plans), func(x, y plan) int {
		if n := len(y.packages) - len(x.packages); n != 0 {
			return n
		}
		return strings.Compare(x.key, y.key)
	})
}

// cachedLayer reads a layer's record; it counts only if the layer itself is
// still there.
func (b *build) cachedLayer(key string, l *madeLayer) bool {
	data, ok := b.Cache.Record(layerRecord, key)
	if !ok || json.Unmarshal(data, l) != nil {
		return false
	}
	l.key, l.cached = key, true
	_, ok = b.Cache.Blob(l.Digest)
	if l.Vmlinuz != "" {
		_, haveKernel := b.Cache.Blob(l.Vmlinuz)
		ok = ok && haveKernel
	}
	return ok
}

// fetch brings the packages of the plans into the cache.
func (b *build) fetch(ctx context.Context, plans ...plan) error {
	var items []fetch.Item
	for _, pl := range plans {
		for _, p := range pl.packages {
			if p.Alias == apt.ProjectAlias {
				if err := takeDeb(b.Cache, b.Project, p); err != nil {
					return err
				}
				continue
			}
			items = append(items, fetch.Item{Name: p.ID(), Path: p.Path, Alias: p.Alias, Size: p.Size, SHA256: p.SHA256, Line: p.Line})
		}
	}
	return fetch.Fetch(ctx, b.Cache, b.Locations, items, b.Fetch)
}

// baseTree returns the directory of the unpacked and configured base, which
// package layers are made on top of.
//
// The packages of onTop, which come next, are fetched too.
func (b *build) baseTree(ctx context.Context, base plan, onTop []plan) (string, error) {
	if dir, ok := b.Cache.Tree(base.key); ok {
		return dir, b.fetch(ctx, onTop...)
	}
	if err := b.fetch(ctx, append([]plan{base}, onTop...)...); err != nil {
		return "", err
	}
	w, err := b.Cache.NewTree(base.key)
	if err != nil {
		return "", err
	}
	defer w.Abort()
	if err := b.install(ctx, base, w.Dir(), "", onTop...); err != nil {
		return "", err
	}
	return w.Commit()
}

// plainModule is boot.PlainModule as a layer wants it.
func plainModule(path string) (string, deb.Convert) {
	name, plain := boot.PlainModule(path)
	return name, plain
}

// install unpacks and configures a plan's packages in dir, on top of lower; idle
// processors decompress the packages of the plans that come next.
func (b *build) install(ctx context.Context, pl plan, dir, lower string, next ...plan) error {
	policy, err := boot.NewModulePolicy()
	if err != nil {
		return err
	}
	work, err := b.Cache.Scratch()
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	in := layer.Input{
		Name: pl.title, Dir: dir, Work: work, Lower: lower, Date: b.date(), Transform: plainModule,
		Keep:    func(p string) bool { return layer.KeepDefault(p) && policy.Keep(p) },
		Preseed: map[string][]byte{}, ShellOnFailure: b.Shell, Progress: b.Progress, Spool: b.spool,
	}
	for path, content := range pl.preseed {
		in.Preseed[path] = []byte(content)
	}
	if in.LogFile, err = b.logFile(pl.title); err != nil {
		return err
	}
	if in.Debs, err = b.debs(pl); err != nil {
		return err
	}
	if in.Ahead, err = b.debs(next...); err != nil {
		return err
	}
	_, err = layer.Build(ctx, in)
	return err
}

// debs are the package files of plans.
func (b *build) debs(plans ...plan) ([]layer.Deb, error) {
	var out []layer.Deb
	for _, pl := range plans {
		for _, p := range pl.packages {
			path, ok := b.Cache.CheckedBlob(p.SHA256, p.Size)
			if !ok {
				return nil, gone(p.Name)
			}
			out = append(out, layer.Deb{Name: p.Name, Version: p.Version, Arch: p.Arch, Path: path})
		}
	}
	return out, nil
}

// logFile is where the scripts' output of a layer is kept, for whoever must find
// out why one failed. The next build of that layer overwrites it.
func (b *build) logFile(title string) (string, error) {
	dir := filepath.Join(b.Cache.Dir(), "logs")
	return filepath.Join(dir, title+".log"), os.MkdirAll(dir, 0o755)
}

// newSpool makes room for packages that are decompressed ahead of their use.
func (b *build) newSpool() (*layer.Spool, error) {
	dir, err := b.Cache.Scratch()
	if err != nil {
		return nil, err
	}
	return layer.NewSpool(dir)
}

// compressBase makes the base layer out of the base tree, and takes the kernel out.
func (b *build) compressBase(ctx context.Context, pl plan, dir string) (madeLayer, error) {
	t, err := layer.FromDir(dir, layer.FromDirOptions{Date: b.date()})
	if err != nil {
		return madeLayer{}, err
	}
	l := madeLayer{key: pl.key}
	if l.Kernel, err = boot.KernelRelease(t); err != nil {
		return madeLayer{}, err
	}
	if err := boot.CheckModules(t); err != nil {
		return madeLayer{}, err
	}
	kernel := "boot/vmlinuz-" + l.Kernel
	image, err := t.ReadFile(kernel)
	if err != nil {
		return madeLayer{}, fmt.Errorf("the base has no kernel image: %w", err)
	}
	if l.Vmlinuz, err = b.putBytes(image); err != nil {
		return madeLayer{}, err
	}
	for _, e := range t.Sorted() { // the kernel stands on the boot partition, not here
		if len(e.Path) > len("boot/") && e.Path[:len("boot/")] == "boot/" {
			t.Remove(e.Path)
		}
	}
	return b.compress(ctx, pl, l, t)
}

// makePackages makes a role's package layer.
func (b *build) makePackages(ctx context.Context, pl plan, lower string) (madeLayer, error) {
	t, drop, err := b.onTop(ctx, pl, lower)
	if err != nil {
		return madeLayer{}, err
	}
	defer drop()
	return b.compress(ctx, pl, madeLayer{key: pl.key}, t)
}

// onTop installs a plan's packages over the base and returns what they added,
// which drop removes.
func (b *build) onTop(ctx context.Context, pl plan, lower string) (t *tree.Tree, drop func(), err error) {
	dir, err := b.Cache.Scratch()
	if err != nil {
		return nil, nil, err
	}
	if err := b.install(ctx, pl, dir, lower); err != nil {
		return nil, nil, err
	}
	if t, err = layer.FromDir(dir, layer.FromDirOptions{Date: b.date(), Upper: true}); err != nil {
		return nil, nil, err
	}
	return t, func() { os.RemoveAll(dir) }, nil
}

// compress writes a tree as squashfs into the cache and records it.
func (b *build) compress(ctx context.Context, pl plan, l madeLayer, t *tree.Tree) (madeLayer, error) {
	task := b.Progress.Start("compress "+pl.title, 0, progress.Bytes)
	t.ClampTimes(b.date())
	w, err := b.Cache.NewBlob()
	if err != nil {
		return madeLayer{}, err
	}
	defer w.Abort()
	_, err = squashfs.Write(ctx, w, t, squashfs.Options{Date: b.date()})
	if err == nil {
		l.Name = pl.name
		l.Digest, l.Size, err = w.Commit()
	}
	task.Add(l.Size)
	task.Done(err)
	if err != nil {
		return madeLayer{}, err
	}
	return l, b.putRecord(layerRecord, l.key, l)
}

// layerTree reads a finished layer's file tree.
func (b *build) layerTree(l madeLayer) (*tree.Tree, io.Closer, error) {
	path, ok := b.Cache.Blob(l.Digest)
	if !ok {
		return nil, nil, gone(l.Digest)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	r, err := squashfs.Open(f, l.Size)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	t, err := r.Tree()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return t, f, nil
}
