package mirror

import (
	"context"
	"encoding/json"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/oci"
	"github.com/slipwayhq/slipway/builder/registry"
	"github.com/slipwayhq/slipway/internal/fault"
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
// several platforms, the one that appliances run is taken.
func LoadImage(ctx context.Context, c *cache.Cache, as, source string) (Image, error) {
	as = tagged(as)
	if !namePattern.MatchString(as) {
		return Image{}, fault.New(fault.Usage, "%q cannot name an image", as).WithMend("write REPOSITORY:TAG in lower case, without a host")
	}
	f := oci.Fetcher{Project: "/", Cache: c}
	s := oci.Source{Kind: oci.Registry, Where: source}
	var err error
	if dir, ok := strings.CutPrefix(source, "oci:"); ok {
		s.Kind = oci.Layout
		s.Where, err = filepath.Abs(dir)
	} else if file, ok := strings.CutPrefix(source, "docker-archive:"); ok {
		s.Kind = oci.Tarball
		s.Where, err = filepath.Abs(file)
	}
	var digest string
	if err == nil {
		digest, err = f.Resolve(ctx, s)
	}
	if err == nil {
		err = f.Fetch(ctx, s, digest)
	}
	if err != nil {
		return Image{}, fault.New(fault.Of(err), "image %s from %s: %w", as, source, err).
			WithMend("write oci:DIR, docker-archive:FILE, or HOST/REPOSITORY:TAG, and log in to the registry if it asks for it (docker login)")
	}
	return cached(c, as, digest)
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
		image, err := cached(f.Cache, tagged(im.Name), im.Digest)
		if err != nil {
			return nil, err
		}
		all = append(all, image)
	}
	return all, nil
}

// cached describes an image whose blobs are in the cache.
func cached(c *cache.Cache, name, digest string) (Image, error) {
	m, raw, err := oci.Manifest(c, digest)
	if err != nil {
		return Image{}, fault.New(fault.Integrity, "image %s left the cache while it was needed: %w", name, err)
	}
	d := v1.Descriptor{MediaType: oci.MediaType(m), Size: int64(len(raw)), Digest: v1.Hash{Algorithm: "sha256", Hex: digest}}
	return Image{Name: name, Descriptor: d, Blobs: append([]v1.Descriptor{d, m.Config}, m.Layers...)}, nil
}

// tagged is an image's name with the tag that clients mean if there is none.
func tagged(name string) string {
	if strings.Contains(name, ":") {
		return name
	}
	return name + ":latest"
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
