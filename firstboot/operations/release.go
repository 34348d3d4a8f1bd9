package operations

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/inspect"
	"github.com/slipwayhq/slipway/firstboot/versions"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Release is an image file as an upgrade sees it: a version of a role, in parts that are
// known by their content.
type Release struct {
	versions.Image
	Path       string
	PostgreSQL string // major version; "" if none

	file *inspect.Image
	at   map[string]string // file on the boot partition, by SHA-256
}

// Manifest is the hash of its manifest, which stands for all of it.
func (r *Release) Manifest() string { return r.Files["manifest.json"].SHA256 }

// OpenReleases opens an image file of any format, or all images of a directory, one for each role.
// Every layer is read and compared with its hash.
func OpenReleases(ctx context.Context, name string) (all []*Release, err error) {
	defer func() {
		if err != nil {
			CloseReleases(all)
			all = nil
		}
	}()
	info, err := os.Stat(name)
	if err != nil {
		return nil, fault.New(fault.Usage, "%w", err).WithMend("name an image, or a directory with one for each role")
	}
	files := []string{name}
	if info.IsDir() {
		if files, err = imagesIn(name); err != nil {
			return nil, err
		}
	}
	for _, file := range files {
		r, err := openRelease(ctx, file)
		if err != nil {
			return all, err
		}
		i := slices.IndexFunc(all, func(o *Release) bool { return o.Role == r.Role })
		switch {
		case i < 0:
			all = append(all, r)
		case all[i].Manifest() != r.Manifest():
			r.file.Close()
			return all, fault.New(fault.Usage, "%s and %s are different versions of the role %s", all[i].Path, r.Path, r.Role).WithMend("leave one of them in %s", name)
		default:
			r.file.Close() // the same in another format
		}
	}
	return all, nil
}

func imagesIn(dir string) (files []string, err error) {
	for _, kind := range []string{"raw", "qcow2", "vmdk", "ova"} {
		found, err := filepath.Glob(filepath.Join(dir, "*."+kind))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		return nil, fault.New(fault.Usage, "%s holds no image", dir).WithMend("build some: slipway build --all")
	}
	return files, nil
}

// CloseReleases closes the files.
func CloseReleases(all []*Release) {
	for _, r := range all {
		r.file.Close()
	}
}

func openRelease(ctx context.Context, name string) (*Release, error) {
	im, err := inspect.Open(name)
	if err != nil {
		return nil, err
	}
	r, err := releaseOf(ctx, im)
	if err != nil {
		im.Close()
		return nil, err
	}
	return r, nil
}

func releaseOf(ctx context.Context, im *inspect.Image) (*Release, error) {
	v := im.Current()
	r := &Release{Path: im.Path, file: im, at: map[string]string{}, PostgreSQL: versions.PostgreSQL(&v.Manifest)}
	r.Role, r.Version, r.Files = v.Role.Name, v.Version, map[string]versions.Blob{}
	if err := im.Verify(ctx); err != nil {
		return nil, err
	}
	for _, l := range v.Layers {
		r.Layers = append(r.Layers, versions.Blob{SHA256: l.Digest, Size: l.Size})
		r.at[l.Digest] = l.File()
	}
	for _, part := range versions.Parts {
		name := path.Join("images", v.Version, part)
		content, err := im.Content(name)
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		if _, err := io.Copy(h, content); err != nil {
			return nil, fault.New(fault.Integrity, "%s: %s: %w", im.Path, name, err)
		}
		b := versions.Blob{SHA256: hex.EncodeToString(h.Sum(nil)), Size: content.Size()}
		r.Files[part], r.at[b.SHA256] = b, name
	}
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("%s: %w", im.Path, err)
	}
	return r, nil
}

// blob reads a part.
func (r *Release) blob(sha256 string) (*io.SectionReader, error) {
	name, ok := r.at[sha256]
	if !ok {
		return nil, fault.New(fault.Internal, "%s has no blob %.8s", r.Path, sha256)
	}
	return r.file.Content(name)
}

// what a blob is, for people.
func (r *Release) what(sha256 string) string {
	return strings.TrimPrefix(r.at[sha256], path.Join("images", r.Version)+"/")
}
