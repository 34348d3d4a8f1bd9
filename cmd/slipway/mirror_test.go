package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/apt/apttest"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/mirror"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/store"
)

// quick has a test's directories in memory: no test of a mirror cuts power, and flushing a busy disk takes long.
func quick(t *testing.T) {
	t.Helper()
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		t.Setenv("TMPDIR", "/dev/shm")
	}
	t.Setenv("SLIPWAY_CACHE", t.TempDir())
	t.Chdir(t.TempDir())
}

// refused calls the command and wants it to fail in this way, and to print nothing but the error.
func refused(t *testing.T, code int, says string, args ...string) {
	t.Helper()
	got, stdout, stderr := call(t, args...)
	if got != code || !strings.Contains(stderr, says) {
		t.Errorf("slipway %s: exit status %d, want %d and %q\n%s", strings.Join(args, " "), got, code, says, stderr)
	}
	if stdout != "" && code == 2 {
		t.Errorf("slipway %s prints\n%s", strings.Join(args, " "), stdout)
	}
}

// keys are what key show --json tells.
type keys struct {
	Site string
	Keys []struct {
		Fingerprint     string
		Expires, Retire *time.Time
		Signs           bool
	}
}

func showed(t *testing.T, args ...string) (k keys) {
	t.Helper()
	out, _ := succeed(t, append([]string{"mirror", "key"}, args...)...)
	if err := json.Unmarshal([]byte(out), &k); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return k
}

func TestWrongUseOfMirrorCommandsIsToldAsSuch(t *testing.T) {
	quick(t)
	for _, c := range []struct{ args, says string }{
		{"mirror update", "--receipt is missing"},
		{"mirror init --store s", "--key is missing"},
		{"mirror key generate", "--name is missing"},
		{"mirror key generate --name a --days -1", "--days -1"},
		{"mirror key generate --name a --days 36501", "--days 36501"},
		{"mirror key import", "one file"},
		{"mirror key rotate --overlap -1", "--overlap -1"},
		{"mirror key rotate --days 50000", "--days 50000"},
		{"mirror key show", "no site in mirror.site"},
		{"mirror create --all", "--suite"},
		{"mirror create --volume-size 4", "--volume-size"},
		{"mirror import", "volumes"},
		{"mirror verify --store nowhere", "no mirror in nowhere"},
		{"mirror gc --store nowhere", "no mirror in nowhere"},
		{"mirror serve --tls-cert a", "--tls-key"},
	} {
		refused(t, 2, c.says, strings.Fields(c.args)...)
	}
	if left, _ := os.ReadDir("."); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestASiteTakesAKeyOfItsOwnAndRotatesIt(t *testing.T) {
	quick(t)
	mine, err := sign.Generate("ours", time.Now().Add(-time.Hour), 0)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := mine.Secret()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("ours.key", secret, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, 3, "no secret key", "mirror", "key", "import", writeFile(t, "public.asc", mine.Public()), "--name", "plant-7")
	k := showed(t, "import", "ours.key", "--name", "plant-7", "--json")
	if k.Site != "plant-7" || len(k.Keys) != 1 || k.Keys[0].Fingerprint != mine.Fingerprint() || k.Keys[0].Expires != nil {
		t.Errorf("%+v", k)
	}
	refused(t, 2, "a site in mirror.site already", "mirror", "key", "import", "ours.key", "--name", "plant-7")

	k = showed(t, "rotate", "--overlap", "10", "--days", "400", "--json")
	if len(k.Keys) != 2 || k.Keys[0].Retire == nil || !k.Keys[0].Signs || !k.Keys[1].Signs || k.Keys[1].Expires == nil {
		t.Fatalf("%+v", k)
	}
	if again := showed(t, "show", "--json"); len(again.Keys) != 2 || again.Keys[1].Fingerprint != k.Keys[1].Fingerprint {
		t.Errorf("%+v", again)
	}
	out, _ := succeed(t, "mirror", "key", "show")
	for _, want := range []string{"site plant-7", mine.Fingerprint(), k.Keys[1].Fingerprint, "signs until " + k.Keys[0].Retire.Format("2006-01-02"), "expires never"} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
	public, _ := succeed(t, "mirror", "key", "public")
	if ring, err := sign.ParseRing([]byte(public)); err != nil || len(ring) != 2 {
		t.Errorf("%d public keys, %v", len(ring), err)
	}
	// With no overlap the old ones are gone at once: that is for keys that were stolen.
	if k := showed(t, "rotate", "--overlap", "0", "--json"); len(k.Keys) != 1 || k.Keys[0].Fingerprint == mine.Fingerprint() {
		t.Errorf("%+v", k)
	}
}

func writeFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(name, content, 0o644); err != nil {
		t.Fatal(err)
	}
	path, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// near is a connected side: a project with a small archive of Debian's form, and a site.
type near struct {
	*apttest.Archive
	project, site string
	upstream      string // the archive's public key
}

// newNear makes a connected side. Its site has the key of generate.
func newNear(t *testing.T) *near {
	t.Helper()
	a := apttest.New(t)
	a.Date = time.Now().Add(-48 * time.Hour).Truncate(time.Second)
	n := &near{Archive: a, project: t.TempDir(), site: filepath.Join(t.TempDir(), "site")}
	profiles := filepath.Join(n.project, "profiles")
	if err := os.CopyFS(profiles, os.DirFS(filepath.Dir(a.Distribution().File))); err != nil {
		t.Fatal(err)
	}
	n.upstream = filepath.Join(profiles, "test.asc")
	for name, content := range map[string]string{
		"profiles/base.yaml":            "role: base\nsummary: what all stand on\npackages: [base]\nbutane: base.bu\n",
		"profiles/base.bu":              "variant: fcos\nversion: 1.6.0\nstorage:\n  files:\n    - {path: /etc/motd, contents: {local: texts/motd}}\n",
		"profiles/tools.yaml":           "role: tools\nsummary: what the build runs\npackages: [base]\n",
		"texts/motd":                    "hello\n",
		"overlays/base/etc/issue":       "test\n",
		"overlays/base/empty/.gitkeep":  "",
		"firstboot/agent.go":            "package firstboot\n",
		"firstboot/agent_test.go":       "package firstboot\n",
		"firstboot/testdata/large":      "not needed\n",
		"cluster.yaml":                  "not of the build\n",
		"mirror.site/not-ours":          "secret\n",
		"overlays/base/usr/bin/program": "#!/bin/sh\n",
	} {
		file := filepath.Join(n.project, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(filepath.Join(n.project, "overlays/base/usr/bin/program"), 0o744), os.Symlink("issue", filepath.Join(n.project, "overlays/base/etc/motd"))); err != nil {
		t.Fatal(err)
	}
	n.publish(t, 1)
	succeed(t, "mirror", "key", "generate", "--site", n.site, "--name", "plant-7")
	return n
}

// publish has the archive hold packages in a version, and the lock two of them.
func (n *near) publish(t *testing.T, version int) {
	t.Helper()
	n.Date = n.Date.Add(time.Hour)
	n.Publish("Package: base\nDepends: lib", fmt.Sprintf("Package: lib\nVersion: %d", version), "Package: tool\nDepends: lib", "Package: game")
	c, err := cache.Open(os.Getenv("SLIPWAY_CACHE"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, err := apt.LoadDistribution(filepath.Join(n.project, "profiles", "distribution.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	archive, err := apt.Load(t.Context(), c, d, n.Locations(), apt.LoadOptions{Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	want := lock.Want{Sets: []lock.Set{{Name: "base", File: "profiles/base.yaml", Packages: []string{"base"}}}}
	l, err := lock.Resolve(t.Context(), c, archive, want, nil, nil, fetch.Options{})
	if err == nil {
		err = l.WriteFile(filepath.Join(n.project, "images.lock"))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// args are those of a command that makes a bundle in out.
func (n *near) args(command, out string, more ...string) []string {
	return append([]string{"--project", n.project, "mirror", command, "--no-layers", "--site", n.site, "--mirror", "main=" + fetch.FileURL(n.Dir), "-o", out}, more...)
}

// bundle makes one and tells what it is.
func (n *near) bundle(t *testing.T, command, out string, more ...string) (r mirror.Result, stderr string) {
	t.Helper()
	stdout, stderr := succeed(t, n.args(command, out, append(more, "--json")...)...)
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("%v\n%s", err, stdout)
	}
	return r, stderr
}

// told calls the command with --json, wants this exit status, and reads what it prints into v.
func told(t *testing.T, code int, v any, args ...string) (stderr string) {
	t.Helper()
	got, stdout, stderr := call(t, append(args, "--json")...)
	if err := json.Unmarshal([]byte(stdout), v); err != nil || got != code {
		t.Fatalf("slipway %s: exit status %d, want %d (%v)\n%s%s", strings.Join(args, " "), got, code, err, stdout, stderr)
	}
	return stderr
}

// flip changes a byte in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		data[len(data)/2] ^= 1
		err = errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, data, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestACarryOverByItsCommands is the walk-through of docs/mirror.md: a whole suite goes over on several volumes, one comes
// damaged, an update follows, an older bundle is refused, gc cleans up, and apt is served over TLS.
func TestACarryOverByItsCommands(t *testing.T) {
	quick(t)
	n := newNear(t)
	public, _ := succeed(t, "mirror", "key", "public", "--site", n.site)
	key := writeFile(t, "plant-7.asc", []byte(public))

	if r, _ := n.bundle(t, "create", "dry", "--suite", "test", "--all", "--dry-run"); r.Packages != 4 || r.Bundle != "" {
		t.Errorf("a dry run of the whole suite: %+v", r)
	}
	if r, _ := n.bundle(t, "create", "dry", "--dry-run"); r.Packages != 2 {
		t.Errorf("a dry run of what the lock needs: %+v", r)
	}
	if _, err := os.Stat("dry"); err == nil {
		t.Error("a dry run writes")
	}
	refused(t, 2, "too small", n.args("create", "media", "--volume-size", "1MiB")...)
	if left, err := os.ReadDir("media"); err != nil || len(left) > 0 {
		t.Errorf("a bundle that cannot be made leaves %v, %v", left, err)
	}
	made, _ := n.bundle(t, "create", "media", "--suite", "test", "--all", "--volume-size", "32MiB")
	if made.Packages != 4 || made.Edition != 1 || len(made.Volumes) < 2 {
		t.Fatalf("%+v", made)
	}

	var checked []checkedVolume
	told(t, 0, &checked, "mirror", "verify", "--key", key, "media")
	if len(checked) != len(made.Volumes) || checked[0].Site != "plant-7" || len(checked[0].Wrong) > 0 {
		t.Errorf("%+v", checked)
	}
	first, rest := made.Volumes[0].Path, made.Volumes[1:]
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.CopyFS(bad, os.DirFS(first)); err != nil {
		t.Fatal(err)
	}
	parts, err := filepath.Glob(filepath.Join(bad, "data/*/*"))
	if err != nil || len(parts) == 0 {
		t.Fatal(parts, err)
	}
	flip(t, parts[0])
	told(t, 6, &checked, "mirror", "verify", "--key", key, first, bad)
	if len(checked) != 2 || len(checked[0].Wrong) != 0 || len(checked[1].Wrong) != 1 {
		t.Errorf("%+v", checked)
	}
	// A medium whose directories cannot be read, and one that is none, keep no other from being looked at.
	worst := filepath.Join(t.TempDir(), "worst")
	if err := errors.Join(os.CopyFS(worst, os.DirFS(first)), os.RemoveAll(filepath.Join(worst, "data")), os.Symlink("data", filepath.Join(worst, "data"))); err != nil {
		t.Fatal(err)
	}
	stderr := told(t, 6, &checked, "mirror", "verify", "--key", key, worst, t.TempDir(), first)
	if len(checked) != 2 || len(checked[0].Wrong) < 2 || !strings.Contains(checked[0].Wrong[len(checked[0].Wrong)-1], "worst/data cannot be read") || checked[1].Path != first || len(checked[1].Wrong) != 0 {
		t.Errorf("%+v", checked)
	}
	if !strings.Contains(stderr, "1 of 2 volumes are damaged") || !strings.Contains(stderr, "holds no volume") {
		t.Errorf("it says\n%s", stderr)
	}

	// Import: the last volumes first, then one that is damaged, then as it must be.
	far := []string{"--store", filepath.Join(t.TempDir(), "store")}
	at := func(command string, more ...string) []string {
		return append(append([]string{"mirror", command}, far...), more...)
	}
	var taken []store.Imported
	args := []string{"--key", key}
	for _, v := range rest {
		args = append(args, v.Path)
	}
	told(t, 0, &taken, at("import", args...)...)
	if len(taken) != 1 || taken[0].Published || !slices.Equal(taken[0].Missing, []int{1}) {
		t.Errorf("%+v", taken)
	}
	stderr = told(t, 6, &taken, at("import", bad)...)
	if len(taken) != 1 || len(taken[0].Damaged) != 1 || !slices.Equal(taken[0].Missing, []int{1}) || !strings.Contains(stderr, "bring volume 1 again") {
		t.Errorf("%+v\n%s", taken, stderr)
	}
	out, _ := succeed(t, at("import", first)...)
	if !strings.Contains(out, "complete and published") {
		t.Error(out)
	}

	// Verify and repair.
	whole := func() {
		t.Helper()
		var r store.Report
		if told(t, 0, &r, at("verify", "--upstream-key", n.upstream)...); len(r.Wrong) > 0 || r.Packages == 0 || r.Proven != r.Packages {
			t.Errorf("%+v", r)
		}
	}
	whole()
	stranger, err := sign.Generate("nobody's archive", time.Now().Add(-time.Hour), 0)
	if err != nil {
		t.Fatal(err)
	}
	_, out, _ = call(t, at("verify", "--upstream-key", writeFile(t, "stranger.asc", stranger.Public()))...)
	if !strings.Contains(out, "debian/pool/game_1_amd64.deb: no signature of upstream covers it") {
		t.Errorf("it does not say what is not covered:\n%s", out)
	}
	game := filepath.Join(far[1], "public/debian/pool/game_1_amd64.deb")
	flip(t, game)
	var report store.Report
	told(t, 6, &report, at("verify", "--upstream-key", n.upstream, "--repair")...)
	if len(report.Wrong) != 1 || len(report.Wrong[0].Bring) != 1 {
		t.Errorf("%+v", report.Wrong)
	}
	succeed(t, at("import", "media")...)
	whole()

	// An update, by receipt; then the older bundle.
	succeed(t, at("receipt", "-o", "receipt")...)
	n.publish(t, 2)
	update, _ := n.bundle(t, "update", "media-2", "--receipt", "receipt")
	if update.Edition != 2 || update.Base != 1 || update.Carried >= made.Carried/10 {
		t.Errorf("%+v", update)
	}
	succeed(t, at("import", "media-2")...)
	whole()
	refused(t, 3, "edition 2 is published", at("import", first)...)
	if told(t, 0, &taken, at("import", "--allow-older", first)...); len(taken) != 1 || taken[0].Edition != 1 || !taken[0].Published {
		t.Errorf("%+v", taken)
	}
	told(t, 0, &taken, at("import", "media-2")...)

	var gone, would store.Removed
	told(t, 0, &would, at("gc", "--keep", "0", "--dry-run")...)
	told(t, 0, &gone, at("gc", "--keep", "0")...)
	if gone != would || gone.Catalogs != 1 || gone.Blobs == 0 {
		t.Errorf("gc said %+v and did %+v", would, gone)
	}
	if _, err := os.Stat(game); err == nil {
		t.Error("a package that the update no longer carries is still there")
	}
	whole()
	served(t, far, key)
}

// served has apt update from the mirror over TLS, trusting the certificate alone.
func served(t *testing.T, far []string, key string) {
	t.Helper()
	cert, certKey := certificate(t)
	cmd := exec.Command(os.Args[0], append(append([]string{"mirror", "serve"}, far...), "--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", certKey, "--access-log", "access.log")...)
	cmd.Env = append(os.Environ(), asSlipway+"=1")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	_, url, ok := strings.Cut(strings.TrimSpace(line), " at https://")
	if err != nil || !ok {
		t.Fatalf("it says %q (%v)\n%s", line, err, errs.String())
	}
	root := t.TempDir()
	for _, dir := range []string{"etc/apt/apt.conf.d", "etc/apt/preferences.d", "etc/apt/sources.list.d", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/lib/dpkg"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(root, "var/lib/dpkg/status"), nil)
	writeFile(t, filepath.Join(root, "etc/apt/sources.list"), fmt.Appendf(nil, "deb [signed-by=%s] https://%sdebian test main\n", key, url))
	apt := func(args ...string) (string, error) {
		cmd := exec.Command("apt-get", append([]string{"-o", "Dir=" + root, "-o", "Dir::State::status=" + filepath.Join(root, "var/lib/dpkg/status"), "-o", "APT::Architecture=amd64",
			"-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none", "-o", "Debug::NoLocking=true", "-o", "Acquire::https::Proxy=false", "-o", "Acquire::Retries=0"}, args...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := apt("update", "--error-on=any"); err == nil {
		t.Errorf("apt takes a certificate that nobody vouches for:\n%s", out)
	}
	if out, err := apt("-o", "Acquire::https::CAInfo="+cert, "update", "--error-on=any"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := apt("-s", "install", "base"); err != nil || !strings.Contains(out, "Inst lib (2 ") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("serving ended with %v\n%s", err, errs.String())
	}
	if log, err := os.ReadFile("access.log"); err != nil || !strings.Contains(string(log), `"GET /debian/dists/test/InRelease HTTP/1.1" 200 `) {
		t.Errorf("the access log: %v\n%s", err, log)
	}
}

// certificate makes one for 127.0.0.1 that vouches for itself.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		writeFile(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

func TestBundlesThatAreDatedIntoTheFutureAreWarnedOf(t *testing.T) {
	quick(t)
	n := newNear(t)
	if _, stderr := n.bundle(t, "create", "a", "--dry-run"); strings.Contains(stderr, "clock") {
		t.Errorf("it warns for nothing:\n%s", stderr)
	}
	path := filepath.Join(n.site, "site.json")
	data, err := os.ReadFile(path)
	var state map[string]any
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	if err != nil {
		t.Fatal(err)
	}
	state["edition"], state["date"] = 1, time.Now().AddDate(0, 0, 40).UTC().Format(time.RFC3339)
	if data, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, data)
	if _, stderr := n.bundle(t, "create", "a", "--dry-run"); !strings.Contains(stderr, "39 days after this machine's clock") && !strings.Contains(stderr, "40 days after this machine's clock") || !strings.Contains(stderr, "site.json") {
		t.Errorf("it does not warn:\n%s", stderr)
	}
}

// TestAMirrorBringsTheProgramAndTheProject takes both out as docs/mirror.md says, and compares.
func TestAMirrorBringsTheProgramAndTheProject(t *testing.T) {
	quick(t)
	n := newNear(t)
	n.Sources = []string{"base_1", "lib_1"}
	n.publish(t, 1)
	public, _ := succeed(t, "mirror", "key", "public", "--site", n.site)
	bundle, _ := n.bundle(t, "create", "media", "--sources")
	if bundle.Sources != 2 || len(bundle.NoSource) != 0 {
		t.Errorf("%d source packages, without are %v", bundle.Sources, bundle.NoSource)
	}
	far := filepath.Join(t.TempDir(), "store")
	succeed(t, "mirror", "import", "--store", far, "--key", writeFile(t, "key.asc", []byte(public)), "media")
	for _, name := range []string{"base_1.dsc", "base_1.tar.xz"} {
		if _, err := os.Stat(filepath.Join(far, "public/debian/pool/base", name)); err != nil {
			t.Error(err)
		}
	}

	out := t.TempDir()
	program := filepath.Join(out, "slipway")
	if said, err := exec.Command("install", "-m", "755", filepath.Join(far, "public/slipway/slipway"), program).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if said, err := exec.Command("cmp", self, program).CombinedOutput(); err != nil {
		t.Errorf("the program that came is not the one that made the bundle: %v\n%s", err, said)
	}
	project := filepath.Join(out, "project")
	if err := os.Mkdir(project, 0o755); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(far, "public/slipway/project.tar")
	if said, err := exec.Command("tar", "-xf", archive, "-C", project).CombinedOutput(); err != nil || len(said) > 0 {
		t.Fatalf("%v\n%s", err, said)
	}
	var came []string
	err = filepath.WalkDir(project, func(path string, d os.DirEntry, err error) error {
		name, _ := filepath.Rel(project, path)
		if err != nil || d.IsDir() && name != "overlays/base/empty" {
			return err
		}
		came = append(came, name)
		if d.Type().IsRegular() {
			got, err := os.ReadFile(path)
			want, err2 := os.ReadFile(filepath.Join(n.project, name))
			if err := errors.Join(err, err2); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s is another file: %v", name, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"firstboot/agent.go", "images.lock", "overlays/base/empty", "overlays/base/empty/.gitkeep", "overlays/base/etc/issue", "overlays/base/etc/motd", "overlays/base/usr/bin/program",
		"profiles/base.bu", "profiles/base.yaml", "profiles/distribution.yaml", "profiles/test.asc", "profiles/tools.yaml", "texts/motd"}
	if !slices.Equal(came, want) {
		t.Errorf("there came\n%v\nwant\n%v", came, want)
	}
	if st, err := os.Stat(filepath.Join(project, "overlays/base/usr/bin/program")); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("what can be run: %v, %v", st, err)
	}

	// Who has the project, and under which umask, plays no part.
	before, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	n.project = project
	n.bundle(t, "create", "media-2", "--sources")
	succeed(t, "mirror", "import", "--store", far, "media-2")
	if after, err := os.ReadFile(archive); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the project that came is packed into other bytes: %v", err)
	}
}

// TestSourceDateEpochDatesTheBundleAlone makes a bundle that is dated before the archive that it holds.
func TestSourceDateEpochDatesTheBundleAlone(t *testing.T) {
	quick(t)
	n := newNear(t)
	date := time.Now().UTC().Truncate(time.Second)
	n.Date = date.Add(30 * time.Minute) // publish adds an hour: within the two that clocks may differ by, but not from the bundle's date
	n.publish(t, 1)
	key, err := sign.Generate("ours", date.Add(-48*time.Hour), 0)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := key.Secret()
	if err != nil {
		t.Fatal(err)
	}
	n.site = filepath.Join(t.TempDir(), "site")
	succeed(t, "mirror", "key", "import", writeFile(t, "ours.key", secret), "--site", n.site, "--name", "plant-7")
	t.Setenv("SOURCE_DATE_EPOCH", fmt.Sprint(date.Add(-time.Hour).Unix()))
	if r, stderr := n.bundle(t, "create", "media", "--package", "tool", "--dry-run"); r.Date != date.Add(-time.Hour).Format(time.RFC3339) || r.Packages != 3 {
		t.Errorf("%+v\n%s", r, stderr)
	}
}

func TestAFullDiskHasAnExitStatusOfItsOwn(t *testing.T) {
	quick(t)
	n := newNear(t)
	small := t.TempDir()
	// In a namespace of its own every user may mount.
	cmd := exec.Command("unshare", append([]string{"--map-root-user", "--mount", "bash", "-c", `mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"`, small, os.Args[0]},
		n.args("create", filepath.Join(small, "media"))...)...)
	cmd.Env = append(os.Environ(), asSlipway+"=1")
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 7 || !strings.Contains(string(out), "larger medium") {
		t.Errorf("exit status %d, want 7 and that a larger medium is needed\n%s", code, out)
	}
}

func TestAKeyThatWasRetiredIsNamedAndLeftOut(t *testing.T) {
	quick(t)
	n := newNear(t)
	far := filepath.Join(t.TempDir(), "store")
	old, _ := succeed(t, "mirror", "key", "public", "--site", n.site)
	file := writeFile(t, "topology.asc", []byte(old))
	n.bundle(t, "create", "one")
	succeed(t, "mirror", "import", "--store", far, "--key", file, "one")
	showed(t, "rotate", "--site", n.site, "--json") // both sign
	n.bundle(t, "create", "two")
	succeed(t, "mirror", "import", "--store", far, "--key", file, "two")
	k := showed(t, "rotate", "--site", n.site, "--overlap", "0", "--json") // the third signs alone, and nobody knows it
	young, _ := succeed(t, "mirror", "key", "public", "--site", n.site)
	n.bundle(t, "create", "three")
	refused(t, 6, "not signed by any", "mirror", "import", "--store", far, "--key", file, "three")
	succeed(t, "mirror", "import", "--store", far, "--key", writeFile(t, "young.asc", []byte(young)), "three")
	_, stderr := succeed(t, "mirror", "import", "--store", far, "--key", file, "three")
	if !strings.Contains(stderr, "was retired by a bundle") {
		t.Errorf("it says\n%s", stderr)
	}
	succeed(t, "mirror", "verify", "--store", far, "--upstream-key", n.upstream)
	out, _ := succeed(t, "mirror", "status", "--store", far)
	if strings.Count(out, "trusts ") != 1 || !strings.Contains(out, "trusts "+k.Keys[0].Fingerprint) {
		t.Errorf("it says\n%s", out)
	}
}
