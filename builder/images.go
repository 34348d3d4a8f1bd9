package builder

import (
	"context"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/oci"
	"github.com/slipwayhq/slipway/builder/profile"
)

// ociLayer is the layer with a role's OCI images; without any there is none.
type ociLayer struct {
	madeLayer
	list []manifest.Image
}

// stackOf is what a role's config layer stands on, bottom first.
func stackOf(ls *layers, role *profile.Profile, images ociLayer) []madeLayer {
	stack := []madeLayer{ls.base, ls.packages[role.Role]}
	if len(images.list) > 0 {
		stack = append(stack, images.madeLayer)
	}
	return stack
}

// sourceOf is where an image comes from; ok is false for one that is made here.
func sourceOf(im profile.Image) (s oci.Source, ok bool) {
	switch {
	case im.Registry != "":
		return oci.Source{Kind: oci.Registry, Where: im.Registry}, true
	case im.Layout != "":
		return oci.Source{Kind: oci.Layout, Where: im.Layout}, true
	case im.Tarball != "":
		return oci.Source{Kind: oci.Tarball, Where: im.Tarball}, true
	}
	return oci.Source{}, false
}

// wantedImages are the images that the lock must pin, each once.
func wantedImages(set *profile.Set) []lock.Image {
	var want []lock.Image
	for _, p := range set.Roles {
		for _, im := range p.Images {
			s, ok := sourceOf(im)
			if !ok {
				continue
			}
			i := slices.IndexFunc(want, func(w lock.Image) bool { return w.Name == im.Name })
			if i < 0 {
				i = len(want)
				want = append(want, lock.Image{Name: im.Name, Source: s.String(), File: p.File()})
			}
			want[i].Sets = append(want[i].Sets, p.Role)
		}
	}
	return want
}

// LockImages pins the wanted images in a lock. Those that previous has keep their digest,
// unless again names them (or is lock.All), or they come from a file of the project,
// which can be looked into at any time.
func LockImages(ctx context.Context, f oci.Fetcher, l *lock.Lock, want []lock.Image, previous *lock.Lock, again []string) error {
	look := func(im lock.Image) bool {
		s, err := oci.ParseSource(im.Source)
		return err != nil || s.Kind != oci.Registry || slices.Contains(again, lock.All) || slices.Contains(again, im.Name)
	}
	return l.PinImages(want, previous, look, func(im lock.Image) (string, error) {
		s, err := oci.ParseSource(im.Source)
		if err != nil {
			return "", err
		}
		return f.Resolve(ctx, s)
	})
}

// images makes the layer with a role's OCI images: it fetches those that are locked
// and compiles those that are made of the project's own programs.
func (b *build) images(ctx context.Context, role *profile.Profile) (ociLayer, error) {
	var (
		out   ociLayer
		named []oci.Named
		key   = []any{recipe, "images", b.date()}
		fetch = oci.Fetcher{Project: b.Project, Cache: b.Cache}
	)
	for _, im := range role.Images {
		digest, source := "", "go:"+im.Go
		if s, ok := sourceOf(im); ok {
			pinned, _ := b.lock.Image(im.Name)
			digest, source = pinned.Digest, pinned.Source
			if b.Registry != nil { // a mirror has the locked images beside the layers
				repository, _, _ := strings.Cut(im.Name, ":")
				fetch.Near = func(ctx context.Context, digest string) (v1.Image, error) {
					return b.Registry.Image(ctx, repository, digest)
				}
			}
			if err := fetch.Fetch(ctx, s, digest); err != nil {
				return out, err
			}
		} else {
			program, err := b.command(ctx, im.Go)
			if err != nil {
				return out, err
			}
			if digest, err = oci.Program(b.Cache, im.Go, program, b.date()); err != nil {
				return out, err
			}
		}
		named = append(named, oci.Named{Name: im.Name, Digest: digest})
		out.list = append(out.list, manifest.Image{Name: im.Name, Digest: digest, Source: source})
		key = append(key, im.Name, digest)
	}
	if len(named) == 0 {
		return out, nil
	}
	out.key = hashKey(key...)
	if b.cachedLayer(out.key, &out.madeLayer) {
		return out, nil
	}
	t, err := oci.Tree(b.Cache, named, b.date())
	if err != nil {
		return out, err
	}
	out.madeLayer, err = b.compress(ctx, plan{name: "images", title: role.Role + " images"}, out.madeLayer, t)
	return out, err
}
