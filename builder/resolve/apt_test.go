package resolve_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/builder/resolve"
)

// oracle is the machine's own apt, made to look at nothing of the machine: its
// sources, lists and status file are in a directory of the test.
type oracle struct {
	dir     string
	archive *apt.Archive
}

// newOracle loads a distribution's archive and lets apt do the same.
func newOracle(t *testing.T, distribution string) *oracle {
	t.Helper()
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Fatal("this test compares with apt-get, which this machine lacks; run it on Debian, or: apt-get install apt")
	}
	d, err := apt.LoadDistribution(distribution)
	if err != nil {
		t.Fatal(err)
	}
	sources, err := apt.MachineSources("/")
	if err != nil {
		t.Fatal(err)
	}
	mirrors, err := apt.Mirrors(d, nil, os.Getenv("SLIPWAY_MIRROR"), sources)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	archive, err := apt.Load(t.Context(), c, d, mirrors, apt.LoadOptions{AllowExpired: true})
	if err != nil {
		t.Fatal(err)
	}

	o := &oracle{dir: t.TempDir(), archive: archive}
	for _, sub := range []string{"etc/apt/preferences.d", "etc/apt/apt.conf.d", "etc/apt/sources.list.d", "etc/apt/trusted.gpg.d", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg", "var/log/apt"} {
		if err := os.MkdirAll(filepath.Join(o.dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := filepath.Glob("../apt/keys/*.asc")
	if err != nil || len(keys) == 0 {
		t.Fatal("no keys", err)
	}
	for _, key := range keys {
		b, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		o.write(t, "etc/apt/trusted.gpg.d/"+filepath.Base(key), string(b))
	}
	var list strings.Builder
	for _, a := range d.Archives {
		for _, suite := range a.Suites {
			fmt.Fprintf(&list, "deb [arch=%s] %s %s %s\n", d.Arch, mirrors[a.Alias][0], suite, strings.Join(d.Components, " "))
		}
	}
	o.write(t, "etc/apt/sources.list", list.String())
	o.write(t, "apt.conf", fmt.Sprintf(`
Dir %q;
Dir::State::status %q;
APT::Architecture %q;
APT::Architectures { %q; };
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
`, o.dir, o.dir+"/var/lib/dpkg/status", d.Arch, d.Arch))
	o.installed(t, nil)
	if out, err := o.run(t.Context(), "update"); err != nil {
		t.Fatalf("apt-get update: %v\n%s", err, out)
	}
	return o
}

func (o *oracle) write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(o.dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (o *oracle) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "APT_CONFIG="+o.dir+"/apt.conf", "LC_ALL=C")
	return cmd
}

func (o *oracle) run(ctx context.Context, args ...string) (string, error) {
	out, err := o.command(ctx, "apt-get", args...).CombinedOutput()
	return string(out), err
}

// installed makes apt believe that these packages are installed. It takes the
// paragraphs from apt's own index: apt compares more fields than the version to
// tell whether an installed package is the one in the archive.
func (o *oracle) installed(t *testing.T, packages []*apt.Package) {
	t.Helper()
	var status strings.Builder
	if len(packages) > 0 {
		args := []string{"show", "--no-all-versions"}
		for _, p := range packages {
			args = append(args, p.Name+"="+p.Version)
		}
		out, err := o.command(t.Context(), "apt-cache", args...).Output()
		if err != nil {
			t.Fatalf("apt-cache show: %v", err)
		}
		for paragraph := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n\n") {
			fmt.Fprintf(&status, "%s\nStatus: install ok installed\n\n", strings.TrimSpace(paragraph))
		}
	}
	o.write(t, "var/lib/dpkg/status", status.String())
}

// uriLine is that of a package that apt would download: its file is named
// NAME_VERSION_ARCHITECTURE.deb, with the colon of an epoch written as %3a.
var uriLine = regexp.MustCompile(`^'\S+' ([^_ ]+)_([^_ ]+)_[^_ ]+\.deb `)

// closure asks apt what it would install. To print where that is takes it a third of the
// time that a simulation takes.
func (o *oracle) closure(ctx context.Context, roots []string) ([]string, error) {
	out, err := o.run(ctx, append([]string{"--print-uris", "--assume-yes", "--no-install-recommends", "install"}, roots...)...)
	if err != nil {
		return nil, fmt.Errorf("apt-get: %w\n%s", err, out)
	}
	var ids []string
	for line := range strings.Lines(out) {
		if m := uriLine.FindStringSubmatch(line); m != nil {
			ids = append(ids, m[1]+" "+strings.ReplaceAll(m[2], "%3a", ":"))
		} else if strings.HasPrefix(line, "'") {
			return nil, fmt.Errorf("apt-get says something unknown: %s", line)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

func idsOf(packages []*apt.Package) []string {
	var ids []string
	for _, p := range packages {
		ids = append(ids, p.ID())
	}
	slices.Sort(ids)
	return ids
}

// difference words how two sorted lists differ, or is empty.
func difference(ours, apts []string) string {
	var b strings.Builder
	for _, id := range ours {
		if _, found := slices.BinarySearch(apts, id); !found {
			fmt.Fprintf(&b, "  only slipway: %s\n", id)
		}
	}
	for _, id := range apts {
		if _, found := slices.BinarySearch(ours, id); !found {
			fmt.Fprintf(&b, "  only apt:     %s\n", id)
		}
	}
	return b.String()
}

func TestAptAgrees(t *testing.T) {
	o := newOracle(t, "../../profiles/distribution.yaml")
	t.Run("on random packages", func(t *testing.T) { onRandomPackages(t, o) })
	t.Run("on every profile", func(t *testing.T) { onEveryProfile(t, o) })
}

func onEveryProfile(t *testing.T, o *oracle) {
	u := resolve.NewUniverse(o.archive.Packages, nil)
	set, err := profile.Load("../../profiles")
	if err != nil {
		t.Fatal(err)
	}
	compare := func(name string, roots []string, installed []*apt.Package) []*apt.Package {
		slices.Sort(roots) // as images.lock has them
		ours, err := u.Closure(resolve.Request{Roots: roots, File: name, Installed: installed})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		apts, err := o.closure(t.Context(), roots)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := difference(idsOf(ours), apts); d != "" {
			t.Errorf("%s: slipway and apt differ:\n%s", name, d)
		}
		t.Logf("%s: %d packages", name, len(ours))
		return ours
	}
	base := compare("base", slices.Concat(u.Essential(), set.Base.Packages), nil)
	o.installed(t, base) // a role is installed onto the base
	for _, p := range append(set.Roles, set.Tools) {
		compare(p.Role, slices.Clone(p.Packages), base)
	}
}

// onRandomPackages compares the closures of packages drawn from
// the whole archive. Of 500 drawn with this seed on 2026-11-20, 499 agreed; the
// other one did once wanted packages were treated in their order. The bound
// leaves room for what a moving archive brings: where a conflict between
// alternatives needs apt's problem resolver with its scores, which is not
// followed here, a closure can differ.
func onRandomPackages(t *testing.T, o *oracle) {
	compareRandom(t, o, 100, 20261120, 98)
}

// TestAptAgreesOnAnotherRelease shows that another release needs configuration only.
func TestAptAgreesOnAnotherRelease(t *testing.T) {
	o := newOracle(t, "../apt/testdata/bookworm.yaml")
	u := resolve.NewUniverse(o.archive.Packages, nil)
	roots := append(u.Essential(), "haproxy", "keepalived", "linux-image-amd64", "openssh-server", "patroni", "postgresql-15", "systemd-sysv")
	ours, err := u.Closure(resolve.Request{Roots: roots})
	if err != nil {
		t.Fatal(err)
	}
	apts, err := o.closure(t.Context(), roots)
	if err != nil {
		t.Fatal(err)
	}
	if d := difference(idsOf(ours), apts); d != "" {
		t.Errorf("a database node: slipway and apt differ:\n%s", d)
	}
	compareRandom(t, o, 20, 12, 19)
}

// compareRandom draws count packages and wants at least atLeast closures to agree.
func compareRandom(t *testing.T, o *oracle, count int, seed uint64, atLeast int) {
	t.Helper()
	if s := os.Getenv("SLIPWAY_APT_SAMPLES"); s != "" { // for measuring the bound over more packages
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		atLeast, count = n*atLeast/count, n
	}
	t.Logf("seed %d", seed)
	u := resolve.NewUniverse(o.archive.Packages, nil)
	var names []string
	for _, p := range o.archive.Packages {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	random := rand.New(rand.NewPCG(seed, 0))
	drawn := make([]string, count)
	apts, aptErrs := make([][]string, count), make([]error, count)
	var asking errgroup.Group
	asking.SetLimit(runtime.NumCPU())
	for i := range drawn {
		drawn[i] = names[random.IntN(len(names))]
		asking.Go(func() error {
			apts[i], aptErrs[i] = o.closure(t.Context(), append(u.Essential(), drawn[i]))
			return nil
		})
	}
	asking.Wait()
	agreed, failed := 0, 0
	for i, name := range drawn {
		ours, err := u.Closure(resolve.Request{Roots: append(u.Essential(), name)})
		switch d := difference(idsOf(ours), apts[i]); {
		case err != nil && aptErrs[i] != nil:
			agreed++
			failed++
		case err != nil:
			t.Logf("%s: apt can, slipway says: %v", name, err)
		case aptErrs[i] != nil:
			t.Logf("%s: slipway can, apt says: %v", name, aptErrs[i])
		case d != "":
			t.Logf("%s: closures differ:\n%s", name, d)
		default:
			agreed++
		}
	}
	t.Logf("%d of %d closures agree (%d of them: both refuse)", agreed, count, failed)
	if agreed < atLeast {
		t.Errorf("want at least %d", atLeast)
	}
}
