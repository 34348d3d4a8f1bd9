package state

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
)

// used is a state file system that was in use for a while.
func used(t *testing.T, asked string) (dir, lower string) {
	t.Helper()
	dir, lower = t.TempDir(), t.TempDir()
	for _, f := range []string{"var/lib/slipway/README", "var/lib/app/first"} {
		must(t, os.MkdirAll(filepath.Join(lower, filepath.Dir(f)), 0o755))
		must(t, os.WriteFile(filepath.Join(lower, f), []byte("the image's"), 0o644))
	}
	must(t, os.MkdirAll(filepath.Join(dir, "data"), 0o755))
	must(t, Seed(filepath.Join(dir, "data"), lower, resetDirs))
	for _, f := range []string{
		"upper/v1/fs/etc/hand-made", "upper/v2/fs/etc/x", "data/var/lib/slipway/cluster/member.json", "data/var/lib/slipway/seed/seed.json",
		"data/var/lib/slipway/state.json", "data/var/lib/slipway/audit.jsonl", "data/var/lib/slipway/maintenance.json", "data/var/lib/app/mine", "data/home/ada/letter", "machine-id",
	} {
		must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, f), []byte("mine"), 0o600))
	}
	must(t, os.Remove(filepath.Join(dir, "data/var/lib/slipway/README")))
	if asked != "" {
		must(t, os.WriteFile(filepath.Join(dir, "factory-reset.json"), []byte(asked), 0o600))
	}
	return dir, lower
}

var resetDirs = []string{"/home", "/var/lib/app", "/var/lib/slipway"}

// left lists the files of a tree.
func left(t *testing.T, dir string) string {
	t.Helper()
	var files []string
	must(t, filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			files = append(files, rel)
		}
		return err
	}))
	return strings.Join(files, " ")
}

const (
	kept   = "data/var/lib/slipway/audit.jsonl data/var/lib/slipway/cluster/member.json data/var/lib/slipway/maintenance.json data/var/lib/slipway/seed/seed.json"
	all    = "data/home/ada/letter data/var/lib/app/first data/var/lib/app/mine data/var/lib/slipway/audit.jsonl data/var/lib/slipway/cluster/member.json data/var/lib/slipway/maintenance.json data/var/lib/slipway/seed/seed.json data/var/lib/slipway/state.json machine-id"
	uppers = " upper/v1/fs/etc/hand-made upper/v2/fs/etc/x"
)

func silent(string, ...any) {}

func TestAFactoryResetTakesAwayWhatIsAskedForAndNoMore(t *testing.T) {
	for asked, want := range map[string]struct{ done, left string }{
		"":                             {"", all + uppers},
		`{"format":1}`:                 {"system", all},
		`{"format":1,"data":true}`:     {"data", kept + " machine-id"},
		`{"format":2,"data":true}`:     {"", all + uppers},
		`{"format":1,"data":`:          {"", all + uppers},
		"\x00\x00\x00\x00\x00\x00\x00": {"", all + uppers},
	} {
		dir, _ := used(t, asked)
		done, err := Reset(dir, silent)
		if got := left(t, dir); err != nil || done != want.done || got != want.left {
			t.Errorf("%q: %q, %v, left:\n%s\nwant\n%s", asked, done, err, got, want.left)
		}
		if done, err := Reset(dir, silent); done != "" || err != nil {
			t.Errorf("%q: it is done a second time: %q, %v", asked, done, err)
		}
	}
}

func TestAfterAResetTheStateDirectoriesAreFilledFromTheImage(t *testing.T) {
	dir, lower := used(t, `{"format":1,"data":true}`)
	if _, err := Reset(dir, silent); err != nil {
		t.Fatal(err)
	}
	must(t, Seed(filepath.Join(dir, "data"), lower, resetDirs))
	want := "data/var/lib/app/first data/var/lib/slipway/README " + kept + " machine-id"
	if got := left(t, dir); len(strings.Fields(got)) != len(strings.Fields(want)) || !strings.Contains(got, "README") || !strings.Contains(got, "app/first") {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// A power cut leaves any part of it done, and the file that asks for it.
func TestAResetThatWasCutBeginsAgain(t *testing.T) {
	cuts := strings.Fields(all + uppers)
	for i := range cuts {
		dir, _ := used(t, `{"format":1,"data":true}`)
		for _, gone := range cuts[:i] {
			if !strings.Contains(kept+" machine-id", gone) {
				must(t, os.Remove(filepath.Join(dir, gone)))
			}
		}
		if done, err := Reset(dir, silent); err != nil || done != "data" || left(t, dir) != kept+" machine-id" {
			t.Fatalf("after %d files: %q, %v, left %s", i, done, err, left(t, dir))
		}
	}
}

func TestAFailedStartIsNoted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "failure.json")
	must(t, NoteFailure(file, "v2", os.ErrNotExist))
	var f bootfacts.Failure
	text, err := os.ReadFile(file)
	must(t, err)
	must(t, json.Unmarshal(text, &f))
	if f.Version != "v2" || f.Why != "file does not exist" {
		t.Errorf("%+v", f)
	}
}
