// Package buildtest tests the slipway command as its users run it: real
// packages in, image files out. It needs the Debian mirror of the machine's apt
// sources, or what the cache already has of it.
package buildtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ordinaryUser is the uid and gid of a user with no privilege, no subordinate
// ids and no home: Debian's nobody.
const ordinaryUser = 65534

var (
	slipway string // the command under test
	project string // the checkout
	shared  string // the cache that this run shares, warm once the first build is through
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "slipway-buildtest-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	if project, err = filepath.Abs("../.."); err != nil {
		panic(err)
	}
	slipway = filepath.Join(dir, "slipway")
	build := exec.Command("go", "build", "-o", slipway, "./cmd/slipway")
	build.Dir, build.Stderr = project, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building the command:", err)
		return 1
	}
	if shared = os.Getenv("SLIPWAY_CACHE"); shared == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			panic(err)
		}
		shared = filepath.Join(base, "slipway")
	}
	return m.Run()
}

// result is how one run of the command ended.
type result struct {
	code           int
	stdout, stderr string
}

// runner is one way to run the command.
type runner struct {
	dir   string // working directory; the project if empty
	cache string // the shared one if empty
	umask string // octal; the process's own if empty
	user  bool   // as the ordinary user
	env   []string
}

func (r runner) command(ctx context.Context, args ...string) *exec.Cmd {
	argv := append([]string{slipway, "--progress", "lines"}, args...)
	if r.umask != "" {
		argv = append([]string{"sh", "-c", "umask " + r.umask + `; exec "$@"`, "sh"}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = r.dir
	if cmd.Dir == "" {
		cmd.Dir = project
	}
	cache := r.cache
	if cache == "" {
		cache = shared
	}
	cmd.Env = append(os.Environ(), "SLIPWAY_CACHE="+cache)
	cmd.Env = append(cmd.Env, r.env...)
	if r.user {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinaryUser, Gid: ordinaryUser}}
	}
	return cmd
}

func (r runner) run(t *testing.T, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := r.command(t.Context(), args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// succeed runs the command and fails the test unless it exits with 0.
func (r runner) succeed(t *testing.T, args ...string) result {
	t.Helper()
	got := r.run(t, args...)
	if got.code != 0 {
		t.Fatalf("slipway %s: exit status %d\n%s", strings.Join(args, " "), got.code, got.stderr)
	}
	return got
}

// refuse runs the command and fails the test unless it exits with the status and
// says every one of the words.
func (r runner) refuse(t *testing.T, code int, words []string, args ...string) result {
	t.Helper()
	got := r.run(t, args...)
	if got.code != code {
		t.Fatalf("slipway %s: exit status %d, want %d\n%s", strings.Join(args, " "), got.code, code, got.stderr)
	}
	for _, w := range words {
		if !strings.Contains(got.stderr, w) {
			t.Errorf("slipway %s does not say %q:\n%s", strings.Join(args, " "), w, got.stderr)
		}
	}
	return got
}

// cacheOf makes a cache that holds the shared one's packages and programs and no
// layer: what a build is cold from.
func cacheOf(t *testing.T, owner int) string {
	t.Helper()
	dir := filepath.Join(tempDir(t, owner), "cache")
	for _, kind := range []string{"blobs", "records/agent"} {
		src := filepath.Join(shared, kind)
		err := filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(shared, path)
			if err != nil {
				return err
			}
			dst := filepath.Join(dir, rel)
			if d.IsDir() {
				return os.MkdirAll(dst, 0o755)
			}
			return copyFile(dst, path)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := copyFile(filepath.Join(dir, "images.lock"), lockPath()); err != nil {
		t.Fatal(err)
	}
	chown(t, dir, owner)
	return dir
}

// tempDir is a directory of the owner's, outside anything that is root's alone.
func tempDir(t *testing.T, owner int) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "slipway-buildtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(path, 0o700)
			}
			return nil
		})
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := copyFile(filepath.Join(dir, "images.lock"), lockPath()); err != nil {
		t.Fatal(err)
	}
	chown(t, dir, owner)
	return dir
}

func chown(t *testing.T, dir string, owner int) {
	t.Helper()
	if owner == os.Getuid() {
		return
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, owner, owner)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, st.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// copyProject makes a copy of the checkout's inputs that a test may edit. Its images.lock
// is the one that these tests run with, which only root may be able to read.
func copyProject(t *testing.T, owner int) string {
	t.Helper()
	dir := filepath.Join(tempDir(t, owner), "project")
	for _, part := range []string{"profiles", "overlays", "cmd", "firstboot", "builder", "internal", "go.mod", "go.sum", "images.lock"} {
		err := filepath.WalkDir(filepath.Join(project, part), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(project, path)
			if err != nil {
				return err
			}
			dst := filepath.Join(dir, rel)
			switch {
			case d.IsDir():
				return os.MkdirAll(dst, 0o755)
			case d.Type()&fs.ModeSymlink != 0:
				target, err := os.Readlink(path)
				if err != nil {
					return err
				}
				return os.Symlink(target, dst)
			}
			return copyFile(dst, path)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := copyFile(filepath.Join(dir, "images.lock"), lockPath()); err != nil {
		t.Fatal(err)
	}
	chown(t, dir, owner)
	return dir
}

// hashes returns the SHA-256 of every file in dir by name.
func hashes(t *testing.T, dir string) map[string]string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, d := range list {
		f, err := os.Open(filepath.Join(dir, d.Name()))
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		out[d.Name()] = hex.EncodeToString(h.Sum(nil))
	}
	return out
}

// assertEmpty fails the test if dir holds anything, hidden files too.
func assertEmpty(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, d := range list {
		t.Errorf("%s was left behind in the output directory", d.Name())
	}
}

// warm makes sure that the shared cache holds the packages and programs of role.
func warm(t *testing.T, role string) {
	t.Helper()
	runner{}.succeed(t, "build", role, "--format", "qcow2", "--output", t.TempDir())
}

func TestSameInputsSameBytesWhoeverBuildsWhereverAndWhenever(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test builds as root and as an ordinary user: run it as root")
	}
	const role, formats = "balancer", "qcow2,ova,vmdk,raw"
	// With the layers that root has built at some time, for the images or for another test.
	asRoot := tempDir(t, 0)
	first := runner{umask: "022"}
	first.succeed(t, "build", role, "--format", formats, "--output", filepath.Join(asRoot, "out"))

	asUser := tempDir(t, ordinaryUser)
	second := runner{cache: cacheOf(t, ordinaryUser), umask: "077", user: true, dir: copyProject(t, ordinaryUser),
		env: []string{"SLIPWAY_LOCK=", "HOME=" + asUser, "TZ=Pacific/Auckland", "LC_ALL=C.UTF-8", "TMPDIR=" + asUser, "GOCACHE=" + filepath.Join(asUser, "gocache")}}
	second.succeed(t, "build", role, "--format", formats, "--output", filepath.Join(asUser, "elsewhere"))

	a, b := hashes(t, filepath.Join(asRoot, "out")), hashes(t, filepath.Join(asUser, "elsewhere"))
	if len(a) != 4 {
		t.Errorf("root's build wrote %v, want four files", a)
	}
	for name, sum := range a {
		if b[name] != sum {
			t.Errorf("%s: root's build gives %s, the ordinary user's %s", name, sum, b[name])
		}
	}
}

func TestAnOverlayEditRebuildsOnlyTheConfigLayer(t *testing.T) {
	const role = "balancer"
	warm(t, role)
	r := runner{dir: copyProject(t, os.Getuid())}
	out := t.TempDir()
	r.succeed(t, "build", role, "--format", "qcow2", "--output", out)
	edited := filepath.Join(r.dir, "overlays", "base", "etc", "slipway-test-edit")
	if err := os.MkdirAll(filepath.Dir(edited), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(edited, []byte("edited\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := r.succeed(t, "build", role, "--format", "qcow2", "--output", out, "--json")
	var report struct {
		Layers []struct {
			Name   string
			Cached bool
		}
	}
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
		t.Fatalf("--json printed no JSON: %v\n%s", err, got.stdout)
	}
	if len(report.Layers) != 3 {
		t.Fatalf("%d layers, want base, packages and config: %s", len(report.Layers), got.stdout)
	}
	for _, l := range report.Layers {
		if want := l.Name != "config"; l.Cached != want {
			t.Errorf("layer %s: cached is %v, want %v", l.Name, l.Cached, want)
		}
	}
}

func TestAWrongRoleNameIsRefusedWithTheNearest(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	runner{}.refuse(t, 3, []string{"db-mastr", "db-master"}, "build", "db-mastr", "--output", out)
	assertEmpty(t, out)
}

func TestAWrongFormatIsRefused(t *testing.T) {
	runner{}.refuse(t, 2, []string{"qcow3", "qcow2"}, "build", "balancer", "--format", "qcow3", "--output", t.TempDir())
}

func TestAnUnreadableMirrorEndsInOneErrorAndANextRunThatWorks(t *testing.T) {
	warm(t, "balancer")
	empty := tempDir(t, os.Getuid())
	out := filepath.Join(t.TempDir(), "out")
	r := runner{cache: filepath.Join(empty, "cache"), env: []string{"SLIPWAY_MIRROR=http://127.0.0.1:9/debian"}}
	got := r.refuse(t, 5, []string{"127.0.0.1:9"}, "build", "balancer", "--output", out)
	if n := strings.Count(got.stderr, "slipway: "); n != 1 {
		t.Errorf("%d error lines, want one:\n%s", n, got.stderr)
	}
	assertEmpty(t, out)
	runner{}.succeed(t, "build", "balancer", "--format", "qcow2", "--output", out)
}

func TestACorruptedCachedPackageIsFetchedAgain(t *testing.T) {
	warm(t, "balancer")
	cache := cacheOf(t, os.Getuid())
	victim := filepath.Join(cache, blobOf(t, "haproxy"))
	data, err := os.ReadFile(victim)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 0x40
	if err := os.Chmod(victim, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(victim, data, 0o644); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	runner{cache: cache}.succeed(t, "build", "balancer", "--format", "qcow2", "--output", out)
	healed, err := os.ReadFile(victim)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(healed, data) {
		t.Error("the corrupted package is still in the cache")
	}
}

// lockPath is the lock that these tests run with.
func lockPath() string {
	return cmp.Or(os.Getenv("SLIPWAY_LOCK"), filepath.Join(project, "images.lock"))
}

// blobOf is the path in a cache of the package's .deb, by the lock.
func blobOf(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(lockPath())
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		fields := strings.Fields(line)
		at := 0
		if len(fields) > 1 && fields[0] == "deb" {
			at = 1
		}
		if len(fields) < 4 || fields[at] != name {
			continue
		}
		for _, f := range fields {
			f = strings.TrimPrefix(f, "sha256=")
			f = strings.TrimPrefix(f, "sha256:")
			if len(f) == 64 {
				return filepath.Join("blobs", f[:2], f)
			}
		}
	}
	t.Fatalf("%s is not in %s", name, lockPath())
	return ""
}

func TestAFullDiskEndsInOneErrorAndANextRunThatWorks(t *testing.T) {
	warm(t, "balancer")
	out := tempDir(t, os.Getuid())
	// A file system of 40 MiB, mounted where only this test's namespace sees it.
	script := `mount -t tmpfs -o size=40m tmpfs "$1" && shift && exec "$@"`
	argv := append([]string{"-m", "sh", "-c", script, "sh", out}, slipway, "--progress", "none", "build", "balancer", "--format", "qcow2,ova", "--output", filepath.Join(out, "images"))
	if os.Getuid() != 0 {
		argv = append([]string{"-r"}, argv...)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", argv...)
	cmd.Dir = project
	cmd.Env = append(os.Environ(), "SLIPWAY_CACHE="+shared)
	stderr, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Fatalf("exit status %d, want 7 (disk full)\n%s", code, stderr)
	}
	if !strings.Contains(string(stderr), "no space left") {
		t.Errorf("the error does not say that the disk is full:\n%s", stderr)
	}
	runner{}.succeed(t, "build", "balancer", "--format", "qcow2", "--output", filepath.Join(out, "images"))
}

// TestAKilledBuildLeavesTheNextRunToWork kills cold builds at several moments,
// by SIGKILL and by Ctrl-C, and wants the next run to give the same bytes.
func TestAKilledBuildLeavesTheNextRunToWork(t *testing.T) {
	warm(t, "balancer")
	want := t.TempDir()
	runner{}.succeed(t, "build", "balancer", "--format", "qcow2", "--output", want)

	cache := cacheOf(t, os.Getuid())
	out := filepath.Join(t.TempDir(), "out")
	r := runner{cache: cache}
	for i, kill := range []struct {
		after  time.Duration
		signal syscall.Signal
	}{
		{500 * time.Millisecond, syscall.SIGKILL},
		{2 * time.Second, syscall.SIGINT},
		{5 * time.Second, syscall.SIGKILL},
		{8 * time.Second, syscall.SIGINT},
	} {
		cmd := r.command(t.Context(), "build", "balancer", "--format", "qcow2", "--output", out)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(kill.after, func() { cmd.Process.Signal(kill.signal) })
		cmd.Wait()
		timer.Stop()
		if cmd.ProcessState.Success() {
			break // built before its time came; the kills before this one count
		}
		if kill.signal == syscall.SIGINT {
			if code := cmd.ProcessState.ExitCode(); code != 130 {
				t.Errorf("kill %d: exit status %d after Ctrl-C, want 130\n%s", i, code, stderr.String())
			}
			assertEmpty(t, out)
			assertEmpty(t, filepath.Join(cache, "sessions"))
		}
	}
	r.succeed(t, "build", "balancer", "--format", "qcow2", "--output", out)
	if a, b := hashes(t, want), hashes(t, out); a["balancer.qcow2"] != b["balancer.qcow2"] || len(b) != 1 {
		t.Errorf("after the kills the build gives %v, want %v", b, a)
	}
}

func TestAnEditedLockIsRefusedWithItsLine(t *testing.T) {
	r := runner{dir: copyProject(t, os.Getuid()), env: []string{"SLIPWAY_LOCK="}}
	path := filepath.Join(r.dir, "images.lock")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(data), "haproxy", "haproxi", 1)
	if err := os.WriteFile(path, []byte(edited), 0o644); err != nil {
		t.Fatal(err)
	}
	r.refuse(t, 3, []string{"images.lock", "slipway lock"}, "build", "balancer", "--output", t.TempDir())
}

func TestAStaleLockIsRefusedWithTheMend(t *testing.T) {
	r := runner{dir: copyProject(t, os.Getuid()), env: []string{"SLIPWAY_LOCK="}}
	path := filepath.Join(r.dir, "profiles", "balancer.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(data), "packages:\n", "packages:\n  - cowsay\n", 1)
	if err := os.WriteFile(path, []byte(edited), 0o644); err != nil {
		t.Fatal(err)
	}
	r.refuse(t, 3, []string{"cowsay", "slipway lock"}, "build", "balancer", "--output", t.TempDir())
}

func TestAFailedMaintainerScriptShowsItsLogAndItsPackage(t *testing.T) {
	warm(t, "balancer")
	r := runner{dir: copyProject(t, os.Getuid())}
	// haproxy's postinst calls adduser, which a preseeded file makes no program.
	path := filepath.Join(r.dir, "profiles", "balancer.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	edited := string(data) + "\npreseed:\n  /usr/sbin/adduser: |\n    this is no program\n"
	if err := os.WriteFile(path, []byte(edited), 0o644); err != nil {
		t.Fatal(err)
	}
	r.refuse(t, 9, []string{"haproxy", "adduser", "--shell-on-failure", "balancer.log"}, "build", "balancer", "--output", t.TempDir())
}
