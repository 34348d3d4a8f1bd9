package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// always lists the directories that every role keeps over versions.
var always = [...]string{"/var/lib/slipway", "/var/log", "/home", "/root", "/var/lib/systemd"}

// Dirs joins the role's state directories with those of every role, sorted. A
// directory inside another of them is left out, for it comes along.
func Dirs(role []string) ([]string, error) {
	seen := map[string]bool{}
	var all []string
	for _, d := range append(always[:], role...) {
		c := path.Clean(d)
		if !path.IsAbs(c) || c == "/" {
			return nil, fmt.Errorf("state directory %q in the role marker is not an absolute path below /", d)
		}
		if !seen[c] {
			seen[c] = true
			all = append(all, c)
		}
	}
	sort.Strings(all)
	var out []string
	for _, d := range all {
		inside := false
		for _, o := range out {
			inside = inside || strings.HasPrefix(d, o+"/")
		}
		if !inside {
			out = append(out, d)
		}
	}
	return out, nil
}

// seededMark is set on a state directory once it has all of its first content.
// A directory without it is only the way to another one, and gets what it
// lacks when it becomes a state directory itself.
const seededMark = "user.slipway.seeded"

// Seed makes sure that each of dirs exists below data, and gives the ones that
// are new the content which lower has at the same place: files, links, owners,
// modes, times and extended attributes. A power cut leaves a directory either
// unseeded or complete.
func Seed(data, lower string, dirs []string) error {
	staging := filepath.Join(data, ".seeding")
	if err := os.RemoveAll(staging); err != nil {
		return err
	}
	if err := os.MkdirAll(staging, 0o700); err != nil {
		return err
	}
	type move struct{ from, to string }
	var moves []move
	for i, dir := range dirs {
		to := filepath.Join(data, dir)
		if seeded(to) {
			continue
		}
		from := filepath.Join(staging, fmt.Sprint(i))
		if _, err := os.Lstat(to); err == nil {
			from = to // merge in place: what is there wins
		} else {
			moves = append(moves, move{from, to})
		}
		if err := seedOne(from, filepath.Join(lower, dir)); err != nil {
			return fmt.Errorf("state directory %s: %w", dir, err)
		}
	}
	if len(moves) > 0 {
		// A rename may reach the disk before the files' content does.
		if err := syncFS(data); err != nil {
			return err
		}
	}
	for _, m := range moves {
		if err := os.MkdirAll(filepath.Dir(m.to), 0o755); err != nil {
			return err
		}
		if err := os.Rename(m.from, m.to); err != nil {
			return err
		}
	}
	return os.RemoveAll(staging)
}

func seeded(dir string) bool {
	_, err := unix.Lgetxattr(dir, seededMark, nil)
	return err == nil
}

func seedOne(to, from string) error {
	err := copyTree(to, from)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(to, 0o755) // the image has no such directory
	}
	if err != nil {
		return err
	}
	return unix.Lsetxattr(to, seededMark, []byte("1"), 0)
}

// copyTree copies from to to, keeping what already is at to.
func copyTree(to, from string) error {
	st, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is not a directory in the image", from)
	}
	links := map[uint64]string{}
	var dirs []string
	err = filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		if e.IsDir() {
			dirs = append(dirs, rel)
		}
		return copyOne(filepath.Join(to, rel), p, links)
	})
	// What came into a directory changed its time, so these follow, deepest
	// first; the top one also if it was only the way to another directory.
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		var st unix.Stat_t
		if err = unix.Lstat(filepath.Join(from, dirs[i]), &st); err == nil {
			err = copyMeta(filepath.Join(to, dirs[i]), filepath.Join(from, dirs[i]), &st)
		}
	}
	return err
}

func copyOne(to, from string, links map[uint64]string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := links[st.Ino]; ok {
			return os.Link(first, to)
		}
		links[st.Ino] = to
	}
	var err error
	switch kind {
	case unix.S_IFDIR:
		err = os.Mkdir(to, 0o700)
	case unix.S_IFREG:
		err = copyContent(to, from)
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	case unix.S_IFSOCK:
		return nil
	default:
		err = unix.Mknod(to, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	return copyMeta(to, from, &st)
}

func copyContent(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// copyMeta copies owner, mode, extended attributes and times, in the order in
// which one does not undo another.
func copyMeta(to, from string, st *unix.Stat_t) error {
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return err
		}
	}
	if err := copyXattrs(to, from); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func copyXattrs(to, from string) error {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(from, list)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing attributes of %s: %w", from, err)
	}
	value := make([]byte, 64<<10)
	for _, attr := range strings.Split(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(attr, "trusted.overlay.") {
			continue // the overlay's own
		}
		size, err := unix.Lgetxattr(from, attr, value)
		if err != nil {
			return fmt.Errorf("%s of %s: %w", attr, from, err)
		}
		if err := unix.Lsetxattr(to, attr, value[:size], 0); err != nil {
			return fmt.Errorf("%s of %s: %w", attr, to, err)
		}
	}
	return nil
}

func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
