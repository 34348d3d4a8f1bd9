package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// insideRoot is where the first process sees the root of commands. It stays
// outside of it itself, on an empty tmpfs, so that commands find what they would
// in debootstrap's chroot: the root of process 1 is not theirs (ischroot(1)).
const insideRoot = "/root"

// makeRoot mounts all that commands see and leaves the host's tree.
func makeRoot(s setup) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return denied("making mounts private", err)
	}
	if err := unix.Mount("slipway", s.Stage, "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return denied("mounting a tmpfs", err)
	}
	root := s.Stage + insideRoot
	for _, dir := range []string{root, s.Stage + "/proc", s.Stage + "/old"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := mountTree(s, root); err != nil {
		return err
	}
	if err := populate(root, s); err != nil {
		return err
	}
	for _, proc := range []string{s.Stage + "/proc", root + "/proc"} {
		if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return &lacking{fmt.Errorf("mounting /proc in the sandbox: %w", err),
				"run outside of a container, or give the container an unmasked /proc (docker: --security-opt systempaths=unconfined)"}
		}
	}
	if err := unix.PivotRoot(s.Stage, s.Stage+"/old"); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/old", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the host's tree: %w", err)
	}
	return os.Remove("/old")
}

// mountTree mounts the tree that commands work in: a directory as it is, or an overlay.
func mountTree(s setup, root string) error {
	if len(s.Lower) == 0 {
		if err := unix.Mount(s.Root, root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", s.Root, err)
		}
		return nil
	}
	// Directories are named by file descriptor: overlayfs would want colons and
	// commas in their names escaped, and all options fit one page only.
	var held []int
	defer func() {
		for _, fd := range held {
			unix.Close(fd)
		}
	}()
	name := func(dir string) (string, error) {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", &os.PathError{Op: "open", Path: dir, Err: err}
		}
		held = append(held, fd)
		return fmt.Sprintf("/proc/self/fd/%d", fd), nil
	}
	var lower []string
	for _, dir := range s.Lower {
		n, err := name(dir)
		if err != nil {
			return err
		}
		lower = append(lower, n)
	}
	upper, err := name(s.Upper)
	if err != nil {
		return err
	}
	work, err := name(s.Work)
	if err != nil {
		return err
	}
	// A changed file is to be whole in the upper directory, and a moved
	// directory too: no metacopy, no redirects. userxattr is what an unprivileged
	// overlay keeps its marks with (Documentation/filesystems/overlayfs.rst).
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,userxattr,index=off,metacopy=off", strings.Join(lower, ":"), upper, work)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
			return &lacking{fmt.Errorf("mounting an overlay in a user namespace: %w", err),
				"use Linux 5.11 or later with overlayfs (modprobe overlay), and a cache on ext4, xfs or btrfs"}
		}
		return fmt.Errorf("mounting the overlay of %s over %s: %w", s.Upper, strings.Join(s.Lower, ", "), err)
	}
	return nil
}

// populate mounts what a running system would have in its root.
func populate(root string, s setup) error {
	for _, name := range []string{"dev", "proc", "sys", "run", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	tmpfs := func(name, options string, flags uintptr) error {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|flags, options); err != nil {
			return fmt.Errorf("mounting /%s: %w", name, err)
		}
		return nil
	}
	if err := tmpfs("dev", "mode=755", 0); err != nil {
		return err
	}
	for _, node := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		inside := filepath.Join(root, "dev", node)
		if err := os.WriteFile(inside, nil, 0o666); err != nil {
			return err
		}
		if err := unix.Mount("/dev/"+node, inside, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("showing /dev/%s: %w", node, err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "dev/pts"), 0o755); err != nil {
		return err
	}
	if err := unix.Mount("devpts", filepath.Join(root, "dev/pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return fmt.Errorf("mounting /dev/pts: %w", err)
	}
	for link, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(root, "dev", link)); err != nil {
			return err
		}
	}
	for _, t := range []struct {
		name, options string
		flags         uintptr
	}{
		{"dev/shm", "mode=1777", 0}, {"run", "mode=755", 0}, {"run/lock", "mode=1777", 0},
		{"tmp", "mode=1777", 0}, {"sys", "mode=555", unix.MS_RDONLY},
	} {
		if err := tmpfs(t.name, t.options, t.flags); err != nil {
			return err
		}
	}
	for _, b := range s.Binds {
		target := filepath.Join(root, b.Target)
		if err := unix.Mount(b.Source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("showing %s as %s: %w", b.Source, b.Target, err)
		}
		if b.ReadOnly {
			attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
			if err := unix.MountSetattr(-1, target, unix.AT_RECURSIVE, &attr); err != nil {
				return &lacking{fmt.Errorf("making %s read-only: %w", b.Target, err), "use Linux 5.12 or later"}
			}
		}
	}
	return nil
}

// denied explains why the first mount is refused: the namespace exists, yet
// its root has no rights.
func denied(what string, err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return &lacking{fmt.Errorf("%s in a user namespace: %w", what, err),
			"allow unprivileged user namespaces to mount (Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0)"}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// loopbackUp brings up the only network device there is.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// openTerminal makes a pseudo-terminal of the session's own devpts.
func openTerminal() (master, slave int, err error) {
	master, err = unix.Open(insideRoot+"/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, err
	}
	var unlock int32
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlock))); errno != 0 {
		unix.Close(master)
		return -1, -1, errno
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		unix.Close(master)
		return -1, -1, errno
	}
	return master, int(peer), nil
}

// notifyChildren asks for a signal at every death of a child.
func notifyChildren(c chan<- os.Signal) { signal.Notify(c, unix.SIGCHLD) }
