package mirror

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/mirror/repository"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// told remembers what steps report.
type told struct{ changed []string }

func (*told) Waiting(string)         {}
func (r *told) Changed(what string)  { r.changed = append(r.changed, what) }
func (*told) Warn(node.Warning)      {}
func (r *told) Say(line string)      { r.changed = append(r.changed, line) }
func (*told) HostKey(string, string) {}
func (*told) Login(string)           {}

// commands are those that a step runs.
type commands struct {
	ran    []string
	answer func(c node.Command) (string, error)
}

func (r *commands) Run(_ context.Context, c node.Command) (string, error) {
	r.ran = append(r.ran, strings.Join(c.Argv, " "))
	if r.answer != nil {
		return r.answer(c)
	}
	return "active\n", nil
}

// testNode is a node on which systemd runs, with apt and Docker, in a plan with a mirror.
func testNode(t *testing.T, m *plan.Mirror) (*node.Node, *commands, *told) {
	t.Helper()
	run, report := &commands{}, &told{}
	n := &node.Node{Root: t.TempDir(), Run: run, Report: report, Role: &manifest.Role{Archives: []manifest.Archive{
		{Path: "debian", Suites: []string{"trixie", "trixie-updates"}, Components: []string{"main"}},
		{Path: "debian-security", Suites: []string{"trixie-security"}, Components: []string{"main"}},
	}}}
	n.Member = &member.Member{Plan: &plan.Plan{Mirror: m}, Self: plan.Node{Name: "db1"}}
	n.Member.Authority = "the cluster's authority\n"
	for path, content := range map[string]string{
		"/etc/apt/apt.conf.d/01autoremove": "", "/etc/apt/sources.list.d/.keep": "", "/run/systemd/system/.keep": "",
		"/usr/bin/systemctl": "#!", "/usr/sbin/dockerd": "#!", daemonPath: "{\n  \"data-root\": \"/var/lib/docker\",\n  \"max-concurrent-downloads\": 3\n}\n",
		"/etc/passwd": fmt.Sprintf("mirror:x:%d:%d::/:/usr/sbin/nologin\n", os.Getuid(), os.Getgid()),
	} {
		put(t, n, path, content)
	}
	return n, run, report
}

func put(t *testing.T, n *node.Node, path, content string) {
	t.Helper()
	if _, err := n.Write(path, 0o755, []byte(content)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, n *node.Node, path string) string {
	t.Helper()
	data, err := n.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func apply(t *testing.T, n *node.Node) {
	t.Helper()
	if err := (Configure{}).Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

func siteKey(t *testing.T) *sign.Key {
	t.Helper()
	k, err := sign.Generate("plant-7", time.Now().Add(-time.Hour), 0)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSourcesNameTheMirrorAndHoldItsKey(t *testing.T) {
	key := string(siteKey(t).Public())
	n, _, report := testNode(t, &plan.Mirror{URL: "https://mirror.example.org:8443/apt", Key: key, CA: "an authority\n"})
	apply(t, n)
	got := read(t, n, sourcesPath)
	for _, want := range []string{
		"\nTypes: deb\nURIs: https://mirror.example.org:8443/apt/debian\nSuites: trixie trixie-updates\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n ",
		"\nURIs: https://mirror.example.org:8443/apt/debian-security\nSuites: trixie-security\n", "\n -----END PGP PUBLIC KEY BLOCK-----\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
	if got := read(t, n, optionsPath); !strings.Contains(got, "\nAcquire::https::mirror.example.org::CAInfo \"/etc/slipway/mirror/ca.pem\";\n") {
		t.Errorf("apt's options: %s", got)
	}
	if got := read(t, n, caPath); got != "an authority\n" {
		t.Errorf("the authority: %s", got)
	}
	report.changed = nil
	if apply(t, n); len(report.changed) > 0 {
		t.Errorf("the same once more changes %q", report.changed)
	}
}

func TestAMirrorOfTheClusterIsVouchedForByItsAuthority(t *testing.T) {
	n, _, _ := testNode(t, &plan.Mirror{Node: "m1", URL: "https://192.0.2.61", Registry: "https://192.0.2.61", Key: "k"})
	apply(t, n)
	for _, path := range []string{caPath, "/etc/docker/certs.d/192.0.2.61/ca.crt"} {
		if got := read(t, n, path); got != "the cluster's authority\n" {
			t.Errorf("%s: %q", path, got)
		}
	}
}

func TestWithoutTLSOrWithAKnownAuthorityAptHasNoOptions(t *testing.T) {
	for _, m := range []plan.Mirror{{URL: "http://mirror.example.org", Key: "k"}, {URL: "https://mirror.example.org", Key: "k"}} {
		n, _, _ := testNode(t, &m)
		if apply(t, n); n.Exists(optionsPath) || n.Exists(caPath) {
			t.Errorf("%s: there are options", m.URL)
		}
	}
	n, _, _ := testNode(t, &plan.Mirror{URL: "https://[2001:db8::61]:8443", Key: "k", CA: "c"})
	if apply(t, n); !strings.Contains(read(t, n, optionsPath), "\nAcquire::https::CAInfo ") {
		t.Errorf("IPv6: %s", read(t, n, optionsPath))
	}
}

// world are sources as administrators write them, and whether they lead elsewhere.
var world = map[string]struct {
	text string
	away bool
}{
	"/etc/apt/sources.list":                     {"# deb file:/x trixie main\ndeb [arch=amd64 signed-by=/etc/k.gpg] https://deb.example.org/debian trixie main\n", true},
	"/etc/apt/sources.list.d/vendor.list":       {"deb-src tor+http://deb.example.org/debian trixie main", true},
	"/etc/apt/sources.list.d/disc.list":         {"# deb https://deb.example.org/debian trixie main\ndeb cdrom:[Debian 13]/ trixie main\n", false},
	"/etc/apt/sources.list.d/local.list":        {"deb [trusted=yes] file:/srv/debs ./\n", false},
	"/etc/apt/sources.list.d/debian.sources":    {"Types: deb\nURIs: http://deb.example.org/debian\nSuites: trixie\n", true},
	"/etc/apt/sources.list.d/two.sources":       {"Types: deb\nURIs: file:/srv/a\n\nTypes: deb\nuris:\n file:/srv/b\n https://deb.example.org/b\nSuites: ./\n", true},
	"/etc/apt/sources.list.d/own.sources":       {"# URIs: https://deb.example.org\nTypes: deb\nURIs: file:/srv/a\nSuites: ./\nX-Home: https://example.org\n", false},
	"/etc/apt/sources.list.d/old.sources.saved": {"URIs: https://deb.example.org", false},
	"/etc/apt/sources.list.d/empty.list":        {"", false},
}

func TestSourcesOfTheWorldMakeWayAndComeBack(t *testing.T) {
	n, _, _ := testNode(t, nil)
	for path, f := range world {
		put(t, n, path, f.text)
	}
	mirror := &plan.Mirror{URL: "http://192.0.2.61", Key: "k"}
	n.Member.Plan.Mirror = mirror
	for range 2 {
		apply(t, n)
		for path, f := range world {
			if n.Exists(path) == f.away {
				t.Errorf("%s is there: %t", path, n.Exists(path))
			}
		}
	}
	// One that somebody adds while there is a mirror makes way at the next boot.
	put(t, n, "/etc/apt/sources.list.d/late.list", "deb http://late.example.org/ ./\n")
	if apply(t, n); n.Exists("/etc/apt/sources.list.d/late.list") {
		t.Error("a source that was added stays")
	}
	put(t, n, "/etc/apt/sources.list.d/vendor.list", "deb file:/srv/vendor ./\n")
	n.Member.Plan.Mirror = nil
	apply(t, n)
	for path, f := range world {
		want := f.text
		if strings.HasSuffix(path, "vendor.list") {
			want = "deb file:/srv/vendor ./\n" // written since: it stays
		}
		if got := read(t, n, path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	for _, path := range []string{sourcesPath, optionsPath, caPath} {
		if n.Exists(path) {
			t.Errorf("%s is still there", path)
		}
	}
}

func TestWithoutAPlanOrAMirrorNothingIsTouched(t *testing.T) {
	for name, m := range map[string]*member.Member{"no member": nil, "no mirror": {Plan: &plan.Plan{}, Self: plan.Node{Name: "db1"}}} {
		n, run, report := testNode(t, nil)
		put(t, n, "/etc/apt/sources.list", "deb https://deb.example.org/debian trixie main\n")
		if n.Member = m; n.Member != nil {
			n.Member.Authority = "a"
		}
		apply(t, n)
		if len(run.ran)+len(report.changed) > 0 || !n.Exists("/etc/apt/sources.list") {
			t.Errorf("%s: %q, %q", name, run.ran, report.changed)
		}
	}
}

func TestAnImageThatDoesNotSayItsArchivesIsToldOf(t *testing.T) {
	n, _, _ := testNode(t, &plan.Mirror{URL: "http://192.0.2.61", Key: "k"})
	n.Role.Archives = nil
	if err := (Configure{}).Apply(t.Context(), n); fault.Of(err) != fault.Input || fault.Mend(err) == "" {
		t.Errorf("%v", err)
	}
}

// docker is Docker's configuration on a node.
func docker(t *testing.T, n *node.Node) (mirrors, insecure []string, other map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, n, daemonPath)), &other); err != nil {
		t.Fatal(err)
	}
	list := func(key string) (out []string) {
		values, _ := other[key].([]any)
		for _, v := range values {
			out = append(out, v.(string))
		}
		delete(other, key)
		return out
	}
	return list("registry-mirrors"), list("insecure-registries"), other
}

func TestDockerIsToldOfTheRegistryAndFollowsChanges(t *testing.T) {
	n, run, _ := testNode(t, nil)
	before := read(t, n, daemonPath)
	for _, c := range []struct {
		mirror            *plan.Mirror
		mirrors, insecure string
		authorities       string // hosts with a file in certs.d
	}{
		{&plan.Mirror{URL: "https://m1", Registry: "https://m1:5000", Key: "k", CA: "c"}, "https://m1:5000", "", "m1:5000"},
		{&plan.Mirror{URL: "https://m2", Registry: "https://m2", Key: "k", CA: "c"}, "https://m2", "", "m2"},
		{&plan.Mirror{URL: "https://m2", Registry: "https://m2", Key: "k"}, "https://m2", "", ""},
		{&plan.Mirror{URL: "http://m2", Registry: "http://m2:5000", Key: "k"}, "http://m2:5000", "m2:5000", ""},
		{&plan.Mirror{URL: "http://m2", Key: "k"}, "", "", ""}, // plain HTTP alone allows nothing
	} {
		run.ran = nil
		n.Member.Plan.Mirror = c.mirror
		apply(t, n)
		mirrors, insecure, other := docker(t, n)
		files, _ := filepath.Glob(n.Path(certsDir + "/*/ca.crt"))
		var hosts []string
		for _, f := range files {
			hosts = append(hosts, filepath.Base(filepath.Dir(f)))
		}
		if strings.Join(mirrors, " ") != c.mirrors || strings.Join(insecure, " ") != c.insecure || strings.Join(hosts, " ") != c.authorities {
			t.Errorf("%+v: mirrors %q, insecure %q, authorities %q", c.mirror, mirrors, insecure, hosts)
		}
		if len(other) != 2 || other["data-root"] != "/var/lib/docker" || other["max-concurrent-downloads"] != 3.0 {
			t.Errorf("the rest is %v", other)
		}
		run.ran = nil
		if apply(t, n); len(run.ran) > 0 {
			t.Errorf("the same once more runs %q", run.ran)
		}
	}
	if n.Exists(ownPath) {
		t.Error("what is gone is still remembered")
	}
	n.Member.Plan.Mirror = &plan.Mirror{URL: "https://m1", Registry: "https://m1", Key: "k"}
	run.ran = nil
	if apply(t, n); !strings.Contains(strings.Join(run.ran, "\n"), "reload docker.service") {
		t.Errorf("Docker is not reloaded: %q", run.ran)
	}
	n.Member.Plan.Mirror = nil
	apply(t, n)
	var a, b map[string]any
	if json.Unmarshal([]byte(before), &a) != nil || json.Unmarshal([]byte(read(t, n, daemonPath)), &b) != nil || fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("afterwards:\n%s\nbefore:\n%s", read(t, n, daemonPath), before)
	}
}

func TestWhatOthersToldDockerStays(t *testing.T) {
	n, _, _ := testNode(t, &plan.Mirror{URL: "https://m1", Registry: "https://m1", Key: "k"})
	put(t, n, daemonPath, `{"registry-mirrors": ["https://theirs.example.org"], "insecure-registries": ["10.0.0.0/8"]}`)
	apply(t, n)
	if mirrors, insecure, _ := docker(t, n); strings.Join(mirrors, " ") != "https://m1 https://theirs.example.org" || strings.Join(insecure, " ") != "10.0.0.0/8" {
		t.Errorf("%q, %q", mirrors, insecure)
	}
	n.Member.Plan.Mirror = nil
	apply(t, n)
	if mirrors, insecure, _ := docker(t, n); strings.Join(mirrors, " ") != "https://theirs.example.org" || strings.Join(insecure, " ") != "10.0.0.0/8" {
		t.Errorf("%q, %q", mirrors, insecure)
	}
}

func TestAPowerCutWhileDockerIsToldLeavesNothingBehind(t *testing.T) {
	n, _, _ := testNode(t, &plan.Mirror{URL: "https://m1", Registry: "https://m1", Key: "k", CA: "c"})
	apply(t, n)
	// m2 was remembered and written, and the power went before m1 was forgotten.
	if err := remember(n, []own{{Mirror: "https://m1", CA: certsDir + "/m1/ca.crt"}, {Mirror: "https://m2", CA: certsDir + "/m2/ca.crt"}}); err != nil {
		t.Fatal(err)
	}
	put(t, n, certsDir+"/m2/ca.crt", "c")
	put(t, n, daemonPath, `{"registry-mirrors": ["https://m2"]}`)
	n.Member.Plan.Mirror = nil
	apply(t, n)
	if mirrors, _, _ := docker(t, n); len(mirrors) > 0 || n.Exists(certsDir+"/m1/ca.crt") || n.Exists(certsDir+"/m2/ca.crt") || n.Exists(ownPath) {
		t.Errorf("left: %q", mirrors)
	}
}

func TestABadDockerConfigurationIsToldOfAndStays(t *testing.T) {
	for _, text := range []string{"{", "null", "[]", "{} {}", `{"registry-mirrors": "https://x"}`} {
		n, _, _ := testNode(t, &plan.Mirror{URL: "https://m1", Registry: "https://m1", Key: "k"})
		put(t, n, daemonPath, text)
		err := (Configure{}).Apply(t.Context(), n)
		if fault.Of(err) != fault.Input || !strings.Contains(err.Error(), daemonPath) || read(t, n, daemonPath) != text {
			t.Errorf("%s: %v", text, err)
		}
		if !n.Exists(sourcesPath) {
			t.Errorf("%s: apt is not told of the mirror", text)
		}
	}
}

func FuzzDaemonJSON(f *testing.F) {
	for _, s := range []string{"", "{}", `{"registry-mirrors": ["https://m1", 7, {"a": 1}]}`, `{"insecure-registries": null}`, "null", `{"a": 1e400}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		want := own{Mirror: "http://m2", Insecure: "m2"}
		got, err := daemonJSON(text, []own{{Mirror: "https://m1"}}, want)
		if err != nil {
			return
		}
		if !json.Valid(got) {
			t.Fatalf("%s", got)
		}
		if again, err := daemonJSON(got, []own{want}, want); err != nil || string(again) != string(got) {
			t.Fatalf("%v: %s, then %s", err, got, again)
		}
	})
}

func TestTheMirrorHasItsCertificateForItselfAlone(t *testing.T) {
	n, run, _ := testNode(t, &plan.Mirror{Node: "m1", URL: "https://192.0.2.61", Key: "the site's\n"})
	n.Member.Self.Name = "m1"
	if err := (Configure{}).Apply(t.Context(), n); err == nil || !strings.Contains(err.Error(), "lacks a certificate") || !strings.Contains(fault.Mend(err), "slipway seed") {
		t.Errorf("without one: %v", err)
	}
	n.Member.Certificates = map[string]member.Pair{member.ServiceCert: {Certificate: "chain", Key: "hidden"}}
	apply(t, n)
	for name, want := range map[string]string{"service.pem": "chain", "service-key.pem": "hidden", "site.asc": "the site's\n"} {
		st, err := os.Stat(n.Path(dir + "/" + name))
		if err != nil || st.Mode().Perm() != 0o400 || read(t, n, dir+"/"+name) != want {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if !strings.Contains(strings.Join(run.ran, "\n"), "restart "+Unit) {
		t.Errorf("the service goes on with its former certificate: %q", run.ran)
	}
	run.ran = nil
	if apply(t, n); strings.Contains(strings.Join(run.ran, "\n"), "restart") {
		t.Errorf("the same once more runs %q", run.ran)
	}
}

// TestTheRealAptTakesTheSources has the apt of this machine read what the step writes:
// over TLS, by address, vouched for by the cluster's authority and by nothing else.
func TestTheRealAptTakesTheSources(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Fatalf("apt-get is needed: %v", err)
	}
	key := siteKey(t)
	tree := t.TempDir()
	archive := func(path, suite, text string) {
		files, err := repository.Files(repository.Suite{Name: suite, Suite: suite, Codename: suite, Date: time.Now().Add(-time.Hour), Arch: "amd64",
			Components: []string{"main"}, Packages: map[string][]repository.Paragraph{"main": {{Name: "tree", Version: "2.1", Text: []byte(text)}}}, Keys: []*sign.Key{key}})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			name := filepath.Join(tree, path, f.Path)
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, f.Content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	const paragraph = "Package: tree\nVersion: 2.1\nArchitecture: amd64\nFilename: pool/tree.deb\nSize: 3\nSHA256: 98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4\nDescription: x\n"
	archive("debian", "trixie", paragraph)
	archive("debian", "trixie-updates", paragraph)
	archive("debian-security", "trixie-security", paragraph)
	cluster := membertest.New(t)
	pair, err := cluster.Authority.Pair()
	if err != nil {
		t.Fatal(err)
	}
	service := cluster.Block(t, "a-db1").Certificates[member.ServiceCert]
	serving, err := tls.X509KeyPair([]byte(service.Certificate), []byte(service.Key))
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := membertest.New(t).Authority.Pair()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.FileServer(http.Dir(tree)))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{serving}}
	server.StartTLS()
	defer server.Close()
	u, _ := url.Parse(server.URL)
	for name, c := range map[string]struct {
		authority string
		key       *sign.Key
		right     bool
	}{"right": {pair.Certificate, key, true}, "another authority": {stranger.Certificate, key, false}, "another key": {pair.Certificate, siteKey(t), false}} {
		n, _, _ := testNode(t, &plan.Mirror{Node: "m1", URL: "https://127.0.0.1:" + u.Port(), Key: string(c.key.Public())})
		n.Member.Authority = c.authority
		apply(t, n)
		// What the step writes names files by their paths on the node.
		put(t, n, optionsPath, strings.ReplaceAll(read(t, n, optionsPath), caPath, n.Path(caPath)))
		for _, d := range []string{"var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg", "etc/apt/preferences.d", "etc/apt/trusted.gpg.d"} {
			if err := os.MkdirAll(n.Path(d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		put(t, n, "/var/lib/dpkg/status", "")
		apt := func(args ...string) (string, error) {
			cmd := exec.Command("apt-get", append([]string{"-o", "APT::Sandbox::User=root", "-o", "APT::Architecture=amd64", "-o", "Acquire::Languages=none", "-o", "Acquire::https::Proxy=false", "-o", "Acquire::http::Proxy=false",
				"-o", "Acquire::Retries=0", "-o", "Debug::NoLocking=true"}, args...)...)
			put(t, n, "/apt.conf", fmt.Sprintf("Dir %q;\nDir::State::status %q;\n", n.Root, n.Path("/var/lib/dpkg/status")))
			cmd.Env = append(os.Environ(), "LC_ALL=C", "APT_CONFIG="+n.Path("/apt.conf"))
			out, err := cmd.CombinedOutput()
			return string(out), err
		}
		out, err := apt("update")
		clean := err == nil && !strings.Contains(out, "W: ") && !strings.Contains(out, "E: ")
		if clean != c.right {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		out, err = apt("-s", "install", "tree")
		if sees := err == nil && strings.Contains(out, "Inst tree (2.1 "); sees != c.right {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
