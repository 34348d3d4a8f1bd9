// Package sandbox runs programs of a Debian tree: maintainer scripts, dpkg,
// grub-mkimage. They see the tree as their root, believe that they are root,
// have no network, and leave nothing behind.
//
// # Model
//
// A Session is a set of namespaces (user, mount, PID, network, UTS, IPC;
// namespaces(7)) whose first process is this very program, started again
// under another name: hence main, and TestMain of tests, must call Init first.
// Commands run below that process until the session is closed; closing it, or
// the end of the context or of this process, ends them all and frees every
// mount.
//
// There is one way of working, for root and for ordinary users: only the
// caller's own user and group are mapped, to 0. All files therefore belong to
// the caller, and system calls that would need more are answered by a
// supervisor over seccomp_unotify(2):
//
//   - chown and its kin record the owner in an extended attribute (package
//     ownership); as the kernel does, they drop set-user-ID bits and capabilities
//     of a file (chown(2), "NOTES").
//   - setxattr of security.capability is recorded likewise.
//   - mknod of a device makes an empty file that records the device.
//   - setuid, setgid, setgroups and their kin succeed and change nothing.
//   - fsync, sync and their kin succeed at once: what is built is flushed or
//     thrown away as a whole, and they make up most of dpkg's time otherwise.
//
// stat(2) is not intercepted (it is too frequent): a program sees the owner
// 0:0 everywhere. The one kind of program that is misled is one that copies an
// owner from an old file to a new one, as tools that edit /etc/shadow do; package
// layer puts those files right.
//
// In: a Config and Cmds. Out: exit statuses; an *ExitError for a command that
// failed, a fault of class Missing for a host that lacks something.
package sandbox

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
)

// Config describes a session.
type Config struct {
	// Root is the directory that commands have as their root, written in place.
	Root string
	// Lower, if not empty, makes the root an overlay instead: these directories,
	// uppermost first, below Upper, which takes what is written. Work is the
	// overlay's own directory, empty, on Upper's file system.
	Lower       []string
	Upper, Work string
	// Date is SOURCE_DATE_EPOCH, in seconds.
	Date int64
	// Binds are further directories or files of the host to show inside.
	Binds []Bind
}

// Bind shows a path of the host inside a session.
type Bind struct {
	Source   string // on the host
	Target   string // inside, must exist
	ReadOnly bool
}

// Cmd is one program to run.
type Cmd struct {
	Args []string          // the program, an absolute path inside, and its arguments
	Env  map[string]string // in addition to, or instead of, what Environment gives
	Dir  string            // working directory inside; "" is /
	// Stdin, Stdout and Stderr: nil is /dev/null. An *os.File is passed on as it
	// is, anything else through a pipe.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// ExitError says how a command failed.
type ExitError struct {
	Args   []string
	Status syscall.WaitStatus
}

func (e *ExitError) Error() string {
	if e.Status.Signaled() {
		return fmt.Sprintf("%s was ended by signal %d (%s)", e.Args[0], e.Status.Signal(), e.Status.Signal())
	}
	return fmt.Sprintf("%s ended with exit status %d", e.Args[0], e.Status.ExitStatus())
}

// Environment is what every command gets.
func Environment(date int64) map[string]string {
	return map[string]string{
		"PATH":                        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME":                        "/root",
		"USER":                        "root",
		"LOGNAME":                     "root",
		"SHELL":                       "/bin/sh",
		"TERM":                        "dumb",
		"LC_ALL":                      "C.UTF-8",
		"TZ":                          "UTC",
		"SOURCE_DATE_EPOCH":           strconv.FormatInt(date, 10),
		"DEBIAN_FRONTEND":             "noninteractive",
		"DEBCONF_NONINTERACTIVE_SEEN": "true",
		"DEBCONF_NOWARNINGS":          "yes",
		"UCF_FORCE_CONFFOLD":          "1",
		// systemctl is to change links only.
		"SYSTEMD_OFFLINE": "1",
		// The kernel's hooks are not to make an initramfs.
		"INITRD": "No",
		// What scripts write must not follow an interpreter's random seed.
		"PERL_HASH_SEED":    "0",
		"PERL_PERTURB_KEYS": "0",
		"PYTHONHASHSEED":    "0",
	}
}

// argv0 is the name under which the program starts itself as a session's first
// process.
const argv0 = "slipway-sandbox"

// Init becomes the session's first process if this program was started as one;
// otherwise it returns at once. It must be the first thing that main does.
func Init() {
	if len(os.Args) > 0 && os.Args[0] == argv0 {
		os.Exit(first())
	}
}
