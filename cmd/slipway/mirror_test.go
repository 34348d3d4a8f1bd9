package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/sign"
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
