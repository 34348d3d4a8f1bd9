package builder

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/slipwayhq/slipway/builder/agent"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// ProjectFiles lists what a build reads of the project in dir, but for its lock: profiles, overlays, what these name,
// and the source that tells which agent and command belong to it. Paths are below dir, with slashes, sorted;
// directories are among them, since an overlay may lay an empty one. OCI images are not: the lock names them by
// digest, and they are found by it.
func ProjectFiles(dir string) ([]string, error) {
	set, err := profile.Load(filepath.Join(dir, "profiles"))
	if err != nil {
		return nil, err
	}
	all, err := agent.Source(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range append([]string{"profiles", "overlays"}, set.Reads()...) {
		root := filepath.Join(dir, filepath.FromSlash(name))
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if path, err = filepath.Rel(dir, path); err != nil {
				return err
			}
			if !filepath.IsLocal(path) {
				return fault.New(fault.Input, "%s is not in the project", name).WithMend("move it there")
			}
			if kind := d.Type(); kind.IsRegular() || kind.IsDir() || kind == os.ModeSymlink {
				all = append(all, filepath.ToSlash(path))
			}
			return nil
		})
		if name == "overlays" && errors.Is(err, fs.ErrNotExist) {
			continue // a project without any
		}
		if err != nil {
			return nil, fault.New(fault.Input, "reading the project: %w", err)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}
