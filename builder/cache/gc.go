package cache

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Kind says what an Item is.
type Kind string

// The kinds of items.
const (
	BlobItem    Kind = "blob"
	TreeItem    Kind = "tree"
	RecordItem  Kind = "record"
	PartialItem Kind = "partial"
)

// Item is one thing in the cache.
type Item struct {
	Kind Kind      `json:"kind"`
	Key  string    `json:"key"`  // a digest, a tree's key, or KIND/KEY of a record
	Size int64     `json:"size"` // bytes on disk
	Used time.Time `json:"used"` // last use, to ten minutes
}

// List returns everything in the cache, ordered by kind and key.
func (c *Cache) List() ([]Item, error) {
	var items []Item
	add := func(kind Kind, key, path, usedPath string) error {
		size, err := diskUsage(path)
		if err != nil {
			return err
		}
		used := time.Time{}
		if st, err := os.Stat(usedPath); err == nil {
			used = st.ModTime()
		}
		items = append(items, Item{Kind: kind, Key: key, Size: size, Used: used})
		return nil
	}
	in := func(sub string, each func(name, path string, d fs.DirEntry) error) error {
		dir := filepath.Join(c.dir, sub)
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := each(e.Name(), filepath.Join(dir, e.Name()), e); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	}
	err := errors.Join(
		in("blobs", func(prefix, _ string, _ fs.DirEntry) error {
			return in(filepath.Join("blobs", prefix), func(name, path string, _ fs.DirEntry) error {
				return add(BlobItem, name, path, filepath.Join(c.dir, "stamps", name))
			})
		}),
		in("trees", func(name, path string, _ fs.DirEntry) error {
			return add(TreeItem, name, path, c.markPath(name))
		}),
		in("records", func(kind, _ string, _ fs.DirEntry) error {
			return in(filepath.Join("records", kind), func(name, path string, _ fs.DirEntry) error {
				return add(RecordItem, kind+"/"+name, path, path)
			})
		}),
		in("partial", func(name, path string, _ fs.DirEntry) error {
			return add(PartialItem, name, path, path)
		}),
	)
	slices.SortFunc(items, func(a, b Item) int {
		return cmp.Or(strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.Key, b.Key))
	})
	return items, err
}

// diskUsage is what a file or tree takes on disk.
func diskUsage(path string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if lerr := unix.Lstat(p, &st); lerr == nil {
			sum += st.Blocks * 512
		}
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			return nil // a directory without read permission, or gone by now
		}
		return err
	})
	return sum, err
}

// Policy says what GC keeps. The zero Policy keeps nothing.
type Policy struct {
	MaxAge  time.Duration   // items used more recently stay; 0: age keeps nothing
	MaxSize int64           // the most recently used items stay up to this many bytes in all; 0: size keeps nothing
	Keep    func(Item) bool // items for which it is true stay whatever their age; nil: none
}

// GC removes what the policy does not keep and returns what it removed, or
// would remove in a dry run. It refuses to run while another process has the
// cache open, unless dryRun.
func (c *Cache) GC(policy Policy, dryRun bool) ([]Item, error) {
	if !dryRun {
		if err := unix.Flock(int(c.inUse.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, fault.New(fault.Failed, "another slipway is using the cache in %s", c.dir).
				WithMend("let it finish, then run `slipway cache gc` again")
		}
		defer unix.Flock(int(c.inUse.Fd()), unix.LOCK_SH)
	}
	items, err := c.List()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(items, func(a, b Item) int { return b.Used.Compare(a.Used) })
	now := time.Now()
	var kept int64
	var removed []Item
	for _, item := range items {
		young := policy.MaxAge > 0 && now.Sub(item.Used) < policy.MaxAge
		fits := policy.MaxSize > 0 && kept+item.Size <= policy.MaxSize
		var keep bool
		switch {
		case policy.Keep != nil && policy.Keep(item):
			keep = true
		case policy.MaxAge > 0 && policy.MaxSize > 0:
			keep = young && fits
		default:
			keep = young || fits
		}
		if keep {
			kept += item.Size
			continue
		}
		if !dryRun {
			if err := c.remove(item); err != nil {
				return removed, err
			}
		}
		removed = append(removed, item)
	}
	if !dryRun {
		c.pruneEmpty()
	}
	return removed, nil
}

func (c *Cache) remove(item Item) error {
	switch item.Kind {
	case BlobItem:
		c.dropBlob(item.Key)
		return nil
	case TreeItem:
		return c.DropTree(item.Key)
	case RecordItem:
		return os.Remove(filepath.Join(c.dir, "records", filepath.FromSlash(item.Key)))
	default:
		return os.Remove(filepath.Join(c.dir, "partial", item.Key))
	}
}

// pruneEmpty removes lock files, stamps without a blob and empty directories.
// It runs only while nobody else has the cache open.
func (c *Cache) pruneEmpty() {
	for _, name := range names(filepath.Join(c.dir, "locks")) {
		os.Remove(filepath.Join(c.dir, "locks", name))
	}
	for _, name := range names(filepath.Join(c.dir, "stamps")) {
		if checkDigest(name) != nil || !exists(c.blobPath(name)) {
			os.Remove(filepath.Join(c.dir, "stamps", name))
		}
	}
	for _, sub := range []string{"blobs", "records"} {
		for _, name := range names(filepath.Join(c.dir, sub)) {
			os.Remove(filepath.Join(c.dir, sub, name)) // fails, as it should, unless empty
		}
	}
}

func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = e.Name()
	}
	return out
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
