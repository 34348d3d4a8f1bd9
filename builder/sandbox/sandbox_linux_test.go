package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/slipwayhq/slipway/builder/ownership"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"golang.org/x/sys/unix"
)

// probeVariable tells a test process that runs as another user where the probe is.
const probeVariable = "SLIPWAY_TEST_PROBE"

var probe string

func TestMain(m *testing.M) {
	sandbox.Init()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if probe = os.Getenv(probeVariable); probe == "" {
		dir, err := os.MkdirTemp("", "probe")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			panic(err)
		}
		probe = filepath.Join(dir, "probe")
		build := exec.Command("go", "build", "-o", probe, "./testdata/probe")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			panic(string(out))
		}
	}
	return m.Run()
}

// newRoot is a tree that holds the probe only.
func newRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	content, err := os.ReadFile(probe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "probe"), content, 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

func start(t *testing.T, c sandbox.Config) *sandbox.Session {
	t.Helper()
	s, err := sandbox.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// say runs the probe and returns what it says.
func say(t *testing.T, s *sandbox.Session, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := s.Run(t.Context(), sandbox.Cmd{Args: append([]string{"/probe"}, args...), Stdout: &out, Stderr: &out}); err != nil {
		t.Fatalf("probe %v: %v\n%s", args, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

func attribute(t *testing.T, file, name string) string {
	t.Helper()
	b := make([]byte, 256)
	n, err := unix.Lgetxattr(file, name, b)
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func write(t *testing.T, file string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestEveryWayToChangeAnOwnerIsRecorded(t *testing.T) {
	root := newRoot(t)
	for _, name := range []string{"etc/a", "outside"} {
		write(t, filepath.Join(root, name))
	}
	for link, target := range map[string]string{"etc/link": "/etc/a", "etc/up": "../../../../outside"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, sandbox.Config{Root: root})
	for _, c := range []struct {
		call        string
		file, owner string
	}{
		{"chown /etc/a 33 44", "etc/a", "33:44"},
		{"chown /etc/link 1 2", "etc/a", "1:2"},
		{"chown /etc/up 3 4", "outside", "3:4"}, // .. stops at the root
		{"lchown /etc/link 9 9", "etc/a", "1:2"},
		{"lchown /etc/a 5 6", "etc/a", "5:6"},
		{"fchown /etc/a 7 8", "etc/a", "7:8"},
		{"fchown /etc 10 11", "etc", "10:11"},
		{"fchownat /etc a 12 13 0", "etc/a", "12:13"},
		{"fchownat /etc link 14 15 256", "etc/a", "12:13"}, // AT_SYMLINK_NOFOLLOW
		{"fchownat /etc link 14 15 0", "etc/a", "14:15"},
		{"fchownat-empty /etc/a 16 17", "etc/a", "16:17"},
		{"chown-in /etc a 18 19", "etc/a", "18:19"},
		{"chown-in /etc ../outside 20 21", "outside", "20:21"},
		{"chown-proc-fd /etc/a 22 23", "etc/a", "22:23"},
		{"chown /etc/a -1 24", "etc/a", "22:24"},
		{"chown /etc/a 25 -1", "etc/a", "25:24"},
		{"chown /etc/a 0 0", "etc/a", ""},
	} {
		if got := say(t, s, strings.Fields(c.call)...); got != "ok" {
			t.Errorf("%s: %s", c.call, got)
		}
		if got := attribute(t, filepath.Join(root, c.file), ownership.Owner); got != c.owner {
			t.Errorf("%s: owner of %s is %q, want %q", c.call, c.file, got, c.owner)
		}
	}
}

func TestWrongChownsFailAsInTheKernel(t *testing.T) {
	root := newRoot(t)
	write(t, filepath.Join(root, "etc/a"))
	if err := os.Symlink("loop", filepath.Join(root, "etc/loop")); err != nil {
		t.Fatal(err)
	}
	s := start(t, sandbox.Config{Root: root})
	for call, want := range map[string]unix.Errno{
		"chown /etc/none 1 1":      unix.ENOENT,
		"chown /etc/a/b 1 1":       unix.ENOTDIR,
		"chown /etc/loop 1 1":      unix.ELOOP,
		"chown-long":               unix.ENAMETOOLONG,
		"chown-bad-address":        unix.EFAULT,
		"fchown-closed":            unix.EBADF,
		"fchownat /etc none 1 1 0": unix.ENOENT,
	} {
		if got := say(t, s, strings.Fields(call)...); got != want.Error() {
			t.Errorf("%s: %q, want %q", call, got, want.Error())
		}
	}
}

func TestChownDropsPrivilegesAsTheKernelDoes(t *testing.T) {
	root := newRoot(t)
	file := filepath.Join(root, "tool")
	for _, c := range []struct{ before, after os.FileMode }{
		{0o755 | os.ModeSetuid, 0o755},
		{0o755 | os.ModeSetgid, 0o755},
		{0o745 | os.ModeSetgid, 0o745 | os.ModeSetgid}, // the group may not execute: mandatory locking
	} {
		write(t, file)
		if err := os.Chmod(file, c.before); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(file, ownership.Caps, []byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		s := start(t, sandbox.Config{Root: root})
		say(t, s, "chown", "/tool", "1", "1")
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != c.after {
			t.Errorf("after chown the mode is %v, want %v", info.Mode(), c.after)
		}
		if attribute(t, file, ownership.Caps) != "" {
			t.Error("capabilities outlived a chown")
		}
	}
}

func TestCapabilitiesAreRecordedAndOtherPrivilegedAttributesRefused(t *testing.T) {
	root := newRoot(t)
	file := filepath.Join(root, "tool")
	write(t, file)
	s := start(t, sandbox.Config{Root: root})
	for _, c := range [][]string{
		{"setxattr", "/tool", "security.capability", "abc", "ok"},
		{"setxattr", "/tool", "security.selinux", "abc", unix.EOPNOTSUPP.Error()},
		{"setxattr", "/tool", "system.posix_acl_access", "abc", unix.EOPNOTSUPP.Error()},
		{"setxattr", "/tool", "trusted.x", "abc", unix.EPERM.Error()},
		{"setxattr", "/tool", "user.x", "abc", "ok"},
		{"setxattr", "/probe", "security.capability", strings.Repeat("x", 65), unix.EINVAL.Error()},
	} {
		if got := say(t, s, c[:4]...); got != c[4] {
			t.Errorf("%v: %s", c[:3], got)
		}
	}
	if got := attribute(t, file, ownership.Caps); got != "abc" {
		t.Errorf("recorded capabilities are %q", got)
	}
	if got := say(t, s, "removexattr", "/tool", "security.capability"); got != "ok" {
		t.Error(got)
	}
	if got := attribute(t, file, ownership.Caps); got != "" {
		t.Errorf("capabilities are still %q", got)
	}
}

func TestDevicesAreRecordedAndFifosMade(t *testing.T) {
	root := newRoot(t)
	s := start(t, sandbox.Config{Root: root})
	if got := say(t, s, "mknod", "/sda1", "60640", "8", "1"); got != "ok" {
		t.Fatal(got)
	}
	if got := say(t, s, "mknod", "/sda1", "60640", "8", "1"); got != unix.EEXIST.Error() {
		t.Errorf("second mknod: %s", got)
	}
	if got := say(t, s, "mknod", "/fifo", "10600", "0", "0"); got != "ok" {
		t.Error(got)
	}
	if got := attribute(t, filepath.Join(root, "sda1"), ownership.Node); got != "b:8:1" {
		t.Errorf("device is recorded as %q", got)
	}
	info, err := os.Stat(filepath.Join(root, "fifo"))
	if err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("no fifo: %v %v", info, err)
	}
}

func TestPrivilegedCallsSeemToSucceed(t *testing.T) {
	s := start(t, sandbox.Config{Root: newRoot(t)})
	if got := say(t, s, "become"); got != "0 0 0" {
		t.Errorf("setgroups, setresgid, setresuid: %s", got)
	}
	if got := say(t, s, "sync"); got != "<nil> <nil>" {
		t.Errorf("fsync, fdatasync: %s", got)
	}
}

func TestCommandsSeeTheSameWhoeverBuilds(t *testing.T) {
	t.Setenv("LEAK", "from the builder")
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	s := start(t, sandbox.Config{Root: newRoot(t), Date: 1700000000})
	got := "\n" + say(t, s, "describe") + "\n"
	for _, line := range []string{
		"host localhost", "uid 0", "gid 0", "umask 0022", "dir /", "env LC_ALL=C.UTF-8", "env SOURCE_DATE_EPOCH=1700000000",
		"env DEBIAN_FRONTEND=noninteractive", "env HOME=/root",
	} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("%q is missing in:%s", line, got)
		}
	}
	if strings.Contains(got, "LEAK") {
		t.Error("the builder's environment is visible")
	}
}

func TestThereIsNoNetworkAndAMinimalDev(t *testing.T) {
	s := start(t, sandbox.Config{Root: newRoot(t)})
	if got := say(t, s, "network"); got != "lo\ntrue" {
		t.Errorf("interfaces, and whether a connection fails: %s", got)
	}
	for _, line := range strings.Split(say(t, s, "devices"), "\n") {
		// /dev/tty is there but opens only with a terminal; stat is enough.
		if !strings.HasSuffix(line, " true") {
			t.Errorf("/dev: %s", line)
		}
	}
}

func TestAnOverlayTakesAllChanges(t *testing.T) {
	lower, upper, work := newRoot(t), t.TempDir(), t.TempDir()
	for _, name := range []string{"etc/keep", "etc/drop", "odd:name,with\\all/x"} {
		write(t, filepath.Join(lower, name))
	}
	upper = filepath.Join(upper, "a:b,c\\d") // what overlayfs would want escaped
	if err := os.Mkdir(upper, 0o755); err != nil {
		t.Fatal(err)
	}
	s := start(t, sandbox.Config{Lower: []string{lower}, Upper: upper, Work: work})
	say(t, s, "write", "/etc/new", "new")
	say(t, s, "remove", "/etc/drop")
	say(t, s, "chown", "/etc/keep", "5", "5")
	if b, err := os.ReadFile(filepath.Join(s.Root(), "etc/new")); err != nil || string(b) != "new" {
		t.Errorf("the host sees %q, %v", b, err)
	}
	s.Close()
	if got := attribute(t, filepath.Join(upper, "etc/keep"), ownership.Owner); got != "5:5" {
		t.Errorf("owner in the upper directory: %q", got)
	}
	if got := attribute(t, filepath.Join(lower, "etc/keep"), ownership.Owner); got != "" {
		t.Errorf("the lower directory was changed: %q", got)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(upper, "etc/drop"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("no whiteout: %v %o", err, st.Mode)
	}
}

func TestAFailedCommandTellsItsStatus(t *testing.T) {
	s := start(t, sandbox.Config{Root: newRoot(t)})
	err := s.Run(t.Context(), sandbox.Cmd{Args: []string{"/probe", "exit", "7"}})
	var exit *sandbox.ExitError
	if !errors.As(err, &exit) || exit.Status.ExitStatus() != 7 {
		t.Errorf("got %v", err)
	}
	if err := s.Run(t.Context(), sandbox.Cmd{Args: []string{"/none"}}); err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("a missing program: %v", err)
	}
	if got := say(t, s, "sync"); got != "<nil> <nil>" {
		t.Errorf("the session is of no use after that: %s", got)
	}
}

func TestInputAndOutputStream(t *testing.T) {
	root := newRoot(t)
	s := start(t, sandbox.Config{Root: root})
	large := strings.Repeat("0123456789abcdef", 1<<16)
	var out bytes.Buffer
	if err := s.Run(t.Context(), sandbox.Cmd{Args: []string{"/probe", "read", "/dev/stdin"}, Stdin: strings.NewReader(large), Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	if out.String() != large {
		t.Errorf("%d bytes went in, %d came out", len(large), out.Len())
	}
}

func TestAProcessLeftBehindHoldsNothingUp(t *testing.T) {
	s := start(t, sandbox.Config{Root: newRoot(t)})
	var out bytes.Buffer
	if err := s.Run(t.Context(), sandbox.Cmd{Args: []string{"/probe", "leave"}, Stdout: &out}); err != nil {
		t.Error(err)
	}
}

func TestCancellingEndsEverything(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := sandbox.Start(ctx, sandbox.Config{Root: newRoot(t)})
	if err != nil {
		t.Fatal(err)
	}
	read, w := io.Pipe()
	failed := make(chan error)
	go func() {
		err := s.Run(ctx, sandbox.Cmd{Args: []string{"/probe", "sleep"}, Stdout: w})
		w.Close()
		failed <- err
	}()
	if _, err := read.Read(make([]byte, 64)); err != nil { // it runs
		t.Fatal(err)
	}
	go io.Copy(io.Discard, read)
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled command ended with %v", err)
	}
	s.Close()
	if _, err := os.Stat(s.Root()); err == nil {
		t.Error("the session's first process is still there")
	}
	if err := s.Run(t.Context(), sandbox.Cmd{Args: []string{"/probe", "sync"}}); err == nil {
		t.Error("a closed session runs commands")
	}
}

// All of the above, as an ordinary user with no subordinate ids.
func TestAnOrdinaryUserCanDoTheSame(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("this run is one by an ordinary user already")
		return
	}
	const nobody = 65534
	dir := t.TempDir()
	binary := filepath.Join(dir, "test")
	content, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, content, 0o755); err != nil {
		t.Fatal(err)
	}
	temporary := filepath.Join(dir, "tmp")
	if err := os.Mkdir(temporary, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(temporary, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.v")
	cmd.Dir = temporary
	cmd.Env = []string{"TMPDIR=" + temporary, probeVariable + "=" + probe, "HOME=/nonexistent", "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: false}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as user %d: %v\n%s", nobody, err, out)
	}
}
