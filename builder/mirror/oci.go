package mirror

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/oci"
	"github.com/slipwayhq/slipway/builder/registry"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// LayersRepository is the repository of the mirror that finished layers are in.
const LayersRepository = "slipway/layers"

// refAnnotation names an image in an OCI image layout ("annotations.md").
const refAnnotation = "org.opencontainers.image.ref.name"

// Image is an OCI image whose blobs are in the cache.
type Image struct {
	Name       string // REPOSITORY:TAG, as the mirror serves it
	Descriptor v1.Descriptor
	Blobs      []v1.Descriptor // the manifest, the config, the layers
}

// namePattern is the Distribution Specification's ("Pulling manifests"), with a tag.
var namePattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// LoadImage brings an image into the cache. source is oci:DIR (an image layout that holds one image),
// docker-archive:FILE (what docker save wrote), or a reference in a registry. Of an image for
// several platforms, linux on arch is taken.
func LoadImage(ctx context.Context, c *cache.Cache, as, source, arch string, reporter progress.Reporter) (_ Image, err error) {
	as = tagged(as)
	if !namePattern.MatchString(as) {
		return Image{}, fault.New(fault.Usage, "%q cannot name an image", as).WithMend("write REPOSITORY:TAG in lower case, without a host")
	}
	img, err := openImage(ctx, source, arch)
	if err != nil {
		return Image{}, fault.New(fault.Of(err), "image %s from %s: %w", as, source, err).WithMend("%s", fault.Mend(err))
	}
	out := Image{Name: as}
	raw, err := img.RawManifest()
	if err != nil {
		return Image{}, fault.New(fault.Network, "image %s: %w", as, err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		return Image{}, fault.New(fault.Input, "image %s: %w", as, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return Image{}, err
	}
	mediaType, err := img.MediaType()
	if err != nil {
		return Image{}, err
	}
	out.Descriptor = v1.Descriptor{MediaType: mediaType, Size: int64(len(raw)), Digest: digest}
	config, err := img.RawConfigFile()
	if err != nil {
		return Image{}, fault.New(fault.Network, "image %s: %w", as, err)
	}
	for _, b := range []struct {
		d    v1.Descriptor
		data []byte
	}{{out.Descriptor, raw}, {manifest.Config, config}} {
		if err := put(c, b.d, io.NopCloser(strings.NewReader(string(b.data)))); err != nil {
			return Image{}, fmt.Errorf("image %s: %w", as, err)
		}
		out.Blobs = append(out.Blobs, b.d)
	}
	layers, err := img.Layers()
	if err != nil {
		return Image{}, err
	}
	var total int64
	for _, d := range manifest.Layers {
		total += d.Size
	}
	task := reporter.Start("image "+as, total, progress.Bytes)
	defer func() { task.Done(err) }()
	for i, d := range manifest.Layers {
		if _, ok := c.CheckedBlob(d.Digest.Hex, d.Size); !ok {
			r, err := layers[i].Compressed()
			if err != nil {
				return Image{}, fault.New(fault.Network, "image %s: %w", as, err)
			}
			if err := put(c, d, r); err != nil {
				return Image{}, fmt.Errorf("image %s: %w", as, err)
			}
		}
		task.Add(d.Size)
		out.Blobs = append(out.Blobs, d)
	}
	return out, nil
}

// LockedImages brings the images that a lock pins into the cache.
func LockedImages(ctx context.Context, l *lock.Lock, f oci.Fetcher) ([]Image, error) {
	var all []Image
	for _, im := range l.Images {
		s, err := oci.ParseSource(im.Source)
		if err != nil {
			return nil, fault.New(fault.Input, "image %s of the lock: %w", im.Name, err)
		}
		if err := f.Fetch(ctx, s, im.Digest); err != nil {
			return nil, err
		}
		m, raw, err := oci.Manifest(f.Cache, im.Digest)
		if err != nil {
			return nil, fault.New(fault.Integrity, "image %s left the cache while it was needed: %w", im.Name, err)
		}
		d := v1.Descriptor{MediaType: oci.MediaType(m), Size: int64(len(raw)), Digest: v1.Hash{Algorithm: "sha256", Hex: im.Digest}}
		all = append(all, Image{Name: tagged(im.Name), Descriptor: d, Blobs: append([]v1.Descriptor{d, m.Config}, m.Layers...)})
	}
	return all, nil
}

// tagged is an image's name with the tag that clients mean if there is none.
func tagged(name string) string {
	if strings.Contains(name, ":") {
		return name
	}
	return name + ":latest"
}

func put(c *cache.Cache, d v1.Descriptor, r io.ReadCloser) error {
	defer r.Close()
	if d.Digest.Algorithm != "sha256" {
		return fault.New(fault.Input, "digest %s: only sha256 is supported", d.Digest)
	}
	return c.PutBlob(d.Digest.Hex, d.Size, io.LimitReader(r, d.Size+1))
}

func openImage(ctx context.Context, source, arch string) (v1.Image, error) {
	platform := v1.Platform{OS: "linux", Architecture: arch}
	if dir, ok := strings.CutPrefix(source, "oci:"); ok {
		index, err := layout.ImageIndexFromPath(dir)
		if err != nil {
			return nil, fault.New(fault.Input, "%w", err)
		}
		return only(index, platform)
	}
	if file, ok := strings.CutPrefix(source, "docker-archive:"); ok {
		if _, err := os.Stat(file); err != nil {
			return nil, fault.New(fault.Input, "%w", err)
		}
		img, err := tarball.ImageFromPath(file, nil)
		if err != nil {
			return nil, fault.New(fault.Input, "%w", err)
		}
		return img, nil
	}
	ref, err := name.ParseReference(source)
	if err != nil {
		return nil, fault.New(fault.Usage, "%w", err).WithMend("write oci:DIR, docker-archive:FILE, or HOST/REPOSITORY:TAG")
	}
	img, err := remote.Image(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithPlatform(platform))
	if err != nil {
		return nil, fault.New(fault.Network, "%w", err).WithMend("check the reference, and log in to the registry if it asks for it (docker login)")
	}
	return img, nil
}

// only is the one image of an index, which may hold it for several platforms, one level down.
func only(index v1.ImageIndex, platform v1.Platform) (v1.Image, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, fault.New(fault.Input, "%w", err)
	}
	if len(m.Manifests) == 1 {
		switch d := m.Manifests[0]; {
		case d.MediaType.IsIndex():
			inner, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, fault.New(fault.Input, "%w", err)
			}
			return only(inner, platform)
		case d.MediaType.IsImage():
			return index.Image(d.Digest)
		}
	}
	fits := match.Platforms(platform)
	found := slices.DeleteFunc(slices.Clone(m.Manifests), func(d v1.Descriptor) bool { return !d.MediaType.IsImage() || !fits(d) })
	if len(found) != 1 {
		return nil, fault.New(fault.Input, "it holds %d images for %s, want one", len(found), platform.String())
	}
	return index.Image(found[0].Digest)
}

// oci puts the OCI image layout into the tree: images, and layers as artifacts.
func (g *gatherer) oci() error {
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	blob := func(d v1.Descriptor) error {
		return g.plan.add(OCIPath+"/blobs/sha256/"+d.Digest.Hex, d.Digest.Hex, d.Size)
	}
	for _, img := range g.Images {
		for _, d := range img.Blobs {
			if err := blob(d); err != nil {
				return err
			}
		}
		d := img.Descriptor
		d.Annotations = map[string]string{refAnnotation: img.Name}
		index.Manifests = append(index.Manifests, d)
	}
	for _, a := range g.Artifacts {
		d, err := g.artifact(a)
		if err != nil {
			return err
		}
		index.Manifests = append(index.Manifests, d)
	}
	slices.SortFunc(index.Manifests, func(a, b v1.Descriptor) int {
		return strings.Compare(a.Annotations[refAnnotation], b.Annotations[refAnnotation])
	})
	for i, d := range index.Manifests {
		if i > 0 && d.Annotations[refAnnotation] == index.Manifests[i-1].Annotations[refAnnotation] {
			return fault.New(fault.Usage, "two images are called %s", d.Annotations[refAnnotation])
		}
	}
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := g.plan.generate(OCIPath+"/oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	return g.plan.generate(OCIPath+"/index.json", data)
}

// artifact puts a finished layer into the tree, as slipway push has it in a registry.
func (g *gatherer) artifact(a registry.Artifact) (v1.Descriptor, error) {
	manifest, err := registry.Manifest(a)
	if err != nil {
		return v1.Descriptor{}, err
	}
	put := func(data []byte) (v1.Hash, error) {
		h, _, err := v1.SHA256(strings.NewReader(string(data)))
		if err == nil {
			err = g.plan.generate(OCIPath+"/blobs/sha256/"+h.Hex, data)
		}
		return h, err
	}
	digest, err := put(manifest)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if _, err := put(a.Record); err != nil {
		return v1.Descriptor{}, err
	}
	for _, b := range a.Blobs {
		if err := g.plan.add(OCIPath+"/blobs/sha256/"+b.Digest, b.Digest, b.Size); err != nil {
			return v1.Descriptor{}, err
		}
	}
	return v1.Descriptor{MediaType: types.OCIManifestSchema1, Size: int64(len(manifest)), Digest: digest, ArtifactType: a.Kind.MediaType(),
		Annotations: map[string]string{refAnnotation: LayersRepository + ":" + a.Tag()}}, nil
}
