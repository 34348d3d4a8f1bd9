package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/agent"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/builder/registry"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Pushed is one artifact in a registry.
type Pushed struct {
	Name  string          `json:"name"` // base, loader, agent, the role of a package layer, or the package of a command
	Tag   string          `json:"tag"`
	Size  int64           `json:"size"` // bytes of its blobs
	Blobs []registry.Blob `json:"blobs"`

	artifact registry.Artifact
}

// Artifact is what is pushed.
func (p Pushed) Artifact() registry.Artifact { return p.artifact }

// Push puts the base, the package layers and the loader of the roles, the agent, and the commands
// that the roles carry into the registry. All of them must be in the cache.
func Push(ctx context.Context, req Request, means Means) ([]Pushed, error) {
	all, err := PlanPush(req, means)
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if err := means.Registry.Push(ctx, means.Cache, p.artifact, p.Name, means.Progress); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// PlanPush is what Push would put into the registry.
func PlanPush(req Request, means Means) ([]Pushed, error) {
	b := &build{Request: req, Means: means}
	roles, err := b.open()
	if err != nil {
		return nil, err
	}
	var all []Pushed
	source, err := agent.Key(b.Project)
	if err != nil {
		return nil, err
	}
	list := append(b.stack(roles).wanted(), wanted{agentKind(), "agent", source})
	for _, pkg := range commands(roles) {
		key, err := agent.CommandKey(b.Project, pkg)
		if err != nil {
			return nil, err
		}
		list = append(list, wanted{commandKind(), pkg, key})
	}
	for _, w := range list {
		a, ok, err := registry.Find(b.Cache, w.kind, w.key)
		if err != nil {
			return nil, err
		}
		if !ok {
			names := make([]string, 0, len(roles))
			for _, p := range roles {
				names = append(names, p.Role)
			}
			return nil, fault.New(fault.Usage, "the %s is not in the cache as images.lock and the profiles have it now", w.describe()).
				WithMend("run slipway build %s first", strings.Join(names, " "))
		}
		all = append(all, Pushed{Name: w.title, Tag: a.Tag(), Size: a.Size(), Blobs: a.Blobs, artifact: a})
	}
	return all, nil
}

// wanted is one thing that travels between caches.
type wanted struct {
	kind  registry.Kind
	title string
	key   string
}

func (w wanted) describe() string {
	switch w.kind.Name {
	case loaderRecord:
		return "boot loader"
	case agent.RecordKind:
		return "compiled agent"
	case agent.CommandRecord:
		return "compiled " + w.title
	}
	return "layer " + w.title
}

// wanted lists what a stack needs, the base first.
func (s stack) wanted() []wanted {
	out := []wanted{
		{baseKind(), s.base.title, s.base.key},
		{loaderKind(), "loader", s.tools.key},
	}
	for _, pl := range sortedPlans(s.packages) {
		out = append(out, wanted{packagesKind(), pl.title, pl.key})
	}
	return out
}

// pull looks for what the cache lacks in the registry. A registry that does not
// answer costs time, no build: what it would have had is made here.
func (b *build) pull(ctx context.Context, s stack) error {
	var missing []wanted
	for _, w := range s.wanted() {
		have := false
		if w.kind.Name == loaderRecord {
			have = b.cachedLoader(w.key, new(loader))
		} else {
			have = b.cachedLayer(w.key, new(madeLayer))
		}
		if !have {
			missing = append(missing, w)
		}
	}
	if b.Registry == nil || len(missing) == 0 {
		return nil
	}
	puller, err := b.Registry.Puller(ctx)
	if err != nil {
		return b.unlessNetwork(err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(3)
	for _, w := range missing {
		g.Go(func() error {
			found, err := puller.Pull(ctx, b.Cache, w.kind, w.key, w.title, b.Progress)
			if err == nil && !found {
				b.Log.Infof("%s does not have the %s; it is made here", b.Registry, w.describe())
			}
			return b.unlessNetwork(err)
		})
	}
	return g.Wait()
}

// programs compiles init and agent, or takes them from the cache or the registry.
func (b *build) programs(ctx context.Context) (agent.Binaries, error) {
	key, err := agent.Key(b.Project)
	if err != nil {
		return agent.Binaries{}, err
	}
	if _, ok := agent.Cached(b.Cache, key); !ok && b.Registry != nil {
		if err := b.pullProgram(ctx, agentKind(), key, "agent"); err != nil {
			return agent.Binaries{}, err
		}
	}
	return agent.Build(ctx, b.Project, b.Cache)
}

// carriesCommand reports whether a role has the command in its image.
func carriesCommand(p *profile.Profile) bool { return p.Slipway }

// commands are the packages of the commands that roles carry, themselves or in OCI images.
func commands(roles []*profile.Profile) (packages []string) {
	for _, p := range roles {
		if carriesCommand(p) {
			packages = append(packages, agent.CommandPackage)
		}
		for _, im := range p.Images {
			if im.Go != "" {
				packages = append(packages, im.Go)
			}
		}
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}

// command compiles a command of the project, or takes it from the cache or the registry.
func (b *build) command(ctx context.Context, pkg string) (digest string, err error) {
	key, err := agent.CommandKey(b.Project, pkg)
	if err != nil {
		return "", err
	}
	if _, ok := agent.CachedCommand(b.Cache, key); !ok && b.Registry != nil {
		if err := b.pullProgram(ctx, commandKind(), key, pkg); err != nil {
			return "", err
		}
	}
	return agent.Command(ctx, b.Project, pkg, b.Cache)
}

// pullProgram looks for a program in the registry.
func (b *build) pullProgram(ctx context.Context, kind registry.Kind, key, title string) error {
	puller, err := b.Registry.Puller(ctx)
	if err == nil {
		_, err = puller.Pull(ctx, b.Cache, kind, key, title, b.Progress)
	}
	return b.unlessNetwork(err)
}

// unlessNetwork turns an error of the registry's not answering into a warning.
func (b *build) unlessNetwork(err error) error {
	if err == nil || fault.Of(err) != fault.Network {
		return err
	}
	b.Log.Warnf("%v; layers that the cache lacks are made here", err)
	return nil
}

// Limits on files that a build reads into memory.
const (
	maxKernel   = 256 << 20
	maxBootFile = 16 << 20
	maxProgram  = 256 << 20
)

// releasePattern is what a kernel release looks like; it becomes part of paths.
var releasePattern = regexp.MustCompile(`^[0-9][0-9A-Za-z.+~_-]{0,99}$`)

// baseKind is the base layer, with its kernel.
func baseKind() registry.Kind { return layerKind("base") }

// packagesKind is a role's package layer.
func packagesKind() registry.Kind { return layerKind("packages") }

func layerKind(name string) registry.Kind {
	return registry.Kind{Name: layerRecord, Blobs: func(record []byte) ([]registry.Blob, error) {
		var l madeLayer
		if err := strictJSON(record, &l); err != nil {
			return nil, err
		}
		if l.Name != name {
			return nil, fmt.Errorf("it is of a layer %q, want %q", l.Name, name)
		}
		if l.Size <= 0 {
			return nil, fmt.Errorf("a layer of %d bytes", l.Size)
		}
		blobs := []registry.Blob{{Digest: l.Digest, Size: l.Size, MediaType: registry.Squashfs, Title: name + ".sqfs"}}
		if name != "base" {
			if l.Kernel != "" || l.Vmlinuz != "" {
				return nil, fmt.Errorf("a layer %q with a kernel", name)
			}
			return blobs, nil
		}
		if !releasePattern.MatchString(l.Kernel) {
			return nil, fmt.Errorf("%q is no release of a kernel", l.Kernel)
		}
		return append(blobs, registry.Blob{Digest: l.Vmlinuz, Size: -1, MediaType: registry.Kernel, Title: "vmlinuz", Limit: maxKernel}), nil
	}}
}

// loaderKind is the boot loaders.
func loaderKind() registry.Kind {
	return registry.Kind{Name: loaderRecord, Blobs: func(record []byte) ([]registry.Blob, error) {
		var l loader
		if err := strictJSON(record, &l); err != nil {
			return nil, err
		}
		bootFile := func(title, digest string) registry.Blob {
			return registry.Blob{Digest: digest, Size: -1, MediaType: registry.BootFile, Title: title, Limit: maxBootFile}
		}
		blobs := []registry.Blob{bootFile("boot.img", l.Boot), bootFile("core.img", l.Core)}
		for _, to := range slices.Sorted(maps.Keys(l.Files)) {
			if !fs.ValidPath(to) || !strings.HasPrefix(to, "EFI/") {
				return nil, fmt.Errorf("%q is no place for a boot loader", to)
			}
			blobs = append(blobs, bootFile(to, l.Files[to]))
		}
		return blobs, nil
	}}
}

// agentKind is the programs of slipway's own that run in appliances.
func agentKind() registry.Kind {
	return registry.Kind{Name: agent.RecordKind, Blobs: func(record []byte) ([]registry.Blob, error) {
		var a agent.Binaries
		if err := strictJSON(record, &a); err != nil {
			return nil, err
		}
		return []registry.Blob{program("init", a.Init), program("firstboot", a.Firstboot)}, nil
	}}
}

// commandKind is a command that roles carry: slipway, or one that an image is made of.
func commandKind() registry.Kind {
	return registry.Kind{Name: agent.CommandRecord, Blobs: func(record []byte) ([]registry.Blob, error) {
		var p agent.Program
		if err := strictJSON(record, &p); err != nil {
			return nil, err
		}
		return []registry.Blob{program("command", p.Command)}, nil
	}}
}

func program(title, digest string) registry.Blob {
	return registry.Blob{Digest: digest, Size: -1, MediaType: registry.Program, Title: title, Limit: maxProgram}
}

// strictJSON reads one JSON value and refuses fields that v does not have: a
// record with more in it is of a slipway that we do not know.
func strictJSON(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("something follows the JSON value")
	}
	return nil
}
