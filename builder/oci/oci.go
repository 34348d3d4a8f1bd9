// Package oci brings the OCI images of a product into an appliance: from a registry,
// an OCI image layout, a tarball or a Go package of the project, through the cache,
// to one layer of the root file system from which Docker loads them.
//
// In: where an image comes from (Source) and, once locked, the digest of its
// manifest. Out: its blobs in the cache, checked against their digests (Fetch, Program),
// and a tree that holds the images as one OCI image layout ("OCI Image Format
// Specification", image-layout.md) with the manifest.json that docker load wants
// (Tree). The manifest's digest covers all else, so it alone is locked.
package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/registry"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Kinds of sources, as images.lock writes them.
const (
	Registry = "registry"
	Layout   = "layout"
	Tarball  = "tarball"
)

// Source is where an image comes from.
type Source struct {
	Kind  string
	Where string // a reference, or a path below the project
}

// String is the source as images.lock has it.
func (s Source) String() string { return s.Kind + ":" + s.Where }

// ParseSource reads what String writes.
func ParseSource(text string) (Source, error) {
	kind, where, ok := strings.Cut(text, ":")
	if !ok || where == "" || kind != Registry && kind != Layout && kind != Tarball {
		return Source{}, fmt.Errorf("%q is no source of an image", text)
	}
	return Source{kind, where}, nil
}

// Limits of what is read into memory.
const (
	maxManifest = 4 << 20 // "OCI Distribution Specification", "Pushing manifests"
	maxConfig   = 8 << 20
	maxLayers   = 127 // as many as Docker takes
)

// Fetcher gets images.
type Fetcher struct {
	Project string // directory that paths start at
	Cache   *cache.Cache
	// Transport reaches registries; nil is the usual one.
	Transport http.RoundTripper
	// Near is asked for a locked image before its source is, such as a mirror where the
	// source is out of reach; nil is nobody.
	Near func(ctx context.Context, digest string) (v1.Image, error)
}

// Resolve finds out the digest of the image that a source has now, SHA-256 in
// hexadecimal, without getting more of it than is needed for that.
func (f Fetcher) Resolve(ctx context.Context, s Source) (digest string, err error) {
	im, done, err := f.open(ctx, s, "")
	if err != nil {
		return "", err
	}
	defer done()
	if err := check(im); err != nil {
		return "", f.failed(ctx, s, err)
	}
	d, err := im.Digest()
	if err != nil {
		return "", f.failed(ctx, s, err)
	}
	return d.Hex, nil
}

// Fetch brings a locked image into the cache, unless it is there.
func (f Fetcher) Fetch(ctx context.Context, s Source, digest string) error {
	if complete(f.Cache, digest) {
		return nil
	}
	if f.Near != nil {
		if im, err := f.Near(ctx, digest); err == nil && f.store(im) == nil && complete(f.Cache, digest) {
			return nil
		}
	}
	im, done, err := f.open(ctx, s, digest)
	if err != nil {
		return err
	}
	defer done()
	d, err := im.Digest()
	if err != nil {
		return f.failed(ctx, s, err)
	}
	if d.Hex != digest {
		return fault.New(fault.Integrity, "%s has the image sha256:%s, images.lock wants sha256:%s", s, d.Hex, digest).
			WithMend("if it was replaced on purpose, run `slipway lock` and commit the lock; else bring the former one back")
	}
	if err := f.store(im); err != nil {
		return f.failed(ctx, s, err)
	}
	if !complete(f.Cache, digest) {
		return fault.New(fault.Integrity, "%s: the image is not whole", s)
	}
	return nil
}

// open finds the image of a source; with a digest, the one that was locked.
func (f Fetcher) open(ctx context.Context, s Source, digest string) (im v1.Image, done func(), err error) {
	done = func() {}
	switch s.Kind {
	case Registry:
		im, err = f.remote(ctx, s.Where, digest)
	case Layout:
		im, err = fromLayout(filepath.Join(f.Project, filepath.FromSlash(s.Where)))
	case Tarball:
		im, done, err = f.fromTarball(ctx, filepath.Join(f.Project, filepath.FromSlash(s.Where)))
	default:
		err = fmt.Errorf("%q is no kind of source", s.Kind)
	}
	if err != nil {
		return nil, nil, f.failed(ctx, s, err)
	}
	return im, done, nil
}

// failed gives an error its class.
func (f Fetcher) failed(ctx context.Context, s Source, err error) error {
	var classed *fault.Error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &classed):
		return err
	case s.Kind == Registry:
		return fault.New(fault.Network, "image %s: %w", s.Where, err).
			WithMend("check its name, that this machine reaches the registry, and docker login if it wants to know who asks")
	case errors.Is(err, os.ErrNotExist):
		return fault.New(fault.Input, "image %s: %w", s.Where, err).WithMend("put it there; paths start at the project's directory")
	}
	return fault.New(fault.Input, "image %s: %w", s.Where, err)
}

// remote finds an image in a registry.
func (f Fetcher) remote(ctx context.Context, where, digest string) (v1.Image, error) {
	ref, err := name.ParseReference(where)
	if err != nil {
		return nil, fault.New(fault.Input, "%q does not name an image of a registry: %w", where, err).
			WithMend("write HOST/REPOSITORY:TAG or HOST/REPOSITORY@sha256:DIGEST")
	}
	if digest != "" {
		ref = ref.Context().Digest("sha256:" + digest)
	}
	transport := f.Transport
	if transport == nil {
		transport = registry.Transport()
	}
	desc, err := remote.Get(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(transport),
		remote.WithPlatform(platform))
	if err != nil {
		return nil, err
	}
	if !desc.MediaType.IsIndex() {
		return desc.Image()
	}
	index, err := desc.ImageIndex()
	if err != nil {
		return nil, err
	}
	return pick(index, 0)
}

// platform is what appliances are.
var platform = v1.Platform{OS: "linux", Architecture: "amd64"}

// pick finds the one image for linux/amd64 in an index, or in those that it names.
func pick(index v1.ImageIndex, depth int) (v1.Image, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var found []v1.Image
	for _, d := range m.Manifests {
		if d.Platform != nil && (d.Platform.OS != platform.OS || d.Platform.Architecture != platform.Architecture) {
			continue // another machine's, or an attestation ("unknown")
		}
		switch {
		case d.MediaType.IsImage():
			im, err := index.Image(d.Digest)
			if err != nil {
				return nil, err
			}
			found = append(found, im)
		case d.MediaType.IsIndex() && depth < 2:
			inner, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			im, err := pick(inner, depth+1)
			if err != nil {
				return nil, err
			}
			found = append(found, im)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("it holds %d images for %s, want one", len(found), platform.String())
	}
	return found[0], nil
}

func fromLayout(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	return pick(index, 0)
}

// check refuses an image that an appliance cannot run.
func check(im v1.Image) error {
	m, err := im.Manifest()
	if err != nil {
		return err
	}
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("it has %d layers, more than %d", len(m.Layers), maxLayers)
	}
	if m.Config.Size > maxConfig {
		return fmt.Errorf("its configuration has %d bytes", m.Config.Size)
	}
	config, err := im.ConfigFile()
	if err != nil {
		return err
	}
	if config.OS != platform.OS || config.Architecture != platform.Architecture {
		return fmt.Errorf("it is for %s/%s, not for %s", config.OS, config.Architecture, platform.String())
	}
	return nil
}

// store puts an image's blobs into the cache, which checks each against its digest,
// the manifest last.
func (f Fetcher) store(im v1.Image) error {
	if err := check(im); err != nil {
		return err
	}
	m, err := im.Manifest()
	if err != nil {
		return err
	}
	layers, err := im.Layers()
	if err != nil {
		return err
	}
	for i, l := range layers {
		d := m.Layers[i]
		if _, ok := f.Cache.CheckedBlob(d.Digest.Hex, d.Size); ok {
			continue
		}
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		err = f.Cache.PutBlob(d.Digest.Hex, d.Size, r)
		r.Close()
		if err != nil {
			return err
		}
	}
	config, err := im.RawConfigFile()
	if err != nil {
		return err
	}
	if err := f.Cache.PutBlob(m.Config.Digest.Hex, int64(len(config)), bytes.NewReader(config)); err != nil {
		return err
	}
	raw, err := im.RawManifest()
	if err != nil {
		return err
	}
	digest, err := im.Digest()
	if err != nil {
		return err
	}
	return f.Cache.PutBlob(digest.Hex, int64(len(raw)), bytes.NewReader(raw))
}

// Manifest reads an image's manifest from the cache, also as it stands there.
func Manifest(c *cache.Cache, digest string) (*v1.Manifest, []byte, error) {
	path, ok := c.Blob(digest)
	if !ok {
		return nil, nil, os.ErrNotExist
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, nil, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil || len(raw) > maxManifest {
		return nil, nil, fmt.Errorf("sha256:%s is no manifest of an image", digest)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if d.Digest.Algorithm != "sha256" || len(d.Digest.Hex) != 64 {
			return nil, nil, fmt.Errorf("the manifest sha256:%s names something by %q", digest, d.Digest)
		}
	}
	return &m, raw, nil
}

// complete reports whether the cache has all of an image.
func complete(c *cache.Cache, digest string) bool {
	m, _, err := Manifest(c, digest)
	if err != nil {
		return false
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if _, ok := c.CheckedBlob(d.Digest.Hex, d.Size); !ok {
			return false
		}
	}
	return true
}

// MediaType is a manifest's, which an old one may leave out.
func MediaType(m *v1.Manifest) types.MediaType {
	if m.MediaType != "" {
		return m.MediaType
	}
	return types.OCIManifestSchema1
}
