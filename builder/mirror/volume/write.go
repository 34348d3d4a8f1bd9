package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/mirror/catalog"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Source says where the bytes of a file with this SHA-256 are.
type Source func(sha256 string) (path string, err error)

// temporary begins the names of files that are not whole yet.
const temporary = ".part-"

// Write makes volume number n of a bundle in dir, or goes on where a Write of the same
// bundle was cut off: parts that are there are hashed and kept. The manifest comes last, once all
// else is on the medium. count is told of bytes as they are done.
func Write(ctx context.Context, dir string, c *catalog.Catalog, n int, keys []*sign.Key, source Source, count func(int64)) error {
	data := c.Bytes()
	m := &Manifest{Site: c.Site, Edition: c.Edition, Bundle: catalog.ID(data), Volume: n, Volumes: c.Volumes, Date: c.Date,
		Catalog: Sum{catalog.ID(data), int64(len(data))}}
	parts := map[string]catalog.Part{}
	for _, p := range c.Parts {
		if p.Volume == n {
			parts[p.SHA256] = p
		}
	}
	for _, p := range parts {
		m.Parts = append(m.Parts, Sum{p.SHA256, p.Size})
	}
	signed, err := sign.ClearSign(m.Text(), keys, c.Date) // sorts the parts
	if err != nil {
		return err
	}
	if err := MakeDir(filepath.Join(dir, dataDir)); err != nil {
		return full(err)
	}
	if err := clear(dir, parts); err != nil {
		return err
	}
	for _, s := range m.Parts {
		if err := writePart(ctx, dir, parts[s.SHA256], source); err != nil {
			return err
		}
		count(s.Size)
	}
	if err := atomicfile.SyncFS(dir); err != nil {
		return full(fmt.Errorf("flushing %s: %w", dir, err))
	}
	if err := keep(filepath.Join(dir, CatalogName), data); err != nil {
		return err
	}
	return keep(filepath.Join(dir, ManifestName), signed)
}

// MakeDir makes a directory, and those above it, that everybody may read, whatever the umask: on the other side a user
// without privilege reads the medium.
func MakeDir(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if up := filepath.Dir(dir); up != dir {
		if err := MakeDir(up); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return allowed(os.Chmod(dir, 0o755))
}

// allowed forgives a chmod that the medium's file system does not do: FAT has no modes.
func allowed(err error) error {
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

// keep writes a file unless it is there as it should be.
func keep(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return full(atomicfile.WriteBytes(path, 0o644, data))
}

// clear removes what a cut-off Write left and what does not belong to the volume.
func clear(dir string, parts map[string]catalog.Part) error {
	tops, err := filepath.Glob(filepath.Join(dir, ".tmp-*")) // of atomicfile
	if err != nil {
		return err
	}
	for _, p := range tops {
		if err := os.Remove(p); err != nil {
			return err
		}
	}
	return filepath.WalkDir(filepath.Join(dir, dataDir), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if _, ok := parts[d.Name()]; ok {
			return nil
		}
		if !strings.HasPrefix(d.Name(), temporary) {
			return fault.New(fault.Input, "%s is not of this bundle", p).WithMend("name an empty directory for the volumes")
		}
		return os.Remove(p)
	})
}

// writePart copies a part to its place, unless it is there and right.
func writePart(ctx context.Context, dir string, p catalog.Part, source Source) (err error) {
	dst := filepath.Join(dir, filepath.FromSlash(PartPath(p.SHA256)))
	if st, err := os.Lstat(dst); err == nil && st.Mode().IsRegular() && st.Size() == p.Size {
		if got, err := HashFile(ctx, dst, 0, p.Size); err == nil && got == p.SHA256 {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	path, err := source(p.File)
	if err != nil {
		return err
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := MakeDir(filepath.Dir(dst)); err != nil {
		return full(err)
	}
	out, err := os.CreateTemp(filepath.Dir(dst), temporary)
	if err != nil {
		return full(err)
	}
	defer func() {
		if err != nil {
			out.Close()
			os.Remove(out.Name())
		}
	}()
	h := sha256.New()
	if err := copyContext(ctx, io.MultiWriter(out, h), io.NewSectionReader(in, p.Offset, p.Size)); err != nil {
		return full(err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != p.SHA256 {
		return fault.New(fault.Integrity, "%s changed while it was copied: SHA-256 %s, want %s", path, got, p.SHA256).WithMend("run the command again")
	}
	if err := allowed(out.Chmod(0o644)); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return full(err)
	}
	return os.Rename(out.Name(), dst)
}

// HashFile is the SHA-256 of a section of a file.
func HashFile(ctx context.Context, path string, offset, size int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if err := copyContext(ctx, h, io.NewSectionReader(f, offset, size)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// copyContext is io.Copy that ends with ctx.
func copyContext(ctx context.Context, w io.Writer, r io.Reader) error {
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if _, werr := w.Write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// full gives a full medium its class and advice.
func full(err error) error {
	if fault.Of(cache.Classify(err)) == fault.Space {
		return fault.New(fault.Space, "%w", err).WithMend("free some room or use a larger medium, then run the same command again: it goes on where it stopped")
	}
	return err
}

// Cut makes the parts of a bundle out of where its files were laid. Files that are cut are
// hashed piece by piece.
func Cut(ctx context.Context, volumes [][]catalog.Cut, sizes map[string]int64, source Source, count func(int64)) ([]catalog.Part, error) {
	var parts []catalog.Part
	for i, cuts := range volumes {
		for _, c := range cuts {
			p := catalog.Part{Volume: i + 1, SHA256: c.File, Size: c.Size, File: c.File, Offset: c.Offset}
			if c.Size != sizes[c.File] {
				path, err := source(c.File)
				if err != nil {
					return nil, err
				}
				if p.SHA256, err = HashFile(ctx, path, c.Offset, c.Size); err != nil {
					return nil, err
				}
			}
			count(c.Size)
			parts = append(parts, p)
		}
	}
	return slices.Clip(parts), nil
}
