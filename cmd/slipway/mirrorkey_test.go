package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/site"
)

// TestAKeyThatEndsSoonIsWarnedOfEverywhere asks every command that docs/mirror.md names.
func TestAKeyThatEndsSoonIsWarnedOfEverywhere(t *testing.T) {
	quick(t)
	n := newNear(t)
	n.site = filepath.Join(t.TempDir(), "soon")
	fresh := showed(t, "generate", "--site", n.site, "--name", "plant-7", "--days", "30", "--json")
	want := fmt.Sprintf("the signing key %s ends at %s", fresh.Keys[0].Fingerprint, fresh.Keys[0].Expires.UTC().Format(time.RFC3339))
	warned := func(command, text string) {
		t.Helper()
		if !strings.Contains(text, want) {
			t.Errorf("%s does not warn that %s:\n%s", command, want, text)
		}
	}
	out, _ := succeed(t, "mirror", "key", "show", "--site", n.site)
	warned("key show", out)
	var shown struct{ Warnings []string }
	told(t, 0, &shown, "mirror", "key", "show", "--site", n.site)
	warned("key show --json", strings.Join(shown.Warnings, "\n"))

	_, stderr := n.bundle(t, "create", "media")
	warned("create", stderr)
	public, _ := succeed(t, "mirror", "key", "public", "--site", n.site)
	far := filepath.Join(t.TempDir(), "store")
	succeed(t, "mirror", "import", "--store", far, "--key", writeFile(t, "plant-7.asc", []byte(public)), "media")
	out, _ = succeed(t, "mirror", "status", "--store", far)
	warned("status", out)
	told(t, 0, &shown, "mirror", "status", "--store", far)
	warned("status --json", strings.Join(shown.Warnings, "\n"))
	code, _, stderr := call(t, "mirror", "serve", "--store", far, "--listen", "127.0.0.1:65536") // warns, then ends: there is no such port
	if code != 3 {
		t.Errorf("serving at a port that cannot be: exit status %d", code)
	}
	warned("serve", stderr)
	succeed(t, "mirror", "receipt", "--store", far, "-o", "receipt")
	n.publish(t, 2)
	_, stderr = n.bundle(t, "update", "media-2", "--receipt", "receipt")
	warned("update", stderr)
}

// TestASiteWhoseKeysHaveAllEndedGoesOn is what docs/mirror.md tells of it: the numbers go on, and the other side gets the
// new key by hand.
func TestASiteWhoseKeysHaveAllEndedGoesOn(t *testing.T) {
	quick(t)
	n := newNear(t)
	began := time.Now().Add(-20 * day)
	n.Date = began.Add(day)
	n.publish(t, 1)
	n.site = filepath.Join(t.TempDir(), "ended")
	s, err := site.Create(n.site, "plant-7", nil, began, 10*day)
	if err != nil {
		t.Fatal(err)
	}
	then := began.Add(5 * day)
	old, err := s.Public(then)
	s.Close()
	if err != nil {
		t.Fatal(err)
	}
	far, oldKey := filepath.Join(t.TempDir(), "store"), writeFile(t, "old.asc", old)
	t.Setenv("SOURCE_DATE_EPOCH", fmt.Sprint(then.Unix()))
	n.bundle(t, "create", "one")
	succeed(t, "mirror", "import", "--store", far, "--key", oldKey, "one")
	os.Unsetenv("SOURCE_DATE_EPOCH") // t.Setenv restores it

	n.publish(t, 2)
	refused(t, 3, "mirror key rotate", n.args("create", "two")...)
	refused(t, 3, "mirror key rotate", "mirror", "key", "public", "--site", n.site)
	k := showed(t, "rotate", "--site", n.site, "--json")
	if len(k.Keys) != 1 || !k.Keys[0].Signs {
		t.Fatalf("%+v", k)
	}
	young, _ := succeed(t, "mirror", "key", "public", "--site", n.site)
	if made, _ := n.bundle(t, "create", "two"); made.Edition != 2 {
		t.Errorf("%+v", made)
	}
	refused(t, 6, "not signed by any", "mirror", "import", "--store", far, "two")
	out, _ := succeed(t, "mirror", "import", "--store", far, "--key", writeFile(t, "young.asc", []byte(young)), "two")
	if !strings.Contains(out, "edition 2") || !strings.Contains(out, "complete and published") {
		t.Error(out)
	}
	succeed(t, "mirror", "verify", "--store", far, "--upstream-key", n.upstream)
	trustsOnly(t, far, k.Keys[0].Fingerprint)
}

// TestASiteThatWasLostIsFollowedByANewOne: without a backup, the receipt tells the number that the next bundle must have.
func TestASiteThatWasLostIsFollowedByANewOne(t *testing.T) {
	quick(t)
	n := newNear(t)
	public, _ := succeed(t, "mirror", "key", "public", "--site", n.site)
	far := filepath.Join(t.TempDir(), "store")
	n.bundle(t, "create", "one")
	n.bundle(t, "create", "two")
	succeed(t, "mirror", "import", "--store", far, "--key", writeFile(t, "old.asc", []byte(public)), "two")
	succeed(t, "mirror", "receipt", "--store", far, "-o", "receipt")

	n.site = filepath.Join(t.TempDir(), "new")
	k := showed(t, "generate", "--site", n.site, "--name", "plant-7", "--json")
	public, _ = succeed(t, "mirror", "key", "public", "--site", n.site)
	key := writeFile(t, "new.asc", []byte(public))
	n.bundle(t, "create", "full")
	refused(t, 3, "edition 2 is published", "mirror", "import", "--store", far, "--key", key, "full")
	n.publish(t, 2)
	if made, _ := n.bundle(t, "update", "three", "--receipt", "receipt"); made.Edition != 3 {
		t.Errorf("%+v", made)
	}
	out, _ := succeed(t, "mirror", "import", "--store", far, "--key", key, "three")
	if !strings.Contains(out, "complete and published") {
		t.Error(out)
	}
	trustsOnly(t, far, k.Keys[0].Fingerprint)
}

func trustsOnly(t *testing.T, far, fingerprint string) {
	t.Helper()
	out, _ := succeed(t, "mirror", "status", "--store", far)
	if strings.Count(out, "trusts ") != 1 || !strings.Contains(out, "trusts "+fingerprint) {
		t.Errorf("want only %s trusted:\n%s", fingerprint, out)
	}
}

// TestAKeyThatCannotSignIsRefusedWhenItIsImported: it must not become a site that fails with its first bundle.
func TestAKeyThatCannotSignIsRefusedWhenItIsImported(t *testing.T) {
	quick(t)
	ended, err := sign.Generate("ended", time.Now().Add(-20*day), 10*day)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := ended.Secret()
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, "ended.key", secret)
	refused(t, 3, "expired at", "mirror", "key", "import", "ended.key", "--name", "plant-7")
	if _, err := os.Stat("mirror.site"); err == nil {
		t.Error("it makes a site of it")
	}
	before := showed(t, "generate", "--name", "plant-7", "--json")
	refused(t, 3, "expired at", "mirror", "key", "rotate", "--import", "ended.key")
	if after := showed(t, "show", "--json"); len(after.Keys) != 1 || after.Keys[0].Fingerprint != before.Keys[0].Fingerprint || after.Keys[0].Retire != nil {
		t.Errorf("%+v became %+v", before, after)
	}
}

// TestVolumesAreCheckedByHandAsTheManualSays runs what docs/mirror.md gives for a side without slipway.
func TestVolumesAreCheckedByHandAsTheManualSays(t *testing.T) {
	manual, err := os.ReadFile("../../docs/mirror.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, found := strings.Cut(string(manual), "By hand, with no slipway:\n\n```sh\n")
	script, _, closed := strings.Cut(script, "```")
	if !found || !closed || !strings.Contains(script, "/media/cdrom/VOLUME") {
		t.Fatalf("docs/mirror.md gives other commands: %q", script)
	}
	quick(t)
	n := newNear(t)
	public, _ := succeed(t, "mirror", "key", "public", "--site", n.site)
	n.bundle(t, "create", "media")
	writeFile(t, "plant-7.asc", []byte(public))
	volume, err := filepath.Abs("media/volume-1")
	if err != nil {
		t.Fatal(err)
	}
	check := func() (string, error) {
		cmd := exec.Command("bash", "-e", "-o", "pipefail", "-c", strings.ReplaceAll(script, "/media/cdrom", volume))
		cmd.Env = append(os.Environ(), "GNUPGHOME="+t.TempDir(), "LC_ALL=C")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	parts, err := filepath.Glob(filepath.Join(volume, "data/*/*"))
	if err != nil || len(parts) == 0 {
		t.Fatal(parts, err)
	}
	if out, err := check(); err != nil || !strings.Contains(out, "Good signature") || strings.Count(out, ": OK\n") < len(parts) {
		t.Errorf("a whole volume with %d parts: %v\n%s", len(parts), err, out)
	}
	flip(t, parts[0])
	if out, err := check(); err == nil || !strings.Contains(out, "Good signature") || strings.Count(out, ": FAILED\n") != 1 {
		t.Errorf("a damaged part: %v\n%s", err, out)
	}
	flip(t, parts[0])
	flip(t, filepath.Join(volume, "VOLUME"))
	if out, err := check(); err == nil || strings.Contains(out, "Good signature") {
		t.Errorf("a damaged manifest: %v\n%s", err, out)
	}
}
