package oci

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/tree"
)

// Named is an image as the node knows it.
type Named struct {
	Name   string // REPOSITORY or REPOSITORY:TAG
	Digest string // of its manifest, SHA-256 in hexadecimal
}

// Full is a name as Docker keeps it: with the registry that a short one stands for,
// and with a tag.
func Full(name string) string {
	repository, tag, ok := strings.Cut(name, ":")
	if !ok {
		tag = "latest"
	}
	first, _, more := strings.Cut(repository, "/")
	switch {
	case !more:
		repository = "docker.io/library/" + repository
	case !strings.Contains(first, ".") && first != "localhost":
		repository = "docker.io/" + repository
	}
	return repository + ":" + tag
}

// Reference names an image by its digest, as services do. It resolves without a
// registry where Docker keeps its images in containerd.
func Reference(name, digest string) string {
	repository, _, _ := strings.Cut(name, ":")
	return repository + "@sha256:" + digest
}

// loaded is an entry of manifest.json, without which docker load takes no layout.
type loaded struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Tree is the images as one OCI image layout at manifest.ImagesDir. Blobs that several
// images have stand once.
func Tree(c *cache.Cache, images []Named, date int64) (*tree.Tree, error) {
	images = slices.Clone(images)
	slices.SortFunc(images, func(a, b Named) int { return strings.Compare(a.Name, b.Name) })
	t := tree.New()
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	var list []loaded
	for _, im := range images {
		m, raw, err := Manifest(c, im.Digest)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", im.Name, err)
		}
		self := describe(MediaType(m), raw)
		self.Platform = &v1.Platform{OS: platform.OS, Architecture: platform.Architecture}
		self.Annotations = map[string]string{"io.containerd.image.name": Full(im.Name), "org.opencontainers.image.ref.name": Full(im.Name)}
		index.Manifests = append(index.Manifests, self)
		entry := loaded{Config: blobName(m.Config), RepoTags: []string{Full(im.Name)}}
		for _, d := range m.Layers {
			entry.Layers = append(entry.Layers, blobName(d))
		}
		list = append(list, entry)
		for _, d := range append([]v1.Descriptor{self, m.Config}, m.Layers...) {
			if err := putBlob(t, c, d, date); err != nil {
				return nil, fmt.Errorf("image %s: %w", im.Name, err)
			}
		}
	}
	for name, v := range map[string]any{
		"oci-layout": map[string]string{"imageLayoutVersion": "1.0.0"}, "index.json": index, "manifest.json": list,
	} {
		text, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		if err := t.PutFile(path.Join(manifest.ImagesDir, name), 0o644, date, text); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func blobName(d v1.Descriptor) string { return "blobs/sha256/" + d.Digest.Hex }

func putBlob(t *tree.Tree, c *cache.Cache, d v1.Descriptor, date int64) error {
	file, ok := c.CheckedBlob(d.Digest.Hex, d.Size)
	if !ok {
		return fmt.Errorf("%s: %w", d.Digest, os.ErrNotExist)
	}
	return t.Put(&tree.Entry{
		Path: path.Join(manifest.ImagesDir, blobName(d)), Kind: tree.Regular, Perm: 0o644, MTime: date, Size: d.Size,
		Open: func() (io.ReadCloser, error) { return os.Open(file) },
	})
}
