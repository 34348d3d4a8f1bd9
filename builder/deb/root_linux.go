package deb

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/slipwayhq/slipway/builder/ownership"
	"github.com/slipwayhq/slipway/internal/fault"
	"golang.org/x/sys/unix"
)

// Root is a directory that packages are unpacked into. Paths are resolved by
// the kernel as a process would whose root it is, so a symbolic link such as
// /bin → usr/bin is followed and none leads out. It is safe for use by several
// goroutines.
type Root struct {
	fd   int
	name string

	mu      sync.Mutex
	canon   map[string]string // directory as spelled → without symbolic links
	created map[string]bool   // directories made through this Root, by canonical path
}

// how makes the kernel keep a path inside the root (openat2(2)).
const how = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// OpenRoot opens dir, which must exist.
func OpenRoot(dir string) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	probe, err := unix.Openat2(fd, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: how})
	if err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.ENOSYS) {
			return nil, fault.New(fault.Missing, "the kernel lacks openat2(2)").
				WithMend("build on Linux 5.11 or later")
		}
		return nil, &os.PathError{Op: "openat2", Path: dir, Err: err}
	}
	unix.Close(probe)
	return &Root{fd: fd, name: dir, canon: map[string]string{"": ""}, created: map[string]bool{}}, nil
}

// Close releases the directory.
func (r *Root) Close() error { return unix.Close(r.fd) }

// fail says which path of the root an operation failed on, and whose turn it is.
func (r *Root) fail(op, name string, err error) error {
	wrapped := &os.PathError{Op: op, Path: path.Join(r.name, name), Err: err}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.New(fault.Space, "no space left: %w", wrapped).WithMend("free some space, or move the cache with --cache")
	}
	return wrapped
}

// open opens name with the given flags, following symbolic links inside the root.
func (r *Root) open(name string, flags uint64, mode uint64) (int, error) {
	if name == "" {
		name = "."
	}
	for {
		fd, err := unix.Openat2(r.fd, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Mode: mode, Resolve: how})
		// EAGAIN: a rename elsewhere in the system raced with "..", try again.
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
}

// Open opens a file for reading.
func (r *Root) Open(name string) (*os.File, error) {
	fd, err := r.open(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, r.fail("open", name, err)
	}
	return os.NewFile(uintptr(fd), path.Join(r.name, name)), nil
}

// ReadFile returns a file's content.
func (r *Root) ReadFile(name string) ([]byte, error) {
	fd, err := r.open(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, r.fail("open", name, err)
	}
	return readAll(fd)
}

// WriteFile replaces a file with content. Its directory is made if need be.
func (r *Root) WriteFile(name string, perm uint32, content []byte) error {
	dir, err := r.dir(path.Dir("/" + name)[1:])
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	base := path.Base(name)
	fd, err := createAt(dir, base)
	if err != nil {
		return r.fail("create", name, err)
	}
	defer unix.Close(fd)
	if err := writeAll(fd, content); err != nil {
		return r.fail("write", name, err)
	}
	if err := unix.Fchmod(fd, perm); err != nil {
		return r.fail("chmod", name, err)
	}
	return nil
}

// Symlink makes name a symbolic link, unless something stands there.
func (r *Root) Symlink(target, name string) error {
	dir, err := r.dir(path.Dir("/" + name)[1:])
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := unix.Symlinkat(target, dir, path.Base(name)); err != nil && err != unix.EEXIST {
		return r.fail("symlink", name, err)
	}
	return nil
}

// MkdirAll makes a directory and those above it; one that exists stays as it is.
func (r *Root) MkdirAll(name string) error {
	fd, err := r.dir(name)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// Remove deletes a file or an empty directory; that it is not there is no error.
func (r *Root) Remove(name string) error {
	dir, err := r.open(path.Dir("/" + name)[1:], unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return r.fail("open", name, err)
	}
	defer unix.Close(dir)
	err = unix.Unlinkat(dir, path.Base(name), 0)
	if err == unix.EISDIR {
		err = unix.Unlinkat(dir, path.Base(name), unix.AT_REMOVEDIR)
	}
	if err != nil && err != unix.ENOENT {
		return r.fail("remove", name, err)
	}
	return nil
}

// Exists tells whether something stands at name (a symbolic link is followed).
func (r *Root) Exists(name string) bool {
	fd, err := r.open(name, unix.O_PATH, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// dir opens the directory called name, and makes it and those above it if they
// do not exist.
func (r *Root) dir(name string) (int, error) {
	canon, err := r.resolve(name, 0)
	if err != nil {
		return -1, err
	}
	fd, err := r.open(canon, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		return fd, nil
	}
	if err != unix.ENOENT || canon == "" {
		return -1, r.fail("open", name, err)
	}
	parent, err := r.dir(path.Dir("/" + canon)[1:])
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := r.mkdir(parent, canon); err != nil {
		return -1, err
	}
	fd, err = r.open(canon, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, r.fail("open", name, err)
	}
	return fd, nil
}

// mkdir makes the directory canon in its parent and remembers that it is new.
func (r *Root) mkdir(parent int, canon string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch err := unix.Mkdirat(parent, path.Base(canon), 0o755); err {
	case nil:
		r.created[canon] = true
		// The umask of whoever runs the build must not show.
		if err := unix.Fchmodat(parent, path.Base(canon), 0o755, 0); err != nil {
			return r.fail("chmod", canon, err)
		}
		return nil
	case unix.EEXIST:
		return nil
	default:
		return r.fail("mkdir", canon, err)
	}
}

// resolve rewrites a directory's path without symbolic links. Packages spell
// one directory in several ways (/lib and /usr/lib); that two of them ship the
// same file shows only then.
func (r *Root) resolve(name string, depth int) (string, error) {
	r.mu.Lock()
	known, ok := r.canon[name]
	r.mu.Unlock()
	if ok {
		return known, nil
	}
	if depth > 40 {
		return "", r.fail("resolve", name, unix.ELOOP)
	}
	parent, err := r.resolve(path.Dir("/" + name)[1:], depth+1)
	if err != nil {
		return "", err
	}
	canon := path.Join(parent, path.Base(name))
	buffer := make([]byte, 4096)
	switch n, err := unix.Readlinkat(r.fd, canon, buffer); err {
	case nil:
		target := string(buffer[:n])
		if !strings.HasPrefix(target, "/") {
			target = "/" + parent + "/" + target
		}
		if canon, err = r.resolve(path.Clean(target)[1:], depth+1); err != nil {
			return "", err
		}
	case unix.EINVAL: // it exists and is no symbolic link
	case unix.ENOENT:
		return canon, nil // it may become anything yet
	default:
		return "", r.fail("readlink", canon, err)
	}
	r.mu.Lock()
	r.canon[name] = canon
	r.mu.Unlock()
	return canon, nil
}

// SetDirs gives the directories that were made through this Root the mode and
// owner that packages ask for; of several packages the first in order decides.
// Directories that stood before are left alone, as dpkg does.
func (r *Root) SetDirs(packages []*Contents) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range packages {
		for _, d := range c.Dirs {
			if !r.created[d.Path] {
				continue
			}
			delete(r.created, d.Path)
			if err := r.setDir(d); err != nil {
				return r.fail("set mode and owner", d.Path, err)
			}
		}
	}
	return nil
}

func (r *Root) setDir(d Dir) error {
	fd, err := r.open(d.Path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	disk := ownership.Readable(d.Perm, true)
	if err := record(fd, d.UID, d.GID, d.Perm, disk); err != nil {
		return err
	}
	return unix.Fchmod(fd, disk)
}

// record keeps what the file system cannot hold for an ordinary user.
func record(fd int, uid, gid, perm, disk uint32) error {
	if uid != 0 || gid != 0 {
		if err := unix.Fsetxattr(fd, ownership.Owner, ownership.FormatOwner(uid, gid), 0); err != nil {
			return xattrError(err)
		}
	}
	if perm != disk {
		if err := unix.Fsetxattr(fd, ownership.Mode, ownership.FormatMode(perm), 0); err != nil {
			return xattrError(err)
		}
	}
	return nil
}

func xattrError(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fault.New(fault.Missing, "the cache's file system keeps no user extended attributes: %w", err).
			WithMend("move the cache to ext4, xfs or btrfs (or tmpfs of Linux 6.6 or later) with --cache")
	}
	return err
}

// createAt makes a new empty file in a directory, in place of whatever else
// but a directory has its name.
func createAt(dir int, base string) (int, error) {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, base, flags, 0o600)
	if err != unix.EEXIST {
		return fd, err
	}
	if err := unix.Unlinkat(dir, base, 0); err != nil && err != unix.ENOENT {
		return -1, err
	}
	return unix.Openat(dir, base, flags, 0o600)
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func readAll(fd int) ([]byte, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file: %w", fs.ErrInvalid)
	}
	out := make([]byte, 0, info.Size()+1)
	for {
		n, err := f.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		if n == 0 || err != nil {
			return out, nil
		}
		if len(out) == cap(out) {
			out = append(out, 0)[:len(out)]
		}
	}
}

// SetOwner records a file's owner.
func (r *Root) SetOwner(name string, uid, gid uint32) error {
	fd, err := r.open(name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return r.fail("open", name, err)
	}
	defer unix.Close(fd)
	if err := record(fd, uid, gid, 0, 0); err != nil {
		return r.fail("record the owner", name, err)
	}
	return nil
}

// RemoveMatching deletes what in dir matches a pattern (path.Match), with all
// below it. That dir does not exist is no error.
func (r *Root) RemoveMatching(dir, pattern string) error {
	fd, err := r.open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return r.fail("open", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		return r.fail("list", dir, err)
	}
	for _, name := range names {
		if ok, err := path.Match(pattern, name); err != nil {
			return err
		} else if !ok {
			continue
		}
		full := path.Join(dir, name)
		err := r.Remove(full)
		if errors.Is(err, unix.ENOTEMPTY) {
			if err = r.RemoveMatching(full, "*"); err == nil {
				err = r.Remove(full)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
