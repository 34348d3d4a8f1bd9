package cache

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// treeMark is what marks/ says of a tree.
type treeMark struct {
	Boot string    `json:"boot"` // the kernel's boot id when the tree was made
	Made time.Time `json:"made"`
}

func (c *Cache) treePath(key string) string { return filepath.Join(c.dir, "trees", key) }
func (c *Cache) markPath(key string) string { return filepath.Join(c.dir, "marks", key) }

// Tree returns the directory with the unpacked tree of this key. Its content
// must not be changed. A tree that was made before the machine last started is
// not returned: nothing says that all of its files had reached the disk.
func (c *Cache) Tree(key string) (dir string, ok bool) {
	if checkKey(key) != nil {
		return "", false
	}
	b, err := os.ReadFile(c.markPath(key))
	if err != nil {
		return "", false
	}
	var mark treeMark
	if json.Unmarshal(b, &mark) != nil || mark.Boot != c.bootID {
		return "", false
	}
	if st, err := os.Stat(c.treePath(key)); err != nil || !st.IsDir() {
		return "", false
	}
	touch(c.markPath(key))
	return c.treePath(key), true
}

// TreeWriter is a tree in the making. Exactly one of Commit and Abort ends it;
// an Abort after Commit does nothing, so it can be deferred.
type TreeWriter struct {
	c    *Cache
	key  string
	home string // session directory of this tree, with the tree in "tree"
}

// NewTree starts a tree. Builders of one key take turns with Lock; if they do
// not, the first to commit wins.
func (c *Cache) NewTree(key string) (*TreeWriter, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	home, err := os.MkdirTemp(c.session, "tree-")
	if err != nil {
		return nil, Classify(err)
	}
	w := &TreeWriter{c: c, key: key, home: home}
	if err := os.Mkdir(w.Dir(), 0o755); err != nil {
		return nil, Classify(err)
	}
	return w, nil
}

// Dir is the directory to fill. It is on the same file system as the finished tree.
func (w *TreeWriter) Dir() string { return filepath.Join(w.home, "tree") }

// Scratch is a directory beside the tree, on the same file system, that goes
// away with Commit or Abort: an overlay's work directory, for instance.
func (w *TreeWriter) Scratch(name string) (string, error) {
	dir := filepath.Join(w.home, "scratch-"+name)
	return dir, Classify(os.MkdirAll(dir, 0o755))
}

// Commit puts the tree into the cache and returns where it stands.
func (w *TreeWriter) Commit() (dir string, err error) {
	defer w.Abort()
	final := w.c.treePath(w.key)
	mark, err := json.Marshal(treeMark{Boot: w.c.bootID, Made: time.Now().UTC()})
	if err != nil {
		return "", err
	}
	if dir, ok := w.c.Tree(w.key); ok {
		return dir, nil
	}
	// Without its mark a tree counts for nothing, so the mark goes first when an
	// outdated tree is moved out of the way, and comes last.
	os.Remove(w.c.markPath(w.key))
	if err := os.Rename(final, filepath.Join(w.home, "outdated")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.Rename(w.Dir(), final); err != nil {
		return "", Classify(err)
	}
	if err := w.c.replaceFile(w.c.markPath(w.key), mark); err != nil {
		return "", err
	}
	return final, nil
}

// Abort removes the tree in the making.
func (w *TreeWriter) Abort() {
	if w.home != "" {
		removeAll(w.home)
		w.home = ""
	}
}

// DropTree removes a finished tree.
func (c *Cache) DropTree(key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	os.Remove(c.markPath(key))
	return removeAll(c.treePath(key))
}

// Record returns the fact of this kind and key.
func (c *Cache) Record(kind, key string) ([]byte, bool) {
	if checkKey(kind) != nil || checkKey(key) != nil {
		return nil, false
	}
	path := filepath.Join(c.dir, "records", kind, key)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, false
	}
	touch(path)
	return b, true
}

// PutRecord stores a fact, replacing one of the same kind and key.
func (c *Cache) PutRecord(kind, key string, data []byte) error {
	if err := errors.Join(checkKey(kind), checkKey(key)); err != nil {
		return err
	}
	dir := filepath.Join(c.dir, "records", kind)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Classify(err)
	}
	return c.replaceFile(filepath.Join(dir, key), data)
}

// replaceFile gives path new content in one step.
func (c *Cache) replaceFile(path string, data []byte) error {
	tmp, err := os.CreateTemp(c.session, "file-")
	if err != nil {
		return Classify(err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return Classify(err)
	}
	return Classify(os.Rename(tmp.Name(), path))
}

// removeAll is os.RemoveAll that also removes directories whose modes forbid
// it, such as overlayfs leaves in its work directory (mode 0000).
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	openUp(path)
	return os.RemoveAll(path)
}

// openUp lets the owner into every directory below and including path.
func openUp(path string) {
	st, err := os.Lstat(path)
	if err != nil || !st.IsDir() {
		return
	}
	os.Chmod(path, 0o700)
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		if e.IsDir() {
			openUp(filepath.Join(path, e.Name()))
		}
	}
}
