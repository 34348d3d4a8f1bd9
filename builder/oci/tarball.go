package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Limits of a tarball: what is unpacked takes room in the cache until the image is
// in it.
const (
	maxEntries  = 100000
	maxUnpacked = 64 << 30
)

// fromTarball unpacks a tarball and finds its image. done takes what was unpacked
// away again.
func (f Fetcher) fromTarball(ctx context.Context, file string) (im v1.Image, done func(), err error) {
	in, err := os.Open(file)
	if err != nil {
		return nil, nil, err
	}
	defer in.Close()
	dir, err := f.Cache.Scratch()
	if err != nil {
		return nil, nil, err
	}
	clean := func() { os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			clean()
		}
	}()
	root, err := os.OpenRoot(dir) // nothing in the archive leads out of it
	if err != nil {
		return nil, nil, err
	}
	defer root.Close()
	if err := unpack(ctx, bufio.NewReaderSize(in, 1<<20), root); err != nil {
		return nil, nil, err
	}
	if _, err := root.Stat("oci-layout"); err == nil {
		im, err = fromLayout(dir)
		return im, clean, err
	}
	im, err = fromSaved(root, dir)
	return im, clean, err
}

// unpack writes the files and links of a tar archive below root.
func unpack(ctx context.Context, in io.Reader, root *os.Root) error {
	r := tar.NewReader(in)
	var total int64
	for count := 0; ; count++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is no tar archive: %w", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "./"))
		if !fs.ValidPath(name) || count > maxEntries {
			return fmt.Errorf("the archive has a strange entry %q", h.Name)
		}
		if dir := path.Dir(name); dir != "." {
			if err := root.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if total += h.Size; total > maxUnpacked {
				return fmt.Errorf("the archive has more than %d GiB", maxUnpacked>>30)
			}
			out, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			_, err = io.Copy(out, r)
			if err = errors.Join(err, out.Close()); err != nil {
				return err
			}
		case tar.TypeSymlink: // docker save writes a layer once, and links to it
			if err := root.Symlink(h.Linkname, name); err != nil {
				return err
			}
		}
	}
}

// savedImage is an entry of docker save's manifest.json.
type savedImage struct {
	Config string
	Layers []string
}

// fromSaved makes an OCI image of what docker save wrote before it wrote layouts. The
// layers stay as they are, so the image's digest depends on nothing but the tarball.
func fromSaved(root *os.Root, dir string) (v1.Image, error) {
	data, err := root.ReadFile("manifest.json")
	if err != nil {
		return nil, errors.New("it has neither oci-layout nor manifest.json: neither an OCI image layout nor what docker save writes")
	}
	var list []savedImage
	if err := json.Unmarshal(data, &list); err != nil || len(list) != 1 {
		return nil, fmt.Errorf("manifest.json names %d images, want one", len(list))
	}
	config, err := root.ReadFile(list[0].Config)
	if err != nil {
		return nil, err
	}
	if len(config) > maxConfig || len(list[0].Layers) > maxLayers {
		return nil, errors.New("its configuration is too large, or it has too many layers")
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: describe(types.OCIConfigJSON, config)}
	paths := map[string]string{m.Config.Digest.Hex: list[0].Config}
	for _, name := range list[0].Layers {
		d, err := describeLayer(root, name)
		if err != nil {
			return nil, err
		}
		paths[d.Digest.Hex] = name
		m.Layers = append(m.Layers, d)
	}
	return asLayout(root, dir, m, paths)
}

// asLayout gives files the names of an OCI image layout, where they can be read from.
func asLayout(root *os.Root, dir string, m v1.Manifest, paths map[string]string) (v1.Image, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	manifest := describe(types.OCIManifestSchema1, raw)
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{manifest}})
	if err != nil {
		return nil, err
	}
	const blobs = ".layout/blobs/sha256/"
	if err := root.MkdirAll(blobs, 0o755); err != nil {
		return nil, err
	}
	for digest, name := range paths {
		real, err := follow(root, name)
		if err != nil {
			return nil, err
		}
		if err := root.Link(real, blobs+digest); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	for name, content := range map[string][]byte{
		blobs + manifest.Digest.Hex: raw, ".layout/index.json": index, ".layout/oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
	} {
		if err := root.WriteFile(name, content, 0o644); err != nil {
			return nil, err
		}
	}
	at, err := layout.ImageIndexFromPath(dir + "/.layout")
	if err != nil {
		return nil, err
	}
	return pick(at, 0)
}

// follow resolves the links at the end of a name, within the root.
func follow(root *os.Root, name string) (string, error) {
	for range 10 {
		info, err := root.Lstat(name)
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			return name, nil
		}
		target, err := root.Readlink(name)
		if err != nil {
			return "", err
		}
		if name = path.Join(path.Dir(name), target); !fs.ValidPath(name) {
			break
		}
	}
	return "", fmt.Errorf("%s is a link that leads nowhere", name)
}

func describe(kind types.MediaType, content []byte) v1.Descriptor {
	sum := sha256.Sum256(content)
	return v1.Descriptor{MediaType: kind, Size: int64(len(content)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
}

func describeLayer(root *os.Root, name string) (v1.Descriptor, error) {
	f, err := root.Open(name)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	d := v1.Descriptor{MediaType: types.OCIUncompressedLayer}
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		d.MediaType = types.OCILayer
	}
	h := sha256.New()
	if d.Size, err = io.Copy(h, in); err != nil {
		return d, err
	}
	d.Digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
	return d, nil
}
