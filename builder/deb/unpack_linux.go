package deb

import (
	"archive/tar"
	"bufio"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/slipwayhq/slipway/builder/ownership"
	"golang.org/x/sys/unix"
)

// Unpack lays a data archive down in the root. Files keep the archive's times;
// directories get none, since what is made in them next would change them.
func (r *Root) Unpack(stream io.Reader, o Options) (*Contents, error) {
	u := unpacker{root: r, options: o, dirs: map[string]int{}, buffer: make([]byte, 128<<10),
		out: &Contents{Sums: map[string]string{}, Renamed: map[string]string{}}}
	defer u.closeDirs(0)
	stream = bufio.NewReaderSize(stream, 256<<10) // tar reads its headers one by one
	if err := Walk(stream, u.entry); err != nil {
		return nil, err
	}
	// What follows the archive's end is padding; reading it lets the program
	// that writes the stream end in peace.
	_, err := io.Copy(io.Discard, io.LimitReader(stream, maxFile))
	return u.out, err
}

// unpacker is one archive on its way to disk.
type unpacker struct {
	root    *Root
	options Options
	out     *Contents
	dirs    map[string]int // open directories by canonical path
	buffer  []byte
}

// entry lays down one entry of the archive.
func (u *unpacker) entry(name string, h *tar.Header, content io.Reader) error {
	if name == "" {
		u.out.Paths = append(u.out.Paths, "/.")
		u.out.Dirs = append(u.out.Dirs, Dir{"", perm(h), uint32(h.Uid), uint32(h.Gid)})
		return nil
	}
	if h.Typeflag == tar.TypeDir {
		if !u.options.keep(name) {
			return nil
		}
		u.out.Paths = append(u.out.Paths, "/"+name)
		return u.directory(name, h)
	}
	if !u.options.keep(name) {
		return nil
	}
	final := name
	var convert Convert
	if h.Typeflag == tar.TypeReg {
		if to, c := u.options.transform(name); to != "" {
			final, convert = to, c
			u.out.Renamed["/"+name] = "/" + to
		}
	}
	u.out.Paths = append(u.out.Paths, "/"+final)
	dir, canon, err := u.parent(u.options.target(final))
	if err != nil {
		return err
	}
	base := path.Base(canon)
	write, err := u.options.claim(canon)
	if err != nil || !write {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		err = u.regular(dir, base, "/"+final, h, content, convert)
	case tar.TypeSymlink:
		err = u.symlink(dir, base, h)
	case tar.TypeLink:
		err = u.hardLink(dir, base, h)
	case tar.TypeChar, tar.TypeBlock:
		err = u.device(dir, base, h)
	case tar.TypeFifo:
		err = u.fifo(dir, base, h)
	default:
		err = fmt.Errorf("entry type %q is not one that packages hold", h.Typeflag)
	}
	var number unix.Errno
	if errors.As(err, &number) {
		return u.root.fail("unpack", canon, err)
	}
	return err
}

// perm is the mode of an entry, as in st_mode.
func perm(h *tar.Header) uint32 { return uint32(h.Mode) & 0o7777 }

func (u *unpacker) directory(name string, h *tar.Header) error {
	canon, err := u.root.resolve(name, 0)
	if err != nil {
		return err
	}
	fd, err := u.root.dir(canon)
	if err != nil {
		return err
	}
	u.keepOpen(canon, fd)
	u.out.Dirs = append(u.out.Dirs, Dir{canon, perm(h), uint32(h.Uid), uint32(h.Gid)})
	return nil
}

// parent opens the directory of a path and spells the path without links.
func (u *unpacker) parent(name string) (fd int, canon string, err error) {
	dir, err := u.root.resolve(path.Dir("/" + name)[1:], 0)
	if err != nil {
		return -1, "", err
	}
	canon = path.Join(dir, path.Base(name))
	if fd, ok := u.dirs[dir]; ok {
		return fd, canon, nil
	}
	if fd, err = u.root.dir(dir); err != nil {
		return -1, "", err
	}
	u.keepOpen(dir, fd)
	return fd, canon, nil
}

// keepOpen remembers an open directory: archives name a directory's files in a row.
func (u *unpacker) keepOpen(canon string, fd int) {
	u.closeDirs(32)
	if old, ok := u.dirs[canon]; ok {
		unix.Close(old)
	}
	u.dirs[canon] = fd
}

func (u *unpacker) closeDirs(limit int) {
	if len(u.dirs) < limit {
		return
	}
	for name, fd := range u.dirs {
		unix.Close(fd)
		delete(u.dirs, name)
	}
}

func (u *unpacker) regular(dir int, base, listed string, h *tar.Header, content io.Reader, convert Convert) error {
	sum := md5.New()
	if convert != nil {
		converted, err := convert(content)
		if err != nil {
			return err
		}
		content = io.LimitReader(converted, maxFile)
	}
	if convert != nil || u.options.Sum {
		content = io.TeeReader(content, sum)
	}
	fd, err := createAt(dir, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := copyTo(fd, content, u.buffer)
	if err != nil {
		return err
	}
	u.out.Bytes += n
	if convert != nil || u.options.Sum {
		u.out.Sums[listed] = hex.EncodeToString(sum.Sum(nil))
	}
	if convert == nil && n != h.Size {
		return io.ErrUnexpectedEOF
	}
	return u.finish(fd, dir, base, h)
}

// finish sets a new file's owner, mode and time.
func (u *unpacker) finish(fd, dir int, base string, h *tar.Header) error {
	disk := ownership.Readable(perm(h), false)
	if err := record(fd, uint32(h.Uid), uint32(h.Gid), perm(h), disk); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, disk); err != nil {
		return err
	}
	return setTime(dir, base, h)
}

func (u *unpacker) symlink(dir int, base string, h *tar.Header) error {
	if len(h.Linkname) == 0 || len(h.Linkname) > 4095 {
		return fmt.Errorf("target of a symbolic link is %d bytes: %w", len(h.Linkname), unix.EINVAL)
	}
	err := unix.Symlinkat(h.Linkname, dir, base)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil // dpkg keeps a directory where a package has a link
		}
		// Programs may run in this tree meanwhile, through /lib64 for one, which
		// base-files ships too: the link must not be missing for a moment.
		var target [4096]byte
		if n, linkErr := unix.Readlinkat(dir, base, target[:]); linkErr == nil && string(target[:n]) == h.Linkname {
			return setTime(dir, base, h)
		}
		beside := base + ".slipway-new"
		if err := unix.Symlinkat(h.Linkname, dir, beside); err != nil {
			return err
		}
		err = unix.Renameat(dir, beside, dir, base)
	}
	if err != nil {
		return err
	}
	return setTime(dir, base, h)
}

func (u *unpacker) hardLink(dir int, base string, h *tar.Header) error {
	name, err := entryName(h.Linkname)
	if err != nil {
		return err
	}
	if to, ok := u.out.Renamed["/"+name]; ok {
		name = to[1:]
	}
	from, canon, err := u.parent(u.options.target(name))
	if err != nil {
		return err
	}
	// parent may have closed dir to make room.
	if dir, _, err = u.parent(u.options.target(mustName(h.Name))); err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, base, 0); err != nil && err != unix.ENOENT {
		return err
	}
	return unix.Linkat(from, path.Base(canon), dir, base, 0)
}

// mustName is entryName for a name that Walk has accepted.
func mustName(raw string) string { name, _ := entryName(raw); return name }

// device writes an empty file that says which device it stands for.
func (u *unpacker) device(dir int, base string, h *tar.Header) error {
	fd, err := createAt(dir, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	node := ownership.FormatNode(h.Typeflag == tar.TypeBlock, uint32(h.Devmajor), uint32(h.Devminor))
	if err := unix.Fsetxattr(fd, ownership.Node, node, 0); err != nil {
		return xattrError(err)
	}
	return u.finish(fd, dir, base, h)
}

func (u *unpacker) fifo(dir int, base string, h *tar.Header) error {
	if err := unix.Unlinkat(dir, base, 0); err != nil && err != unix.ENOENT {
		return err
	}
	if err := unix.Mkfifoat(dir, base, 0o600); err != nil {
		return err
	}
	if err := unix.Fchmodat(dir, base, perm(h), 0); err != nil {
		return err
	}
	return setTime(dir, base, h)
}

func setTime(dir int, base string, h *tar.Header) error {
	ts := unix.Timespec{Sec: h.ModTime.Unix()}
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyTo writes all of r to fd.
func copyTo(fd int, r io.Reader, buffer []byte) (int64, error) {
	var total int64
	for {
		n, err := r.Read(buffer)
		if n > 0 {
			if werr := writeAll(fd, buffer[:n]); werr != nil {
				return total, werr
			}
			total += int64(n)
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
