package layer_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"syscall"
	"testing"

	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
	"golang.org/x/sys/unix"
)

// describe writes a tree as text, a line an entry, content as its hash.
func describe(t *testing.T, tr *tree.Tree) []string {
	t.Helper()
	var out []string
	for _, e := range tr.Sorted() {
		line := fmt.Sprintf("%s kind=%d mode=%o owner=%d:%d time=%d target=%q link=%q device=%d:%d attributes=%v",
			e.Path, e.Kind, e.Perm, e.UID, e.GID, e.MTime, e.Target, e.LinkTo, e.Major, e.Minor, e.Xattrs)
		if e.Open != nil {
			r, err := e.Open()
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.New()
			if _, err := io.Copy(sum, r); err != nil {
				t.Fatal(err)
			}
			r.Close()
			line += fmt.Sprintf(" content=%x", sum.Sum(nil)[:8])
		}
		out = append(out, line)
	}
	return out
}

func read(t *testing.T, dir string, o layer.FromDirOptions) *tree.Tree {
	t.Helper()
	o.Date = date
	tr, err := layer.FromDir(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// inside runs a program in a session over the layers and returns what it prints.
func inside(t *testing.T, c sandbox.Config, args ...string) string {
	t.Helper()
	s, err := sandbox.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var out strings.Builder
	if err := s.Run(t.Context(), sandbox.Cmd{Args: args, Stdout: &out, Stderr: &out}); err != nil {
		t.Errorf("%v: %v", args, err)
	}
	return strings.TrimSpace(out.String())
}

func TestTheBaseLayerIsSound(t *testing.T) {
	b := sharedBase(t)
	over := sandbox.Config{Lower: []string{b.dir}, Upper: t.TempDir(), Work: t.TempDir()}
	if got := inside(t, over, "/usr/bin/dpkg", "--audit"); got != "" {
		t.Errorf("dpkg --audit:\n%s", got)
	}
	over.Upper, over.Work = t.TempDir(), t.TempDir()
	if got := inside(t, over, "/usr/bin/dpkg", "--verify"); got != "" {
		t.Errorf("dpkg --verify:\n%s", got)
	}
	status, err := os.ReadFile(filepath.Join(b.dir, "var/lib/dpkg/status"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(status), "\nStatus: install ok installed\n"); got != len(b.debs) {
		t.Errorf("%d packages are installed, %d were given", got, len(b.debs))
	}
	shadow, err := os.ReadFile(filepath.Join(b.dir, "etc/shadow"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(shadow)), "\n") {
		if fields := strings.Split(line, ":"); !strings.ContainsAny(fields[1][:1], "*!") {
			t.Errorf("an account with a password: %s", line)
		}
	}
	tr := read(t, b.dir, layer.FromDirOptions{})
	if e := tr.Get("etc/shadow"); e.GID != 42 || e.Perm != 0o640 {
		t.Errorf("/etc/shadow is %o, group %d", e.Perm, e.GID)
	}
	if e := tr.Get("etc/machine-id"); e == nil || e.Size != 0 {
		t.Errorf("/etc/machine-id: %+v", e)
	}
	for _, e := range tr.Sorted() {
		if strings.HasPrefix(e.Path, "etc/ssh/ssh_host_") || strings.HasSuffix(e.Path, ".dpkg-new") || strings.HasPrefix(e.Path, "run/") {
			t.Errorf("left behind: /%s", e.Path)
		}
	}
}

// A role layer holds what its packages add, and dpkg sees both as one system.
func TestARoleLayerAddsToTheBase(t *testing.T) {
	b := sharedBase(t)
	debs := packages(t, filepath.Join(b.dir, "var/lib/dpkg/status"), roleRoots...)
	dir := filepath.Join(t.TempDir(), "role")
	build(t, layer.Input{
		Name: "role", Debs: debs, Lower: b.dir, Dir: dir, Work: filepath.Join(t.TempDir(), "work"),
		Preseed: map[string][]byte{"etc/postgresql-common/createcluster.conf": []byte("create_main_cluster = false\n")},
	})
	tr := read(t, dir, layer.FromDirOptions{Upper: true})
	status, err := tr.ReadFile("var/lib/dpkg/status")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(status), "\nStatus: install ok installed\n"); got != len(b.debs)+len(debs) {
		t.Errorf("%d packages are installed, %d were given", got, len(b.debs)+len(debs))
	}
	if e := tr.Get("var/lib/etcd"); e == nil || e.UID == 0 {
		t.Errorf("/var/lib/etcd is not its service's: %+v", e)
	}
	if tr.Get("usr/bin/bash") != nil {
		t.Error("the layer repeats files of the base")
	}
	for _, p := range []string{"etc/systemd/system/multi-user.target.wants/keepalived.service", "etc/systemd/system/multi-user.target.wants/etcd.service"} {
		if tr.Get(p) == nil {
			t.Errorf("not enabled: %s", p)
		}
	}
	// ldconfig belongs to the base and ran because of the role's libraries.
	if cache, err := tr.ReadFile("etc/ld.so.cache"); err != nil || !strings.Contains(string(cache), "libyaml") {
		t.Errorf("the base's ldconfig trigger did not run: %v", err)
	}
	both := func() sandbox.Config {
		return sandbox.Config{Lower: []string{dir, b.dir}, Upper: t.TempDir(), Work: t.TempDir()}
	}
	if got := inside(t, both(), "/usr/bin/dpkg", "--audit"); got != "" {
		t.Errorf("dpkg --audit:\n%s", got)
	}
	if got := inside(t, both(), "/usr/bin/dpkg", "--verify"); got != "" && !onlyPreseeded(got) {
		t.Errorf("dpkg --verify:\n%s", got)
	}
}

func onlyPreseeded(verify string) bool {
	for _, line := range strings.Split(verify, "\n") {
		if !strings.HasSuffix(line, "/etc/postgresql-common/createcluster.conf") {
			return false
		}
	}
	return true
}

// small is a layer that builds fast: what dpkg and its scripts need.
func small(t *testing.T) []layer.Deb { return packages(t, "", "?essential", "dbus", "openssh-client") }

func TestRootAndOrdinaryUsersMakeTheSameLayer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test compares with root: run it as root")
	}
	debs := small(t)
	ours := filepath.Join(t.TempDir(), "a", "layer")
	build(t, layer.Input{Name: "small", Debs: debs, Dir: ours, Work: filepath.Join(t.TempDir(), "work")})

	const nobody = 65534
	home := t.TempDir()
	theirs := filepath.Join(home, "other", "place")
	work := filepath.Join(home, "work")
	binary := filepath.Join(home, "test")
	content, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, content, 0o755); err != nil {
		t.Fatal(err)
	}
	// The cache may stand where others cannot go; another user gets copies.
	for i, d := range debs {
		content, err := os.ReadFile(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		debs[i].Path = filepath.Join(home, filepath.Base(d.Path))
		if err := os.WriteFile(debs[i].Path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{home, filepath.Dir(home)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(home, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	input, err := json.Marshal(struct {
		Name, Dir, Work string
		Debs            []layer.Deb
		Date            int64
	}{"small", theirs, work, debs, date})
	if err != nil {
		t.Fatal(err)
	}
	old := unix.Umask(0o077)
	cmd := exec.Command(binary)
	cmd.Dir, cmd.Env = home, []string{buildVariable + "=" + string(input), "TMPDIR=" + home, "TZ=Asia/Tokyo"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	unix.Umask(old)
	if err != nil {
		t.Fatalf("as an ordinary user: %v\n%s", err, out)
	}
	a, b := describe(t, read(t, ours, layer.FromDirOptions{})), describe(t, read(t, theirs, layer.FromDirOptions{}))
	for _, d := range difference(a, b) {
		t.Error(d)
	}
}

// difference lists lines that only one of two has.
func difference(a, b []string) []string {
	count := map[string]int{}
	for _, line := range a {
		count[line]++
	}
	for _, line := range b {
		count[line]--
	}
	var out []string
	for line, n := range count {
		if n > 0 {
			out = append(out, "first only:  "+line)
		} else if n < 0 {
			out = append(out, "second only: "+line)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i][13:] < out[j][13:] })
	return out
}

// local makes a package whose scripts are given.
func local(t *testing.T, name string, scripts map[string]string, fields ...string) layer.Deb {
	t.Helper()
	need(t, "dpkg-deb", "dpkg")
	dir := t.TempDir()
	text := "Package: " + name + "\nVersion: 1\nArchitecture: all\nMaintainer: test <test@example.org>\nDescription: test\n"
	files := map[string]string{"control": text + strings.Join(append(fields, ""), "\n")}
	for script, body := range scripts {
		files[script] = body
	}
	if err := os.MkdirAll(filepath.Join(dir, "DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	for file, body := range files {
		if err := os.WriteFile(filepath.Join(dir, "DEBIAN", file), []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, name+".txt"), []byte(name), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), name+".deb")
	if text, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", dir, out).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, text)
	}
	return layer.Deb{Name: name, Version: "1", Arch: "all", Path: out}
}

func TestAFailedScriptIsNamedWithItsLog(t *testing.T) {
	b := sharedBase(t)
	for script, first := range map[string]string{"postinst": "postinst of package broken failed", "preinst": "preinst of package broken failed"} {
		t.Run(script, func(t *testing.T) {
			broken := local(t, "broken", map[string]string{script: "#!/bin/sh\necho before it breaks\nexit 42\n"})
			work := t.TempDir()
			_, err := layer.Build(t.Context(), layer.Input{
				Name: "role", Debs: []layer.Deb{broken}, Lower: b.dir, Dir: filepath.Join(t.TempDir(), "role"), Work: work, Date: date,
			})
			if fault.Of(err) != fault.Failed {
				t.Fatalf("class %v: %v", fault.Of(err), err)
			}
			for _, want := range []string{first, "42", "before it breaks"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			log := filepath.Join(work, "role.log")
			if !strings.Contains(fault.Mend(err), log) {
				t.Errorf("the log's path is not in: %s", fault.Mend(err))
			}
			if text, err := os.ReadFile(log); err != nil || !strings.Contains(string(text), "before it breaks") {
				t.Errorf("log: %v\n%s", err, text)
			}
		})
	}
}

func TestScriptsRunAsOnADebianSystem(t *testing.T) {
	b := sharedBase(t)
	first := local(t, "zz-first", map[string]string{
		"postinst": "#!/bin/sh\nset -e\ngetent passwd zz >/dev/null || adduser --system --group --home /var/lib/zz zz\nchown zz:zz /zz-first.txt\n",
	}, "Depends: adduser")
	second := local(t, "aa-second", map[string]string{
		// Its Pre-Depends is configured and its own files are not there yet.
		"preinst": "#!/bin/sh\nset -e\ntest \"$1\" = install\ngetent passwd zz\ntest ! -e /aa-second.txt\ndpkg-divert --package aa-second --divert /zz-third.real --rename /zz-third.txt\n",
		// A service must not start.
		"postinst": "#!/bin/sh\nset -e\ntest \"$1\" = configure\ninvoke-rc.d --quiet ssh start\ntest ! -e /run/sshd.pid\n",
	}, "Pre-Depends: zz-first")
	third := local(t, "zz-third", map[string]string{"preinst": "#!/bin/sh\nexit 0\n"}, "Pre-Depends: aa-second")
	dir := filepath.Join(t.TempDir(), "role")
	build(t, layer.Input{Name: "role", Debs: []layer.Deb{first, second, third}, Lower: b.dir, Dir: dir, Work: t.TempDir()})
	tr := read(t, dir, layer.FromDirOptions{Upper: true})
	if e := tr.Get("zz-first.txt"); e == nil || e.UID == 0 || e.GID == 0 {
		t.Errorf("owner given by a script: %+v", e)
	}
	if tr.Get("zz-third.real") == nil || tr.Get("zz-third.txt") != nil {
		t.Error("a diversion was not followed")
	}
	if tr.Get("usr/sbin/policy-rc.d") != nil {
		t.Error("policy-rc.d was left behind")
	}
}

func TestTwoPackagesWithOnePath(t *testing.T) {
	b := sharedBase(t)
	with := func(name string, fields ...string) layer.Deb {
		d := local(t, name, nil, fields...)
		dir := t.TempDir()
		if out, err := exec.Command("dpkg-deb", "-R", d.Path, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if err := os.WriteFile(filepath.Join(dir, "shared"), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", dir, d.Path).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return d
	}
	build := func(debs ...layer.Deb) (string, error) {
		dir := filepath.Join(t.TempDir(), "role")
		_, err := layer.Build(t.Context(), layer.Input{Name: "role", Debs: debs, Lower: b.dir, Dir: dir, Work: t.TempDir(), Date: date})
		return dir, err
	}
	if _, err := build(with("aa"), with("bb")); fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "/shared") {
		t.Errorf("a conflict: %v", err)
	}
	for _, winner := range []string{"aa", "bb"} {
		loser := map[string]string{"aa": "bb", "bb": "aa"}[winner]
		dir, err := build(with(winner, "Replaces: "+loser), with(loser))
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(filepath.Join(dir, "shared")); string(got) != winner {
			t.Errorf("%s replaces %s, yet the file is %q's", winner, loser, got)
		}
		if list, _ := os.ReadFile(filepath.Join(dir, "var/lib/dpkg/info", loser+".list")); strings.Contains(string(list), "/shared") {
			t.Errorf("%s still lists the file", loser)
		}
	}
}

func TestAPackageThatIsNotTheLockedOneIsRefused(t *testing.T) {
	d := local(t, "aa", nil)
	d.Version = "2"
	_, err := layer.Build(t.Context(), layer.Input{Name: "x", Debs: []layer.Deb{d}, Dir: filepath.Join(t.TempDir(), "x"), Work: t.TempDir()})
	if fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), d.Path) {
		t.Errorf("got %v", err)
	}
}

func TestACancelledBuildEndsAndLeavesNothingRunning(t *testing.T) {
	b := sharedBase(t)
	ctx, cancel := context.WithCancel(t.Context())
	hang := local(t, "hang", map[string]string{"postinst": "#!/bin/sh\necho hanging\nsleep infinity\n"})
	_, err := layer.Build(ctx, layer.Input{
		Name: "role", Debs: []layer.Deb{hang}, Lower: b.dir, Dir: filepath.Join(t.TempDir(), "role"), Work: t.TempDir(), Date: date,
		Log: onText("hanging", cancel),
	})
	if err != context.Canceled {
		t.Errorf("got %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if regexp.MustCompile(`(?m)^overlay .*userxattr`).Match(mounts) {
		t.Errorf("a mount is left:\n%s", mounts)
	}
}

// onText calls a function when a text is written.
func onText(text string, call func()) io.Writer { return &trigger{text: text, call: call} }

type trigger struct {
	text, seen string
	call       func()
}

func (w *trigger) Write(p []byte) (int, error) {
	if w.seen += string(p); strings.Contains(w.seen, w.text) {
		w.call()
	}
	return len(p), nil
}

func TestTransformedFilesKeepDpkgHonest(t *testing.T) {
	b := sharedBase(t)
	d := local(t, "aa", map[string]string{"md5sums": "2f5e4e3c0e9a0c5bb1b0fd3ec3a2dd57  aa.txt\n"})
	dir := filepath.Join(t.TempDir(), "role")
	build(t, layer.Input{
		Name: "role", Debs: []layer.Deb{d}, Lower: b.dir, Dir: dir, Work: t.TempDir(),
		Transform: func(p string) (string, deb.Convert) {
			if p != "aa.txt" {
				return "", nil
			}
			return "aa.plain", func(io.Reader) (io.Reader, error) { return strings.NewReader("plain"), nil }
		},
	})
	both := sandbox.Config{Lower: []string{dir, b.dir}, Upper: t.TempDir(), Work: t.TempDir()}
	if got := inside(t, both, "/usr/bin/dpkg", "--verify", "aa"); got != "" {
		t.Errorf("dpkg --verify:\n%s", got)
	}
	if got := inside(t, sandbox.Config{Lower: []string{dir, b.dir}, Upper: t.TempDir(), Work: t.TempDir()}, "/usr/bin/dpkg", "-S", "/aa.plain"); got != "aa: /aa.plain" {
		t.Errorf("dpkg -S: %s", got)
	}
}

func TestWorkingAheadChangesNothing(t *testing.T) {
	b := sharedBase(t)
	debs := packages(t, filepath.Join(b.dir, "var/lib/dpkg/status"), "cpio", "psmisc", "ssl-cert")
	spool, err := layer.NewSpool(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	// While this layer's script dawdles, the next layer's packages get ready.
	waits := local(t, "waits", map[string]string{"postinst": "#!/bin/sh\nsleep 3\n"})
	build(t, layer.Input{Name: "role", Debs: []layer.Deb{waits}, Lower: b.dir, Dir: filepath.Join(t.TempDir(), "x"), Work: t.TempDir(), Spool: spool, Ahead: debs})
	var trees [2][]string
	for i, s := range []*layer.Spool{nil, spool} {
		dir := filepath.Join(t.TempDir(), "role")
		build(t, layer.Input{Name: "role", Debs: debs, Lower: b.dir, Dir: dir, Work: t.TempDir(), Spool: s})
		trees[i] = describe(t, read(t, dir, layer.FromDirOptions{Upper: true}))
	}
	for _, d := range difference(trees[0], trees[1]) {
		t.Error(d)
	}
	if err := spool.Close(); err != nil {
		t.Error(err)
	}
}
