// Package cache is slipway's content-addressed store in a directory: downloaded
// packages and finished layers by the SHA-256 of their bytes (blobs), unpacked
// file trees by the hash of what went into them (trees), and small facts such
// as "this layer key gave that layer digest" (records).
//
// Several processes may use one cache. Whatever appears under its final name is
// whole: blobs and trees are made in a session directory and renamed. Each
// open Cache holds a lock on its session directory; the next Open removes the
// sessions that nobody holds any more, so a killed build leaves nothing behind.
//
//	cache/
//	  blobs/ab/abcdef…       content, read-only
//	  stamps/abcdef…         when a blob was last verified (content) and used (mtime)
//	  trees/KEY/             unpacked trees
//	  marks/KEY              when and in which boot a tree was made
//	  records/KIND/KEY       small facts
//	  partial/abcdef…        downloads that will be resumed
//	  sessions/ID/           work under way, with its lock file
//	  locks/NAME             locks between processes
//
// Nothing here is flushed to disk on purpose: a cache may be lost at any time.
// After a power cut a blob is caught by its stamp (size, times and inode) and
// hashed again, and trees made in an earlier boot are made anew.
package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Cache is an open store. Its methods may be called from several goroutines.
type Cache struct {
	dir     string
	session string   // this Cache's directory under sessions/
	hold    *os.File // holds the lock on the session directory
	inUse   *os.File // shared lock that keeps GC of other processes away
	bootID  string
}

// DefaultDir is where the cache stands unless the user says otherwise:
// $SLIPWAY_CACHE, else "slipway" in the user's cache directory.
func DefaultDir() (string, error) {
	if dir := os.Getenv("SLIPWAY_CACHE"); dir != "" {
		return dir, nil
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fault.New(fault.Missing, "no place for the cache: %w", err).
			WithMend("set SLIPWAY_CACHE to a directory with some gigabytes of room")
	}
	return filepath.Join(base, "slipway"), nil
}

// Open opens the cache in dir, or in DefaultDir if dir is empty, creating it if
// need be, and removes what killed processes left behind.
func Open(dir string) (_ *Cache, err error) {
	if dir == "" {
		if dir, err = DefaultDir(); err != nil {
			return nil, err
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	for _, sub := range []string{"blobs", "stamps", "trees", "marks", "records", "partial", "sessions", "locks"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fault.New(fault.Input, "opening the cache: %w", Classify(err)).
				WithMend("make %s writable, or set SLIPWAY_CACHE to another directory", dir)
		}
	}
	c := &Cache{dir: dir}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		c.bootID = strings.TrimSpace(string(b))
	}
	if c.inUse, err = openLocked(context.Background(), filepath.Join(dir, "in-use"), unix.LOCK_SH); err != nil {
		return nil, err
	}
	if err := c.startSession(); err != nil {
		return nil, fmt.Errorf("opening the cache in %s: %w", dir, Classify(err))
	}
	return c, nil
}

// startSession sweeps dead sessions and makes this Cache's own. The lock on
// sessions/ keeps a new session from being swept before it holds its lock.
func (c *Cache) startSession() error {
	sessions := filepath.Join(c.dir, "sessions")
	gate, err := openLocked(context.Background(), filepath.Join(c.dir, "sessions.lock"), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer gate.Close()

	entries, err := os.ReadDir(sessions)
	if err != nil {
		return err
	}
	for _, e := range entries {
		old := filepath.Join(sessions, e.Name())
		f, err := os.OpenFile(filepath.Join(old, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			continue // another user's session in a shared cache
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			removeAll(old)
		}
		f.Close()
	}
	if c.session, err = os.MkdirTemp(sessions, ""); err != nil {
		return err
	}
	c.hold, err = openLocked(context.Background(), filepath.Join(c.session, "lock"), unix.LOCK_EX)
	return err
}

// Dir is the cache's directory.
func (c *Cache) Dir() string { return c.dir }

// Scratch makes an empty directory that is removed by Close, or by the next
// Open if this process is killed.
func (c *Cache) Scratch() (string, error) {
	dir, err := os.MkdirTemp(c.session, "scratch-")
	return dir, Classify(err)
}

// Close removes what this Cache has under way and lets go of its locks.
func (c *Cache) Close() error {
	var err error
	if c.session != "" {
		err = removeAll(c.session)
	}
	for _, f := range []*os.File{c.hold, c.inUse} {
		if f != nil {
			f.Close()
		}
	}
	return err
}

// Lock waits for the named lock, which one process at a time can hold, and
// returns the function that lets it go. Names are free words such as a layer
// key. It gives up when ctx ends.
func (c *Cache) Lock(ctx context.Context, name string) (unlock func(), err error) {
	if err := checkKey(name); err != nil {
		return nil, err
	}
	f, err := openLocked(ctx, filepath.Join(c.dir, "locks", name), unix.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("waiting for the lock %q in the cache: %w", name, err)
	}
	return func() { f.Close() }, nil
}

// openLocked opens the file at path, creating it, and locks it. If the file was
// unlinked while waiting, it starts over, so that two holders never hold two
// different files of one name.
func openLocked(ctx context.Context, path string, how int) (*os.File, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, Classify(err)
		}
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil && sameFile(f, path) {
			return f, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// Classify gives an error that means "no room" the class fault.Space and leaves
// every other error as it is. It is for those who write to files of the cache
// on their own.
func Classify(err error) error {
	if err == nil || fault.Of(err) == fault.Space {
		return err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.New(fault.Space, "%w", err).
			WithMend("free some room, run `slipway cache gc`, or set SLIPWAY_CACHE to a directory on a larger disk")
	}
	return err
}

var (
	keyPattern    = regexp.MustCompile(`^[A-Za-z0-9_+~=@:-][A-Za-z0-9._+~=@:-]{0,199}$`)
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// checkKey refuses names that could leave their directory.
func checkKey(key string) error {
	if !keyPattern.MatchString(key) {
		return fmt.Errorf("cache key %q: want 1 to 200 letters, digits or ._+~=@:-, no dot first", key)
	}
	return nil
}

func checkDigest(digest string) error {
	if !digestPattern.MatchString(digest) {
		return fmt.Errorf("digest %q: want 64 lower-case hexadecimal digits (SHA-256)", digest)
	}
	return nil
}
