// Command probe makes one system call in a sandbox and prints what came of it.
package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// Linux on amd64 has these at the same numbers since it exists.
const (
	atFDCWD         = -100
	atSymlinkNofoll = 0x100
	atEmptyPath     = 0x1000
	oPath           = 0x200000
)

func main() {
	args := os.Args[1:]
	switch what := args[0]; what {
	case "chown":
		say(syscall.Chown(args[1], number(args[2]), number(args[3])))
	case "lchown":
		say(syscall.Lchown(args[1], number(args[2]), number(args[3])))
	case "fchown":
		f, err := os.Open(args[1])
		check(err)
		say(syscall.Fchown(int(f.Fd()), number(args[2]), number(args[3])))
	case "fchown-closed":
		say(syscall.Fchown(999, 1, 1))
	case "fchownat": // directory, name, uid, gid, flags
		dir, err := syscall.Open(args[1], syscall.O_DIRECTORY, 0)
		check(err)
		say(fchownat(dir, args[2], number(args[3]), number(args[4]), number(args[5])))
	case "fchownat-empty": // an O_PATH file and the empty path
		fd, err := syscall.Open(args[1], oPath|syscall.O_NOFOLLOW, 0)
		check(err)
		say(fchownat(fd, "", number(args[2]), number(args[3]), atEmptyPath))
	case "chown-in": // working directory, relative name
		check(os.Chdir(args[1]))
		say(syscall.Chown(args[2], number(args[3]), number(args[4])))
	case "chown-proc-fd":
		fd, err := syscall.Open(args[1], oPath, 0)
		check(err)
		say(syscall.Chown("/proc/self/fd/"+strconv.Itoa(fd), number(args[2]), number(args[3])))
	case "chown-long":
		say(syscall.Chown("/"+strings.Repeat("x", 5000), 1, 1))
	case "chown-bad-address":
		_, _, errno := syscall.Syscall(syscall.SYS_CHOWN, 8, 1, 1)
		say(errno)
	case "setxattr":
		say(syscall.Setxattr(args[1], args[2], []byte(args[3]), 0))
	case "removexattr":
		say(syscall.Removexattr(args[1], args[2]))
	case "mknod": // path, mode in octal, major, minor
		mode, err := strconv.ParseUint(args[2], 8, 32)
		check(err)
		say(syscall.Mknod(args[1], uint32(mode), number(args[3])<<8|number(args[4])))
	case "become":
		_, _, a := syscall.RawSyscall(syscall.SYS_SETGROUPS, 0, 0, 0)
		_, _, b := syscall.RawSyscall(syscall.SYS_SETRESGID, 33, 33, 33)
		_, _, c := syscall.RawSyscall(syscall.SYS_SETRESUID, 33, 33, 33)
		fmt.Println(int(a), int(b), int(c))
	case "sync":
		f, err := os.Create("/tmp/file")
		check(err)
		fmt.Println(f.Sync(), syscall.Fdatasync(int(f.Fd())))
	case "describe":
		describe()
	case "devices":
		for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "ptmx", "shm", "fd"} {
			_, err := os.Stat("/dev/" + name)
			fmt.Println(name, err == nil)
		}
		_, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
		check(err)
	case "network":
		interfaces, err := net.Interfaces()
		check(err)
		for _, i := range interfaces {
			fmt.Println(i.Name)
		}
		_, err = net.DialTimeout("tcp", "192.0.2.1:80", time.Second)
		fmt.Println(err != nil)
	case "write":
		check(os.MkdirAll(filepath.Dir(args[1]), 0o777))
		check(os.WriteFile(args[1], []byte(args[2]), 0o666))
	case "remove":
		check(os.RemoveAll(args[1]))
	case "read":
		b, err := os.ReadFile(args[1])
		check(err)
		os.Stdout.Write(b)
	case "exit":
		os.Exit(number(args[1]))
	case "sleep": // say so first; then only being killed ends it
		fmt.Println("asleep")
		select {}
	case "leave": // a child that outlives its parent and keeps its output open
		_, err := os.StartProcess("/probe", []string{"/probe", "sleep"}, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
		check(err)
	default:
		fmt.Println("unknown:", what)
		os.Exit(99)
	}
}

func describe() {
	var name syscall.Utsname
	check(syscall.Uname(&name))
	host := ""
	for _, c := range name.Nodename {
		if c == 0 {
			break
		}
		host += string(rune(c))
	}
	mask := syscall.Umask(0)
	dir, err := os.Getwd()
	check(err)
	fmt.Printf("host %s\nuid %d\ngid %d\numask %04o\ndir %s\n", host, os.Getuid(), os.Getgid(), mask, dir)
	for _, line := range os.Environ() {
		fmt.Println("env", line)
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	check(err)
	return n
}

func say(err error) {
	if errno, ok := err.(syscall.Errno); ok && errno == 0 || err == nil {
		fmt.Println("ok")
		return
	}
	fmt.Println(err)
}

func check(err error) {
	if err != nil {
		fmt.Println("probe:", err)
		os.Exit(98)
	}
}

func fchownat(dir int, name string, uid, gid, flags int) error {
	p, err := syscall.BytePtrFromString(name)
	check(err)
	_, _, errno := syscall.Syscall6(syscall.SYS_FCHOWNAT, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(uid), uintptr(gid), uintptr(flags), 0)
	return errno
}
