package sandbox

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"unsafe"

	"github.com/slipwayhq/slipway/builder/ownership"
	"golang.org/x/sys/unix"
)

// Requests of seccomp_unotify(2), from linux/seccomp.h.
const (
	ioctlReceive  = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	ioctlSend     = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	ioctlIDValid  = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID
	ioctlSetFlags = 0x40082104 // SECCOMP_IOCTL_NOTIF_SET_FLAGS
	syncWakeUp    = 1          // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP

	flagContinue = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE
)

// notification is struct seccomp_notif: one call of one thread that waits.
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

// errContinue lets the kernel run the call as it stands.
var errContinue = errors.New("continue")

// supervise answers calls until the session ends. It sees the same mounts as
// the callers and is root among them, so it may mark files that an ordinary
// user could not write.
func supervise(listener int) {
	// Linux 6.6 hands the processor over directly; elsewhere this is refused and no loss.
	unix.Syscall(unix.SYS_IOCTL, uintptr(listener), ioctlSetFlags, syncWakeUp)
	for {
		var n notification
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), ioctlReceive, uintptr(unsafe.Pointer(&n)))
		switch errno {
		case 0:
		case unix.EINTR, unix.ENOENT: // the caller died meanwhile
			continue
		default:
			return
		}
		r := response{id: n.id}
		err := call{&n, listener}.answer()
		var number unix.Errno
		switch {
		case err == nil:
		case err == errContinue:
			r.flags = flagContinue
		case errors.As(err, &number):
			r.errno = -int32(number)
		default:
			r.errno = -int32(unix.EIO)
		}
		unix.Syscall(unix.SYS_IOCTL, uintptr(listener), ioctlSend, uintptr(unsafe.Pointer(&r)))
	}
}

// call is one system call to answer.
type call struct {
	*notification
	listener int
}

func (c call) answer() error {
	a := c.args
	switch c.nr {
	case unix.SYS_CHOWN:
		return c.chown(c.byPath(unix.AT_FDCWD, a[0], true))(a[1], a[2])
	case unix.SYS_LCHOWN:
		return c.chown(c.byPath(unix.AT_FDCWD, a[0], false))(a[1], a[2])
	case unix.SYS_FCHOWN:
		return c.chown(c.byFD(int32(a[0])))(a[1], a[2])
	case unix.SYS_FCHOWNAT:
		return c.chown(c.at(a[0], a[1], a[4]))(a[2], a[3])
	case unix.SYS_SETXATTR:
		return c.setXattr(a[1], a[2], a[3], func() (int, error) { return c.byPath(unix.AT_FDCWD, a[0], true) })
	case unix.SYS_LSETXATTR:
		return c.setXattr(a[1], a[2], a[3], func() (int, error) { return c.byPath(unix.AT_FDCWD, a[0], false) })
	case unix.SYS_FSETXATTR:
		return c.setXattr(a[1], a[2], a[3], func() (int, error) { return c.byFD(int32(a[0])) })
	case unix.SYS_REMOVEXATTR:
		return c.removeXattr(a[1], func() (int, error) { return c.byPath(unix.AT_FDCWD, a[0], true) })
	case unix.SYS_LREMOVEXATTR:
		return c.removeXattr(a[1], func() (int, error) { return c.byPath(unix.AT_FDCWD, a[0], false) })
	case unix.SYS_FREMOVEXATTR:
		return c.removeXattr(a[1], func() (int, error) { return c.byFD(int32(a[0])) })
	case unix.SYS_MKNOD:
		return c.mknod(unix.AT_FDCWD, a[0], uint32(a[1]), a[2])
	case unix.SYS_MKNODAT:
		return c.mknod(int32(a[0]), a[1], uint32(a[2]), a[3])
	}
	return errContinue
}

// valid tells whether the caller still waits. What was opened through its
// /proc entry before belongs to it only if this holds after (seccomp_unotify(2)).
func (c call) valid() error {
	id := c.id
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.listener), ioctlIDValid, uintptr(unsafe.Pointer(&id))); errno != 0 {
		return errno
	}
	return nil
}

// proc names an entry of the caller in /proc.
func (c call) proc(rest string) string {
	return "/proc/" + strconv.FormatUint(uint64(c.pid), 10) + "/" + rest
}

// memory reads up to max bytes of the caller's memory. It stops at the first
// page that is not there.
func (c call) memory(address uint64, max int) ([]byte, error) {
	out := make([]byte, 0, max)
	for len(out) < max {
		step := 4096 - int((address+uint64(len(out)))%4096)
		step = min(step, max-len(out))
		piece := out[len(out) : len(out)+step]
		local := []unix.Iovec{{Base: &piece[0], Len: uint64(step)}}
		remote := []unix.RemoteIovec{{Base: uintptr(address) + uintptr(len(out)), Len: step}}
		n, err := unix.ProcessVMReadv(int(c.pid), local, remote, 0)
		if err != nil || n <= 0 {
			if len(out) == 0 {
				return nil, unix.EFAULT
			}
			break
		}
		out = out[:len(out)+n]
		if i := strings.IndexByte(string(piece[:n]), 0); i >= 0 && max == unix.PathMax {
			break // a string, and it ended
		}
	}
	return out, nil
}

// text reads a string of the caller.
func (c call) text(address uint64) (string, error) {
	b, err := c.memory(address, unix.PathMax)
	if err != nil {
		return "", err
	}
	s, _, ok := strings.Cut(string(b), "\x00")
	if !ok {
		return "", unix.ENAMETOOLONG
	}
	return s, nil
}

// byFD opens what the caller has open as fd.
func (c call) byFD(fd int32) (int, error) {
	if fd == unix.AT_FDCWD {
		return unix.Open(c.proc("cwd"), unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	opened, err := unix.Open(c.proc("fd/"+strconv.Itoa(int(fd))), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		err = unix.EBADF
	}
	return opened, err
}

// at opens what a call of the *at family names.
func (c call) at(dir, address, flags uint64) (int, error) {
	if flags&unix.AT_EMPTY_PATH != 0 {
		name, err := "", error(nil)
		if address != 0 { // a null pointer is the empty path since Linux 6.11
			name, err = c.text(address)
		}
		if err != nil {
			return -1, err
		}
		if name == "" {
			return c.byFD(int32(dir))
		}
	}
	return c.byPath(int32(dir), address, flags&unix.AT_SYMLINK_NOFOLLOW == 0)
}

// byPath opens the path at address as the caller would: from its root, and
// never out of it.
func (c call) byPath(dir int32, address uint64, follow bool) (int, error) {
	name, err := c.text(address)
	if err != nil {
		return -1, err
	}
	if name == "" {
		return -1, unix.ENOENT
	}
	return c.open(dir, name, follow)
}

func (c call) open(dir int32, name string, follow bool) (int, error) {
	root, err := unix.Open(c.proc("root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	if name, err = c.absolute(dir, name); err != nil {
		return -1, err
	}
	if fd, ok := magic(name); ok && follow {
		return c.byFD(fd)
	}
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if !follow {
		how.Flags |= unix.O_NOFOLLOW
	}
	for {
		fd, err := unix.Openat2(root, name, how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
}

// absolute spells a path from the caller's root. Its ".." stay for the kernel
// to resolve.
func (c call) absolute(dir int32, name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		return name, nil
	}
	link := c.proc("cwd")
	if dir != unix.AT_FDCWD {
		link = c.proc("fd/" + strconv.Itoa(int(dir)))
	}
	base, err := readlink(link)
	if err != nil {
		if err == unix.ENOENT && dir != unix.AT_FDCWD {
			err = unix.EBADF
		}
		return "", err
	}
	root, err := readlink(c.proc("root"))
	if err != nil {
		return "", err
	}
	base, ok := strings.CutPrefix(base, root)
	if !ok || strings.HasSuffix(base, " (deleted)") {
		return "", unix.ENOENT
	}
	return base + "/" + name, nil
}

func readlink(name string) (string, error) {
	buffer := make([]byte, unix.PathMax)
	n, err := unix.Readlink(name, buffer)
	if err != nil {
		return "", err
	}
	return string(buffer[:n]), nil
}

// magic recognises /proc/self/fd/N and /dev/fd/N, which programs chown when all
// they have is an O_PATH file. The kernel would resolve "self" as us.
func magic(name string) (int32, bool) {
	for _, prefix := range []string{"/proc/self/fd/", "/proc/thread-self/fd/", "/dev/fd/"} {
		if rest, ok := strings.CutPrefix(path.Clean(name), prefix); ok {
			n, err := strconv.ParseUint(rest, 10, 31)
			return int32(n), err == nil
		}
	}
	return 0, false
}

// through names an open file so that calls which take a path reach it, even if
// it was opened with O_PATH.
func through(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// chown records a new owner for an open file and closes it.
func (c call) chown(fd int, err error) func(uid, gid uint64) error {
	return func(u, g uint64) error {
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := c.valid(); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		kind := st.Mode & unix.S_IFMT
		if kind != unix.S_IFREG && kind != unix.S_IFDIR {
			return nil // the kernel keeps no user attribute on it (xattr(7))
		}
		if err := setOwner(fd, uint32(u), uint32(g)); err != nil {
			return err
		}
		if kind == unix.S_IFREG {
			return dropPrivilege(fd, st.Mode)
		}
		return nil
	}
}

// setOwner writes the owner attribute; all ones leave an id as it is (chown(2)).
func setOwner(fd int, uid, gid uint32) error {
	const same = ^uint32(0)
	buffer := make([]byte, 32)
	var oldUID, oldGID uint32
	if n, err := unix.Getxattr(through(fd), ownership.Owner, buffer); err == nil {
		if oldUID, oldGID, err = ownership.ParseOwner(buffer[:n]); err != nil {
			return unix.EIO
		}
	}
	if uid == same {
		uid = oldUID
	}
	if gid == same {
		gid = oldGID
	}
	if uid == oldUID && gid == oldGID {
		return nil
	}
	var err error
	if uid == 0 && gid == 0 {
		err = unix.Removexattr(through(fd), ownership.Owner)
	} else {
		err = unix.Setxattr(through(fd), ownership.Owner, ownership.FormatOwner(uid, gid), 0)
	}
	if err == unix.EOPNOTSUPP || err == unix.ENODATA {
		return nil // a tmpfs before Linux 6.6, or /proc: nothing there is kept
	}
	return err
}

// dropPrivilege does what every chown of a file does on Linux, root's too:
// set-user-ID goes, set-group-ID if the group may execute, and capabilities.
func dropPrivilege(fd int, mode uint32) error {
	kept := mode &^ unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		kept &^= unix.S_ISGID
	}
	if kept != mode {
		if err := unix.Chmod(through(fd), kept&0o7777); err != nil {
			return err
		}
	}
	if err := unix.Removexattr(through(fd), ownership.Caps); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP {
		return err
	}
	return nil
}

// setXattr records capabilities and refuses what only real root could set.
func (c call) setXattr(nameAt, valueAt, size uint64, open func() (int, error)) error {
	name, err := c.text(nameAt)
	if err != nil {
		return err
	}
	if name != "security.capability" {
		return refusal(name)
	}
	if size == 0 || size > 64 { // struct vfs_ns_cap_data is 24 bytes
		return unix.EINVAL
	}
	value, err := c.memory(valueAt, int(size))
	if err != nil || len(value) != int(size) {
		return unix.EFAULT
	}
	return c.onRegular(open, func(fd int) error { return unix.Setxattr(through(fd), ownership.Caps, value, 0) })
}

func (c call) removeXattr(nameAt uint64, open func() (int, error)) error {
	name, err := c.text(nameAt)
	if err != nil {
		return err
	}
	if name != "security.capability" {
		return refusal(name)
	}
	return c.onRegular(open, func(fd int) error { return unix.Removexattr(through(fd), ownership.Caps) })
}

// refusal is the error for attributes that are not kept. ACLs among them: the
// groups that they would name are not mapped, and all hosts are to build the same.
func refusal(name string) error {
	switch {
	case strings.HasPrefix(name, "security."), strings.HasPrefix(name, "system."):
		return unix.EOPNOTSUPP
	case strings.HasPrefix(name, "trusted."):
		return unix.EPERM
	}
	return errContinue
}

// onRegular opens a file and changes it if it is a regular one.
func (c call) onRegular(open func() (int, error), change func(fd int) error) error {
	fd, err := open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := c.valid(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return unix.EOPNOTSUPP
	}
	return change(fd)
}

// mknod makes the empty file that stands for a device.
func (c call) mknod(dir int32, address uint64, mode uint32, device uint64) error {
	name, err := c.text(address)
	if err != nil {
		return err
	}
	name = strings.TrimRight(name, "/")
	base := path.Base(name)
	if name == "" || base == ".." || base == "." {
		return unix.EEXIST
	}
	parent, err := c.open(dir, path.Dir(name), true)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if err := c.valid(); err != nil {
		return err
	}
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	node := ownership.FormatNode(mode&unix.S_IFMT == unix.S_IFBLK, unix.Major(device), unix.Minor(device))
	if err := unix.Fsetxattr(fd, ownership.Node, node, 0); err != nil && err != unix.EOPNOTSUPP {
		return err
	}
	umask, err := c.umask()
	if err != nil {
		return err
	}
	return unix.Fchmod(fd, mode&0o7777&^umask)
}

// umask reads the caller's mask.
func (c call) umask() (uint32, error) {
	fd, err := unix.Open(c.proc("status"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	buffer := make([]byte, 512)
	n, err := unix.Read(fd, buffer)
	if err != nil {
		return 0, err
	}
	var mask uint32
	for _, line := range strings.Split(string(buffer[:n]), "\n") {
		if _, err := fmt.Sscanf(line, "Umask: %o", &mask); err == nil {
			return mask, nil
		}
	}
	return 0o022, nil
}
