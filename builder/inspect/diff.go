package inspect

import (
	"bytes"
	"context"
	"io"
	"maps"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Difference is what "slipway diff" tells of two images or locks.
type Difference struct {
	A        Side            `json:"a"`
	B        Side            `json:"b"`
	Packages []PackageChange `json:"packages"`
	Layers   []LayerChange   `json:"layers,omitempty"` // between images
	Files    []FileChange    `json:"files,omitempty"`  // between images
}

// Side is one of the two things compared.
type Side struct {
	Path    string `json:"path"`
	Kind    string `json:"kind"` // image or lock
	Role    string `json:"role,omitempty"`
	Version string `json:"version,omitempty"`
	Size    int64  `json:"size"` // bytes of all layers, or of all .deb
}

// PackageChange is a package that only one side has, or both in other versions.
type PackageChange struct {
	Name  string `json:"name"`
	From  string `json:"from,omitempty"` // version; empty if added
	To    string `json:"to,omitempty"`   // version; empty if removed
	Delta int64  `json:"installed_delta"`
}

// LayerChange compares layers of one name.
type LayerChange struct {
	Name string `json:"name"`
	Same bool   `json:"same"`
	From int64  `json:"from"` // bytes
	To   int64  `json:"to"`
}

// FileChange is a path that only one side has, or that differs.
type FileChange struct {
	Path   string   `json:"path"`
	Change string   `json:"change"` // added, removed or changed
	What   []string `json:"what,omitempty"`
	From   int64    `json:"from"` // bytes
	To     int64    `json:"to"`
}

// None says that nothing differs.
func (d *Difference) None() bool {
	same := true
	for _, l := range d.Layers {
		same = same && l.Same
	}
	return same && len(d.Packages) == 0 && len(d.Files) == 0
}

// side is a Side with what is compared.
type side struct {
	Side
	packages map[string]installed // by name
	image    *Image
	version  *Version
}

// installed is a package in one or, in a lock of several sets, more versions.
type installed struct {
	versions []string
	size     int64
}

// Diff compares two files, each an image or a lock, whichever it turns out to be.
// Of an image it takes the version that the image starts. Files and layers are
// compared if both are images.
func Diff(ctx context.Context, a, b string) (*Difference, error) {
	left, err := openSide(a)
	if err != nil {
		return nil, err
	}
	defer left.close()
	right, err := openSide(b)
	if err != nil {
		return nil, err
	}
	defer right.close()
	d := &Difference{A: left.Side, B: right.Side, Packages: diffPackages(left.packages, right.packages)}
	if left.image == nil || right.image == nil {
		return d, nil
	}
	d.Layers = diffLayers(left.version.Layers, right.version.Layers)
	if slices.Equal(left.version.Layers, right.version.Layers) {
		return d, nil
	}
	d.Files, err = diffFiles(ctx, left, right)
	return d, err
}

// openSide opens an image, or a lock if the file is text.
func openSide(name string) (*side, error) {
	head, err := readHead(name)
	if err != nil {
		return nil, err
	}
	if isText(head) {
		return lockSide(name)
	}
	im, err := Open(name)
	if err != nil {
		return nil, err
	}
	v := im.Current()
	s := &side{
		Side:     Side{Path: name, Kind: "image", Role: v.Role.Name, Version: v.Version},
		packages: map[string]installed{}, image: im, version: v,
	}
	for _, l := range v.Layers {
		s.Size += l.Size
	}
	for _, p := range v.Packages {
		s.add(p.Name, p.Version, p.InstalledSize)
	}
	return s, nil
}

func lockSide(name string) (*side, error) {
	l, err := lock.Read(name)
	if err != nil {
		return nil, err
	}
	s := &side{Side: Side{Path: name, Kind: "lock", Version: l.Checksum()}, packages: map[string]installed{}}
	for _, p := range l.Packages {
		if slices.Equal(p.Sets, []string{"tools"}) {
			continue // never in an appliance
		}
		s.Size += p.Size
		s.add(p.Name, p.Version, p.InstalledSize)
	}
	return s, nil
}

func (s *side) add(name, version string, size int64) {
	p := s.packages[name]
	s.packages[name] = installed{append(p.versions, version), p.size + size}
}

func (s *side) close() {
	if s.image != nil {
		s.image.Close()
	}
}

func readHead(name string) ([]byte, error) {
	f, _, err := openFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, sector)
	n, err := io.ReadFull(f, head)
	if err != nil && n == 0 {
		return nil, fault.New(fault.Input, "%s: the file is empty", name).WithMend("name an image or a lock")
	}
	return head[:n], nil
}

// isText says whether bytes are those of a text file, as a lock is.
func isText(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\n' && c != '\t' && c != '\r' {
			return false
		}
	}
	return !bytes.HasPrefix(b, []byte("KDMV"))
}

func diffPackages(a, b map[string]installed) []PackageChange {
	out := []PackageChange{}
	for _, name := range unionKeys(a, b) {
		from, to := a[name], b[name]
		slices.Sort(from.versions)
		slices.Sort(to.versions)
		if slices.Equal(from.versions, to.versions) {
			continue
		}
		out = append(out, PackageChange{
			Name: name, From: strings.Join(from.versions, ", "), To: strings.Join(to.versions, ", "), Delta: to.size - from.size,
		})
	}
	return out
}

func unionKeys[V any](a, b map[string]V) []string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}

func diffLayers(a, b []manifest.Layer) []LayerChange {
	find := func(layers []manifest.Layer, name string) manifest.Layer {
		for _, l := range layers {
			if l.Name == name {
				return l
			}
		}
		return manifest.Layer{}
	}
	var out []LayerChange
	seen := map[string]bool{}
	for _, l := range append(slices.Clone(a), b...) {
		if seen[l.Name] {
			continue
		}
		seen[l.Name] = true
		from, to := find(a, l.Name), find(b, l.Name)
		out = append(out, LayerChange{l.Name, from.Digest == to.Digest, from.Size, to.Size})
	}
	return out
}

// diffFiles compares the root file systems. What both sides take from one and the
// same layer is the same without a look.
func diffFiles(ctx context.Context, left, right *side) ([]FileChange, error) {
	a, err := left.image.rootFS(left.version)
	if err != nil {
		return nil, err
	}
	b, err := right.image.rootFS(right.version)
	if err != nil {
		return nil, err
	}
	paths := map[string]bool{}
	for _, t := range []*tree.Tree{a.tree, b.tree} {
		for _, e := range t.Sorted() {
			paths[e.Path] = true
		}
	}
	sorted := slices.Sorted(maps.Keys(paths))
	changes := make([]*FileChange, len(sorted))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, p := range sorted {
		x, y := a.tree.Get(p), b.tree.Get(p)
		if x != nil && y != nil && a.from[p] == b.from[p] && a.from[p] != "" {
			continue
		}
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			var err error
			changes[i], err = diffFile(p, x, y)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var out []FileChange
	for _, c := range changes {
		if c != nil {
			out = append(out, *c)
		}
	}
	return out, nil
}

func diffFile(p string, x, y *tree.Entry) (*FileChange, error) {
	switch {
	case x == nil:
		return &FileChange{Path: p, Change: "added", To: y.Size}, nil
	case y == nil:
		return &FileChange{Path: p, Change: "removed", From: x.Size}, nil
	}
	var what []string
	for _, test := range []struct {
		name   string
		differ bool
	}{
		{"kind", x.Kind != y.Kind},
		{"mode", x.Perm != y.Perm},
		{"owner", x.UID != y.UID || x.GID != y.GID},
		{"target", x.Target != y.Target},
		{"device", x.Major != y.Major || x.Minor != y.Minor},
		{"attributes", !maps.EqualFunc(x.Xattrs, y.Xattrs, bytes.Equal)},
	} {
		if test.differ {
			what = append(what, test.name)
		}
	}
	if x.Kind == tree.Regular && y.Kind == tree.Regular {
		same, err := sameContent(x, y)
		if err != nil {
			return nil, fault.New(fault.Integrity, "/%s: %w", p, err)
		}
		if !same {
			what = append(what, "content")
		}
	}
	if len(what) == 0 {
		return nil, nil
	}
	sort.Strings(what)
	return &FileChange{Path: p, Change: "changed", What: what, From: x.Size, To: y.Size}, nil
}

// sameContent compares two files piece by piece and stops at the first difference.
func sameContent(x, y *tree.Entry) (bool, error) {
	if x.Size != y.Size {
		return false, nil
	}
	if x.Size == 0 || x.Open == nil || y.Open == nil {
		return x.Open == nil == (y.Open == nil) || x.Size == 0, nil
	}
	a, err := x.Open()
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := y.Open()
	if err != nil {
		return false, err
	}
	defer b.Close()
	p, q := make([]byte, 64<<10), make([]byte, 64<<10)
	for left := x.Size; left > 0; {
		n := int(min(left, int64(len(p))))
		if _, err := io.ReadFull(a, p[:n]); err != nil {
			return false, err
		}
		if _, err := io.ReadFull(b, q[:n]); err != nil {
			return false, err
		}
		if !bytes.Equal(p[:n], q[:n]) {
			return false, nil
		}
		left -= int64(n)
	}
	return true, nil
}
