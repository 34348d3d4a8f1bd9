package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/slipwayhq/slipway/builder/cache"
)

// nobody runs programs in images that are made here: a user that owns nothing.
const nobody = "65532:65532"

// Program makes an image of one static executable, which the cache has by its
// digest, and puts it into the cache. pkg is the path of its package, whose last
// part is the program's name; date is in seconds since the Unix epoch. Equal input
// makes equal bytes: the layer is not compressed, so no compressor's version
// matters, and squashfs compresses it with all else.
func Program(c *cache.Cache, pkg, executable string, date int64) (digest string, err error) {
	name := path.Base(pkg)
	layer, err := programLayer(c, name, executable, date)
	if err != nil {
		return "", fmt.Errorf("making an image of %s: %w", pkg, err)
	}
	config, err := json.Marshal(v1.ConfigFile{
		Architecture: platform.Architecture, OS: platform.OS, Created: v1.Time{Time: time.Unix(date, 0).UTC()},
		Config: v1.Config{User: nobody, Entrypoint: []string{"/" + name}, WorkingDir: "/"},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{layer.Digest}},
	})
	if err != nil {
		return "", err
	}
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: describe(types.OCIConfigJSON, config), Layers: []v1.Descriptor{layer},
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	manifest := describe(m.MediaType, raw)
	for _, b := range []struct {
		d       v1.Descriptor
		content []byte
	}{{m.Config, config}, {manifest, raw}} {
		if err := c.PutBlob(b.d.Digest.Hex, b.d.Size, bytes.NewReader(b.content)); err != nil {
			return "", err
		}
	}
	return manifest.Digest.Hex, nil
}

// programLayer is a tar archive with the program alone.
func programLayer(c *cache.Cache, name, executable string, date int64) (d v1.Descriptor, err error) {
	file, ok := c.Blob(executable)
	if !ok {
		return d, os.ErrNotExist
	}
	in, err := os.Open(file)
	if err != nil {
		return d, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return d, err
	}
	w, err := c.NewBlob()
	if err != nil {
		return d, err
	}
	defer w.Abort()
	archive := tar.NewWriter(w)
	err = archive.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: info.Size(), ModTime: time.Unix(date, 0).UTC(), Format: tar.FormatUSTAR,
	})
	if err != nil {
		return d, err
	}
	if _, err := io.Copy(archive, in); err != nil {
		return d, err
	}
	if err := archive.Close(); err != nil {
		return d, err
	}
	d.MediaType = types.OCIUncompressedLayer
	d.Digest.Algorithm = "sha256"
	d.Digest.Hex, d.Size, err = w.Commit()
	return d, err
}
