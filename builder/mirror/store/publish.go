package store

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/mirror/catalog"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// keysPath is where a bundle brings the site's keys.
const keysPath = "keys/site.asc"

// linking begins the names of links that are not in their place yet.
const linking = ".link-"

// rank orders what is published such that no client sees a file which names one that is not there.
func rank(p string) int {
	switch name := path.Base(p); {
	case !strings.Contains(p, "/dists/") && p != "oci/index.json", strings.HasPrefix(p, "upstream/"):
		return 0
	case strings.Contains(p, "/by-hash/"):
		return 1
	case name == "InRelease", p == "oci/index.json":
		return 3
	default:
		return 2
	}
}

// publish makes the tree show a bundle all of whose files are here, and takes over its keys.
func (s *Store) publish(ctx context.Context, c *catalog.Catalog) error {
	keys, ring, err := s.keysOf(c)
	if err != nil {
		return err
	}
	next := s.state
	next.Publishing = catalogName(c)
	if err := write(filepath.Join(s.dir, stateName), &next); err != nil {
		return err
	}
	files := slices.Clone(c.Files)
	slices.SortStableFunc(files, func(a, b catalog.File) int { return rank(a.Path) - rank(b.Path) })
	for i, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if i > 0 && rank(f.Path) != rank(files[i-1].Path) {
			if err := s.sync(); err != nil {
				return err
			}
		}
		if err := s.link(f); err != nil {
			return err
		}
	}
	if err := s.sync(); err != nil {
		return err
	}
	if err := full(atomicfile.WriteBytes(filepath.Join(s.dir, trustName), 0o644, keys)); err != nil {
		return err
	}
	next = state{Format: 1, Site: c.Site, Edition: c.Edition, Bundle: c.ID(), Date: c.Date, Keys: ring.Fingerprints(), Retired: s.state.Retired}
	if c.Edition > s.state.Edition { // going back to an older bundle retires no key
		retired := slices.DeleteFunc(slices.Concat(next.Retired, s.state.Keys), func(f string) bool { return slices.Contains(next.Keys, f) })
		slices.Sort(retired)
		next.Retired = slices.Compact(retired)
	}
	s.ring, s.state = ring.Without(next.Retired), next
	return write(filepath.Join(s.dir, stateName), &s.state)
}

// keysOf reads the keys that a bundle brings. That the bundle was signed by a key which is
// trusted now is what makes them trusted next.
func (s *Store) keysOf(c *catalog.Catalog) ([]byte, sign.Ring, error) {
	f, ok := c.File(keysPath)
	if !ok {
		return nil, nil, fault.New(fault.Integrity, "edition %d brings no %s", c.Edition, keysPath)
	}
	data, err := os.ReadFile(s.blob(f.SHA256))
	if err != nil {
		return nil, nil, err
	}
	if catalog.ID(data) != f.SHA256 { // damaged on this disk since it was taken, and trusted for good if it were taken over
		if err := os.Remove(s.blob(f.SHA256)); err != nil {
			return nil, nil, err
		}
		return nil, nil, fault.New(fault.Integrity, "%s of edition %d was damaged on the mirror's disk; it was removed", keysPath, c.Edition).
			WithMend("import the volumes of edition %d again; if it happens again, check the disk", c.Edition)
	}
	ring, err := sign.ParseRing(data)
	if err != nil {
		return nil, nil, fault.New(fault.Integrity, "%s of edition %d: %w", keysPath, c.Edition, err)
	}
	return data, ring, nil
}

// link has a path of the tree be a file of the store, in one step.
func (s *Store) link(f catalog.File) error {
	to := filepath.Join(s.Public(), filepath.FromSlash(f.Path))
	blob := s.blob(f.SHA256)
	if sameFile(to, blob) {
		return nil
	}
	if err := makeDir(filepath.Dir(to)); err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(to), linking+filepath.Base(to)[:min(len(filepath.Base(to)), 200)])
	if err := os.Remove(tmp); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.Link(blob, tmp); err != nil {
		return fault.New(fault.Of(full(err)), "publishing %s: %w", f.Path, err).WithMend("the store's file system must do hard links, as ext4, xfs and btrfs do")
	}
	if err := os.Rename(tmp, to); err != nil {
		os.Remove(tmp)
		return full(err)
	}
	return nil
}

func sameFile(a, b string) bool {
	x, err := os.Lstat(a)
	if err != nil {
		return false
	}
	y, err := os.Lstat(b)
	return err == nil && os.SameFile(x, y)
}

// Removed is what GC took away.
type Removed struct {
	Files    int   `json:"files"`    // paths of the tree
	Blobs    int   `json:"blobs"`    // contents, and parts of contents
	Size     int64 `json:"size"`     // bytes that are free now
	Catalogs int   `json:"catalogs"` // bundles that can no longer be gone back to
}

// GC removes what neither the published bundle needs nor one of the keep complete bundles before it, and
// what was begun of older ones. Bundles that are newer than the published one, and not complete yet, stay.
func (s *Store) GC(ctx context.Context, keep int, dryRun bool) (r Removed, err error) {
	defer func() { err = full(err) }()
	if s.state.Publishing != "" {
		return r, fault.New(fault.Failed, "a bundle is half published").WithMend("import any volume of it again first")
	}
	if _, err := s.current(); err != nil { // without it all of what is published would seem to be of no use
		return r, err
	}
	all, err := s.catalogs()
	if err != nil {
		return r, err
	}
	paths, blobs := map[string]bool{}, map[string]bool{}
	var drop []*catalog.Catalog
	older := 0
	for _, c := range all {
		if c.Edition < s.state.Edition {
			whole := s.complete(c)
			if whole {
				older++
			}
			if !whole || older > keep {
				drop = append(drop, c)
				continue
			}
		}
		for _, f := range c.Files {
			paths[f.Path] = true
			blobs[f.SHA256] = true
		}
		for _, p := range c.Parts {
			blobs[p.SHA256] = true
		}
	}
	remove := func(p string, size int64) error {
		r.Size += size
		if dryRun {
			return nil
		}
		return os.Remove(p)
	}
	// The tree goes first: nothing may be published that is not here.
	err = walk(ctx, s.Public(), func(p string, d fs.DirEntry) error {
		rel, err := filepath.Rel(s.Public(), p)
		if err != nil || paths[filepath.ToSlash(rel)] {
			return err
		}
		r.Files++
		return remove(p, 0)
	})
	if err != nil {
		return r, err
	}
	for _, sub := range []string{"blobs", "parts"} {
		err := walk(ctx, filepath.Join(s.dir, sub), func(p string, d fs.DirEntry) error {
			if blobs[d.Name()] {
				return nil
			}
			st, err := d.Info()
			if err != nil {
				return err
			}
			r.Blobs++
			return remove(p, st.Size())
		})
		if err != nil {
			return r, err
		}
	}
	for _, c := range drop {
		r.Catalogs++
		if err := remove(filepath.Join(s.dir, "catalogs", catalogName(c)), 0); err != nil {
			return r, err
		}
	}
	if dryRun {
		return r, nil
	}
	return r, s.sweepDirs(s.Public())
}

// complete says whether all files of a bundle are here.
func (s *Store) complete(c *catalog.Catalog) bool {
	for sum, size := range c.Blobs() {
		if !has(s.blob(sum), size) {
			return false
		}
	}
	return true
}

// sweepDirs removes directories that became empty, but not dir itself.
func (s *Store) sweepDirs(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && p != dir {
			dirs = append(dirs, p)
		}
		return err
	})
	slices.Reverse(dirs)
	for _, d := range dirs {
		os.Remove(d) // fails, and should, where something is left
	}
	return err
}

// walk calls each for every file below dir.
func walk(ctx context.Context, dir string, each func(string, fs.DirEntry) error) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("walking %s: %w", dir, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		return each(p, d)
	})
}
