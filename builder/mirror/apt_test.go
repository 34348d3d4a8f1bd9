package mirror_test

import (
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/serve"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/site"
)

// client is the real apt of this machine in a root of its own.
type client struct {
	t     *testing.T
	root  string
	types string // of archives: deb, or deb deb-src
}

// newClient makes a client of the repository at uri that trusts the key.
func newClient(t *testing.T, uri string, key []byte) client {
	t.Helper()
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Fatalf("apt-get is needed: %v", err)
	}
	c := client{t, t.TempDir(), "deb"}
	for _, dir := range []string{"etc/apt/apt.conf.d", "etc/apt/preferences.d", "etc/apt/sources.list.d", "etc/apt/trusted.gpg.d", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg"} {
		must(t, os.MkdirAll(filepath.Join(c.root, dir), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(c.root, "var/lib/dpkg/status"), nil, 0o644))
	c.trust(uri, key)
	return c
}

// trust writes the client's source, with the key inline as deb822 has it.
func (c client) trust(uri string, key []byte) {
	var inline strings.Builder
	for line := range strings.Lines(string(key)) {
		if line == "\n" {
			line = ".\n"
		}
		inline.WriteString(" " + line)
	}
	must(c.t, os.WriteFile(filepath.Join(c.root, "etc/apt/sources.list.d/mirror.sources"),
		fmt.Appendf(nil, "Types: %s\nURIs: %s\nSuites: test\nComponents: main\nSigned-By:\n%s", c.types, uri, inline.String()), 0o644))
}

// run runs apt-get and returns what it says.
func (c client) run(args ...string) (string, error) {
	argv := append([]string{"-o", "Dir=" + c.root, "-o", "Dir::State::status=" + filepath.Join(c.root, "var/lib/dpkg/status"),
		"-o", "APT::Architecture=amd64", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none",
		"-o", "Debug::NoLocking=true", "-o", "Acquire::http::Proxy=false"}, args...)
	cmd := exec.Command("apt-get", argv...)
	cmd.Dir = c.root
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must runs apt-get and wants it to succeed and to warn of nothing.
func (c client) must(args ...string) string {
	c.t.Helper()
	out, err := c.run(args...)
	if err != nil || strings.Contains(out, "W: ") || strings.Contains(out, "E: ") {
		c.t.Fatalf("apt-get %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func TestAptInstallsFromTheMirrorAlone(t *testing.T) {
	s, a := newSide(t, 1<<20)
	media, _ := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, media)
	handler, err := serve.New(filepath.Join(far, "public"), serve.Options{})
	must(t, err)
	server := httptest.NewServer(handler)
	defer server.Close()
	for _, uri := range []string{"file://" + filepath.Join(far, "public/debian"), server.URL + "/debian"} {
		c := newClient(t, uri, s.public(t))
		c.must("update")
		plan := c.must("-s", "install", "tool1", "tool9")
		for _, want := range []string{"Inst lib (1 ", "Inst tool1 (1 ", "Inst tool9 (1 ", "Inst part9 (1 "} {
			if !strings.Contains(plan, want) {
				t.Errorf("%s: no %q in\n%s", uri, want, plan)
			}
		}
		if out, err := c.run("-s", "install", "tool11"); err == nil {
			t.Errorf("%s: apt sees a package that was not carried:\n%s", uri, out)
		}
		c.must("download", "tool1")
		got, err := os.ReadFile(filepath.Join(c.root, "tool1_1_amd64.deb"))
		must(t, err)
		if want, _ := os.ReadFile(filepath.Join(a.Dir, "pool/tool1_1_amd64.deb")); string(got) != string(want) {
			t.Errorf("%s: another package came", uri)
		}

		stranger, err := sign.Generate("Stranger", time.Now().Add(-time.Hour), 0)
		must(t, err)
		if out, err := newClient(t, uri, stranger.Public()).run("update"); err == nil && !strings.Contains(out, "W: ") {
			t.Errorf("%s: apt takes a stranger's key for the site's:\n%s", uri, out)
		}
	}
}

func TestAptFollowsAnUpdateAndARotation(t *testing.T) {
	s, a := newSide(t, 1<<20)
	first := s.public(t)
	media, _ := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, media)
	uri := "file://" + filepath.Join(far, "public/debian")
	c := newClient(t, uri, first)
	c.must("update")

	keys, err := site.Open(s.Site)
	must(t, err)
	young, err := keys.Rotate(nil, made.Add(time.Hour), 0, 10*24*time.Hour)
	must(t, err)
	keys.Close()
	s.Now = made.Add(24 * time.Hour)
	a.Date = a.Date.Add(24 * time.Hour)
	a.Publish(packages(2)...)
	s.relock(t)
	next, _ := s.mustCreate(t, receiptOf(t, far))
	mustTake(t, far, next)

	// Signed by both: whoever knows either takes it.
	for name, key := range map[string][]byte{"the old": first, "the new": young.Public(), "both": append(append([]byte(nil), first...), young.Public()...)} {
		c := newClient(t, uri, key)
		c.must("update")
		if plan := c.must("-s", "install", "tool1"); !strings.Contains(plan, "Inst lib (2 ") {
			t.Errorf("with %s key trusted, apt does not see the update:\n%s", name, plan)
		}
	}
	// The client of the first bundle sees the second without any change to it.
	c.must("update")
	if plan := c.must("-s", "install", "tool1"); !strings.Contains(plan, "Inst lib (2 ") {
		t.Errorf("the client of the first bundle does not see the update:\n%s", plan)
	}
}

func TestAptGetsSourcesFromTheMirrorAlone(t *testing.T) {
	s, a := newSide(t, 1<<20)
	a.Sources = []string{"base_1", "lib_1", "tool1_1", "tool2_1", "other_3", "lib_2"}
	var published []string
	for _, p := range packages(1) {
		published = append(published, strings.Replace(p, "Package: tool3\n", "Package: tool3\nSource: tool1 (1)\n", 1))
	}
	a.Publish(published...)
	s.relock(t)
	s.sources = true
	media, res := s.mustCreate(t, nil)
	if res.Sources != 4 || !slices.Equal(res.NoSource, []string{"part9 1", "tool9 1"}) {
		t.Errorf("%d source packages, without are %v", res.Sources, res.NoSource)
	}
	far := s.far(t)
	mustTake(t, far, media)
	if r := mustBeWhole(t, far, a.Key()); r.Sources != 4 || r.Packages != 7 || r.Proven != 11 {
		t.Errorf("%d source packages and %d packages arrived, of which %d are proven by upstream's signature", r.Sources, r.Packages, r.Proven)
	}
	uri := "file://" + filepath.Join(far, "public/debian")
	c := newClient(t, uri, s.public(t))
	c.types = "deb deb-src"
	c.trust(uri, s.public(t))
	c.must("update")
	c.must("source", "--download-only", "tool3")
	for _, name := range []string{"tool1_1.dsc", "tool1_1.tar.xz"} {
		got, err := os.ReadFile(filepath.Join(c.root, name))
		must(t, err)
		if want, _ := os.ReadFile(filepath.Join(a.Dir, "pool/tool1", name)); string(got) != string(want) {
			t.Errorf("%s differs", name)
		}
	}
	if out, err := c.run("source", "--download-only", "other"); err == nil {
		t.Errorf("the source of what is not carried is there:\n%s", out)
	}
	// A source file that is damaged is named, and so is its volume.
	victim := filepath.Join(far, "public/debian/pool/tool1/tool1_1.tar.xz")
	must(t, os.Chmod(victim, 0o644))
	must(t, os.WriteFile(victim, []byte("the source tool1_1.tar.xy"), 0o644))
	if flaws, _ := wrong(t, far, a.Key(), false); !strings.Contains(strings.Join(flaws, "\n"), "tool1_1.tar.xz: is damaged") {
		t.Errorf("a damaged source is not found: %v", flaws)
	}
}

func TestAptTakesFromBackportsOnlyWhatIsAskedFor(t *testing.T) {
	s, a := newSide(t, 1<<20)
	a.Fields = []string{"NotAutomatic: yes", "ButAutomaticUpgrades: yes"}
	a.Publish(packages(1)...)
	s.relock(t)
	media, _ := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, media)
	c := newClient(t, "file://"+filepath.Join(far, "public/debian"), s.public(t))
	c.must("update")
	cmd := exec.Command("apt-cache", "-o", "Dir="+c.root, "-o", "Dir::State::status="+filepath.Join(c.root, "var/lib/dpkg/status"), "-o", "APT::Architecture=amd64", "policy", "tool1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), " 100 file:") {
		t.Errorf("its priority is not the 100 of apt_preferences(5): %v\n%s", err, out)
	}
}
