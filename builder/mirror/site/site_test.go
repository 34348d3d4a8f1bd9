package site_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/site"
	"github.com/slipwayhq/slipway/internal/fault"
)

var now = time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func create(t *testing.T) (string, *site.Site) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "site")
	s, err := site.Create(dir, "plant-7", nil, now, 100*day)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return dir, s
}

func TestNoNumberIsGivenTwice(t *testing.T) {
	dir, s := create(t)
	next := func(when time.Time, after int64) (int64, time.Time) {
		t.Helper()
		n, date, err := s.Next(when, after)
		if err != nil {
			t.Fatal(err)
		}
		return n, date
	}
	n, date := next(now, 0)
	if n != 1 || !date.Equal(now) {
		t.Errorf("the first is %d at %s", n, date)
	}
	if err := s.Reserve(1, date, "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Reserve(1, date, "a"); err != nil {
		t.Errorf("the one that was cut off may not go on: %v", err)
	}
	if err := s.Reserve(1, date, "b"); err == nil {
		t.Error("another got the same number")
	}
	s.Close()
	var err error
	if s, err = site.Open(dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n, date := next(now.Add(-time.Hour), 0); n != 2 || !date.After(now) {
		t.Errorf("with the clock set back: %d at %s", n, date)
	}
	if n, _ := next(now, 7); n != 8 {
		t.Errorf("after an edition 7 that the other side has: %d", n)
	}
}

// A receipt is not signed, and a number that was given out stays given out.
func TestAForgedReceiptDoesNotUseUpTheNumbers(t *testing.T) {
	_, s := create(t)
	if err := s.Reserve(5, now, "a"); err != nil {
		t.Fatal(err)
	}
	for _, after := range []int64{1006, 1 << 53} {
		if n, _, err := s.Next(now, after); fault.Of(err) != fault.Input || fault.Mend(err) == "" {
			t.Errorf("after %d comes %d (%v)", after, n, err)
		}
		if err := s.Reserve(after+1, now, "b"); fault.Of(err) != fault.Input {
			t.Errorf("edition %d is given out: %v", after+1, err)
		}
	}
	if n, _, err := s.Next(now, 1005); n != 1006 || err != nil {
		t.Errorf("after 1005 comes %d (%v)", n, err)
	}
	if err := s.Reserve(1006, now, "c"); err != nil {
		t.Error(err)
	}
}

func TestOnlyOneProcessHasTheSite(t *testing.T) {
	dir, s := create(t)
	if _, err := site.Open(dir); err == nil {
		t.Error("two have it open")
	}
	s.Close()
	again, err := site.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestSecretsAreTheOwnersAlone(t *testing.T) {
	dir, s := create(t)
	s.Close()
	path := filepath.Join(dir, "site.json")
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v (%v)", st.Mode(), err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := site.Open(dir); err == nil || !strings.Contains(err.Error(), "others may read") {
		t.Errorf("a file that others may read: %v", err)
	}
}

func TestASiteInARepositoryIsNeverCommitted(t *testing.T) {
	dir, _ := create(t)
	up := filepath.Dir(dir)
	git := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", up}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	git("init", "--quiet")
	if err := os.WriteFile(filepath.Join(up, "other"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	git("add", "-A")
	if got := git("ls-files"); got != "other\n" {
		t.Errorf("git add -A takes\n%s", got)
	}
}

func TestKeysOverlapAndEnd(t *testing.T) {
	_, s := create(t)
	if w := s.Warnings(now); len(w) != 0 {
		t.Errorf("100 days before the end: %v", w)
	}
	if w := s.Warnings(now.Add(20 * day)); len(w) != 1 {
		t.Errorf("80 days before the end: %v", w)
	}
	old := s.Keys(now)[0].Fingerprint
	young, err := s.Rotate(nil, now.Add(20*day), 400*day, 30*day)
	if err != nil {
		t.Fatal(err)
	}
	if w := s.Warnings(now.Add(21 * day)); len(w) != 0 {
		t.Errorf("after the rotation: %v", w)
	}
	for _, c := range []struct {
		after int
		want  []string
	}{{21, []string{old, young.Fingerprint()}}, {49, []string{old, young.Fingerprint()}}, {51, []string{young.Fingerprint()}}} {
		keys, err := s.Signers(now.Add(time.Duration(c.after) * day))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, k := range keys {
			got = append(got, k.Fingerprint())
		}
		if strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("after %d days %v sign, want %v", c.after, got, c.want)
		}
	}
	if _, err := s.Signers(now.Add(900 * day)); err == nil {
		t.Error("a key that has ended signs")
	}
	if _, err := s.Rotate(young, now.Add(30*day), 0, day); err == nil {
		t.Error("one key is taken twice")
	}
	before := len(s.Keys(now))
	if _, err := s.Rotate(nil, now.Add(30*day), 0, -day); fault.Of(err) != fault.Usage || len(s.Keys(now)) != before {
		t.Errorf("an overlap of less than nothing, which takes the old keys away: %v, %d of %d keys", err, len(s.Keys(now)), before)
	}
	if _, err := sign.ParseRing(sign.Public([]*sign.Key{young})); err != nil {
		t.Error(err)
	}
}

// A new site would begin with edition 1 again, which the other side refuses.
func TestASiteWhoseKeysHaveAllEndedTakesANewOne(t *testing.T) {
	dir, s := create(t)
	if err := s.Reserve(7, now, "a"); err != nil {
		t.Fatal(err)
	}
	late := now.Add(200 * day)
	if _, err := s.Signers(late); fault.Of(err) != fault.Input || !strings.Contains(fault.Mend(err), "mirror key rotate") {
		t.Errorf("keys that have ended: %v (%s)", err, fault.Mend(err))
	}
	young, err := s.Rotate(nil, late, 400*day, 30*day)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if s, err = site.Open(dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if keys, err := s.Signers(late); err != nil || len(keys) != 1 || keys[0].Fingerprint() != young.Fingerprint() || len(s.Keys(late)) != 1 {
		t.Errorf("%v sign (%v) of %v, want %s alone", keys, err, s.Keys(late), young.Fingerprint())
	}
	if n, _, err := s.Next(late, 0); n != 8 || err != nil {
		t.Errorf("after edition 7 comes %d (%v)", n, err)
	}
}

func TestNamesThatCannotStandInFilesAreRefused(t *testing.T) {
	for _, name := range []string{"", "A", "a b", "../x", "a/b", "-a", strings.Repeat("a", 64)} {
		if s, err := site.Create(filepath.Join(t.TempDir(), "s"), name, nil, now, 0); err == nil {
			s.Close()
			t.Errorf("%q is taken", name)
		}
	}
}

func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	s, err := site.Create(filepath.Join(dir, "s"), "plant-7", nil, now, 0)
	if err != nil {
		f.Fatal(err)
	}
	s.Close()
	path := filepath.Join(dir, "s", "site.json")
	data, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := site.Open(filepath.Dir(path)); err == nil {
			s.Keys(now)
			s.Next(now, 0)
			s.Close()
		}
	})
}
