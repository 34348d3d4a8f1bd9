package layer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Init()
	if input := os.Getenv(buildVariable); input != "" {
		os.Exit(buildAsChild(input))
	}
	status := m.Run()
	if shared.dir != "" {
		os.RemoveAll(filepath.Dir(shared.dir))
	}
	os.Exit(status)
}

// suite is the distribution that the tests install.
const suite = "trixie"

// baseRoots make a base layer that boots, but for its kernel, which takes most
// of the time and is tested with images.
var baseRoots = []string{
	"systemd-sysv", "systemd-resolved", "systemd-timesyncd", "udev", "dbus", "libpam-systemd", "openssh-server", "nftables",
	"e2fsprogs", "iproute2", "netbase", "ca-certificates", "kmod", "sudo", "less", "zstd",
}

// roleRoots bring diversions, users, alternatives, debconf, byte-compiled
// Python, triggers of the base's packages and Pre-Depends among themselves.
var roleRoots = []string{"keepalived", "etcd-server", "postgresql-common", "python3-yaml"}

const date = 1760000000

// need ends the test if an outside tool is missing.
func need(t *testing.T, tool, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Fatalf("%s is missing: apt-get install %s", tool, pkg)
	}
}

// mirror is the machine's own mirror of Debian, from its apt sources.
func mirror(t *testing.T) string {
	t.Helper()
	sources, err := apt.MachineSources("/")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sources {
		for _, name := range s.Suites {
			if slices.Contains([]string{"bookworm", "trixie", "forky", "sid", "stable"}, name) {
				return s.URI
			}
		}
	}
	t.Fatal("the machine's apt sources name no mirror of Debian: add one to /etc/apt/sources.list.d")
	return ""
}

// updated says that apt has read the mirror's lists in this test run.
var updated sync.Once

// packages has apt resolve and download the roots, and returns all packages
// that it would install on top of what is there already (a dpkg status file).
func packages(t *testing.T, status string, roots ...string) []layer.Deb {
	t.Helper()
	need(t, "apt-get", "apt")
	state := t.TempDir()
	dir, err := cache.DefaultDir()
	if err != nil {
		t.Fatal(err)
	}
	archives := filepath.Join(dir, "test-packages") // downloads are kept from run to run
	lists := filepath.Join(archives, "lists")
	for _, d := range []string{filepath.Join(archives, "partial"), filepath.Join(lists, "partial"), filepath.Join(state, "etc")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if status == "" {
		status = filepath.Join(state, "status")
		if err := os.WriteFile(status, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(state, "apt.conf")
	text := fmt.Sprintf(`Dir "/"; Dir::State %q; Dir::State::status %q; Dir::State::lists %q; Dir::Cache %q; Dir::Cache::archives %q;
Dir::Etc::sourcelist %q; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::parts "/dev/null"; Dir::Etc::main "/dev/null";
APT::Architecture "amd64"; APT::Architectures { "amd64"; }; APT::Install-Recommends "false"; Acquire::Languages "none";
APT::Sandbox::User "root"; Debug::NoLocking "true"; APT::Get::Assume-Yes "true"; Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Acquire::Check-Valid-Until "false"; APT::Keep-Downloaded-Packages "true"; Dir::State::extended_states %q;
`, state, status, lists, state, archives, filepath.Join(state, "sources.list"), filepath.Join(state, "extended"))
	for name, content := range map[string]string{config: text, filepath.Join(state, "sources.list"): "deb [trusted=yes] " + mirror(t) + " " + suite + " main\n"} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) string {
		cmd := exec.Command("apt-get", args...)
		cmd.Env = append(os.Environ(), "APT_CONFIG="+config, "LC_ALL=C")
		out, err := cmd.Output()
		if err != nil {
			message := ""
			if exit, ok := err.(*exec.ExitError); ok {
				message = string(exit.Stderr)
			}
			t.Fatalf("apt-get %v: %v\n%s%s", args, err, out, message)
		}
		return string(out)
	}
	updated.Do(func() { run("update", "-qq") })
	install := append([]string{"install", "-qq"}, roots...)
	var files []string
	there := true
	// It prints what is not downloaded yet, so it is shown an empty directory.
	for line := range strings.Lines(run(append(install, "--print-uris", "-o", "Dir::Cache::archives="+state)...)) {
		if words := strings.Fields(line); len(words) > 1 {
			file := filepath.Join(archives, words[1])
			_, err := os.Stat(file)
			files, there = append(files, file), there && err == nil
		}
	}
	if !there {
		run(append(install, "--download-only")...)
	}
	var debs []layer.Deb
	for _, file := range files {
		f, err := deb.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		debs = append(debs, layer.Deb{Name: f.Fields.Get("Package"), Version: f.Fields.Get("Version"), Arch: f.Fields.Get("Architecture"), Path: file})
		f.Close()
	}
	sort.Slice(debs, func(i, j int) bool { return debs[i].Name < debs[j].Name })
	if len(debs) == 0 {
		t.Fatal("apt installs nothing")
	}
	return debs
}

// base is a base layer that all tests share and none may change.
type base struct {
	once sync.Once
	dir  string
	debs []layer.Deb
}

var shared base // made at most once in a test run; go test has no other place for it

func sharedBase(t *testing.T) *base {
	t.Helper()
	shared.once.Do(func() {
		shared.debs = packages(t, "", append([]string{"?essential"}, baseRoots...)...)
		dir, err := os.MkdirTemp("", "slipway-base")
		if err != nil {
			t.Fatal(err)
		}
		os.Chmod(dir, 0o755)
		shared.dir = filepath.Join(dir, "base")
		build(t, layer.Input{Name: "base", Debs: shared.debs, Dir: shared.dir, Work: filepath.Join(dir, "work")})
	})
	if shared.dir == "" {
		t.Fatal("there is no base layer: see the first test that failed")
	}
	return &shared
}

func build(t *testing.T, in layer.Input) *layer.Result {
	t.Helper()
	in.Date = date
	r, err := layer.Build(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// buildVariable holds the Input of a process that builds as another user.
const buildVariable = "SLIPWAY_TEST_BUILD"

func buildAsChild(input string) int {
	var in layer.Input
	if err := json.Unmarshal([]byte(input), &in); err != nil {
		fmt.Println(err)
		return 1
	}
	if _, err := layer.Build(context.Background(), in); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}
