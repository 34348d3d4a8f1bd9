package builder

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// ProjectDebs reads the packages in the directories of the project that profiles
// name under debs, as an archive's index would list them. Packages for another
// architecture are left out, as an index's are.
func ProjectDebs(project, arch string, set *profile.Set) ([]*apt.Package, error) {
	var dirs []string
	for _, p := range append([]*profile.Profile{set.Base, set.Tools}, set.Roles...) {
		dirs = append(dirs, p.Debs...)
	}
	slices.Sort(dirs)
	var out []*apt.Package
	for _, dir := range slices.Compact(dirs) {
		entries, err := os.ReadDir(filepath.Join(project, filepath.FromSlash(dir)))
		if err != nil {
			return nil, fault.New(fault.Input, "debs: %w", err).WithMend("make the directory, or take it out of the profile; paths start at the project's directory")
		}
		for _, e := range entries {
			if e.IsDir() || path.Ext(e.Name()) != ".deb" {
				continue
			}
			packages, err := projectDeb(project, path.Join(dir, e.Name()), arch)
			if err != nil {
				return nil, err
			}
			out = append(out, packages...)
		}
	}
	return out, nil
}

// projectDeb is what an index would say of one file.
func projectDeb(project, name, arch string) ([]*apt.Package, error) {
	file := filepath.Join(project, filepath.FromSlash(name))
	d, err := deb.Open(file)
	if err != nil {
		return nil, fault.New(fault.Input, "%s: %w", name, err).WithMend("replace it by a whole package, or remove it")
	}
	defer d.Close()
	f, err := d.Raw()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return nil, err
	}
	stanza := fmt.Sprintf("%sFilename: %s\nSize: %d\nSHA256: %s\n", d.Fields, name, size, hex.EncodeToString(h.Sum(nil)))
	packages, err := apt.ReadPackages(strings.NewReader(stanza), apt.ProjectAlias, "", arch)
	if err != nil {
		return nil, fault.New(fault.Input, "%s: %w", name, err)
	}
	return packages, nil
}

// takeDeb brings a package of the project into the cache; it must be the one that
// was locked.
func takeDeb(c *cache.Cache, project string, p lock.Package) error {
	if _, ok := c.CheckedBlob(p.SHA256, p.Size); ok {
		return nil
	}
	f, err := os.Open(filepath.Join(project, filepath.FromSlash(p.Path)))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Missing, "%s, which images.lock has at line %d, is not in the project", p.Path, p.Line).
			WithMend("bring the file back, or run slipway lock to lock what is there")
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := c.PutBlob(p.SHA256, p.Size, f); err != nil {
		return fault.New(fault.Integrity, "%s is not the package that images.lock has at line %d: %w", p.Path, p.Line, err).
			WithMend("if it was replaced on purpose, run slipway lock and commit the lock; else bring the former file back")
	}
	return nil
}
