package mirror

import (
	"archive/tar"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/internal/fault"
)

// projectName is the project's archive, below SlipwayPath.
const projectName = "project.tar"

// Project is what a build reads, to be carried beside the program.
type Project struct {
	Dir   string
	Files []string // below Dir, with slashes, sorted; directories before what is in them
}

// beside puts the rest into the tree: keys, the lock, the project, programs.
func (g *gatherer) beside() error {
	err := errors.Join(
		g.plan.generate(KeysPath, sign.Public(g.Keys)),
		g.plan.generate(SlipwayPath+"/images.lock", g.LockData),
	)
	if g.Project.Dir != "" {
		err = errors.Join(err, g.write(SlipwayPath+"/"+projectName, func(w io.Writer) error {
			if err := g.Project.write(w, g.LockData, g.Lock.Date()); err != nil {
				return fault.New(fault.Of(err), "packing the project: %w", err)
			}
			return nil
		}))
	}
	for _, name := range slices.Sorted(maps.Keys(g.Programs)) {
		err = errors.Join(err, g.write(SlipwayPath+"/"+name, func(w io.Writer) error { return copyFile(w, g.Programs[name]) }))
	}
	return err
}

// write puts a file into the tree, and what content writes into the cache.
func (g *gatherer) write(to string, content func(io.Writer) error) error {
	w, err := g.Cache.NewBlob()
	if err != nil {
		return err
	}
	defer w.Abort()
	if err := content(w); err != nil {
		return err
	}
	sum, size, err := w.Commit()
	if err != nil {
		return err
	}
	return g.plan.add(to, sum, size)
}

// write writes the archive. Equal files give equal bytes: of a file's mode, the owner's execute bit alone counts, as in git.
func (p Project) write(to io.Writer, lock []byte, date time.Time) error {
	w := tar.NewWriter(to)
	entry := func(h tar.Header) error {
		h.ModTime = date
		return w.WriteHeader(&h)
	}
	if err := entry(tar.Header{Typeflag: tar.TypeReg, Name: "images.lock", Mode: 0o644, Size: int64(len(lock))}); err != nil {
		return err
	}
	if _, err := w.Write(lock); err != nil {
		return err
	}
	for _, name := range p.Files {
		path := filepath.Join(p.Dir, filepath.FromSlash(name))
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		switch {
		case st.IsDir():
			err = entry(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
		case st.Mode().Type() == os.ModeSymlink:
			var target string
			if target, err = os.Readlink(path); err == nil {
				err = entry(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: filepath.ToSlash(target), Mode: 0o777})
			}
		default:
			mode := int64(0o644)
			if st.Mode()&0o100 != 0 {
				mode = 0o755
			}
			if err = entry(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: st.Size()}); err == nil {
				err = copyFile(w, path)
			}
		}
		if err != nil {
			return err
		}
	}
	return w.Close()
}

func copyFile(to io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(to, f)
	return err
}
