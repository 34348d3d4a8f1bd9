package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lay makes a lower tree with one directory that has everything to get wrong.
func lay(t *testing.T) string {
	t.Helper()
	lower := t.TempDir()
	app := filepath.Join(lower, "var/lib/app")
	must(t, os.MkdirAll(filepath.Join(app, "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(app, "file"), []byte("first"), 0o640))
	must(t, os.Link(filepath.Join(app, "file"), filepath.Join(app, "sub/twin")))
	must(t, os.Symlink("../file", filepath.Join(app, "sub/link")))
	must(t, os.Chmod(filepath.Join(app, "sub"), 0o2750|os.ModeSetgid))
	must(t, unix.Lsetxattr(filepath.Join(app, "file"), "user.demo", []byte("yes"), 0))
	if os.Getuid() == 0 {
		must(t, os.Lchown(filepath.Join(app, "file"), 7, 8))
	}
	old := time.Unix(1600000000, 0)
	must(t, os.Chtimes(filepath.Join(app, "file"), old, old))
	must(t, os.Chtimes(filepath.Join(app, "sub"), old, old))
	return lower
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stat(t *testing.T, p string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(p, &st))
	return st
}

func TestANewStateDirectoryHasTheImagesContent(t *testing.T) {
	lower, data := lay(t), t.TempDir()
	must(t, Seed(data, lower, []string{"/var/lib/app", "/var/lib/none"}))
	for _, p := range []string{"file", "sub", "sub/twin", "sub/link"} {
		a, b := stat(t, filepath.Join(lower, "var/lib/app", p)), stat(t, filepath.Join(data, "var/lib/app", p))
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Nlink != b.Nlink || a.Mtim != b.Mtim && p != "sub/link" {
			t.Errorf("%s: %+v, the image has %+v", p, b, a)
		}
	}
	value := make([]byte, 8)
	n, err := unix.Lgetxattr(filepath.Join(data, "var/lib/app/sub/twin"), "user.demo", value)
	if err != nil || string(value[:n]) != "yes" {
		t.Errorf("attribute %q, %v", value[:n], err)
	}
	if st := stat(t, filepath.Join(data, "var/lib/none")); st.Mode != unix.S_IFDIR|0o755 {
		t.Errorf("a directory that the image lacks has mode %o", st.Mode)
	}
	if _, err := os.Lstat(filepath.Join(data, ".seeding")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the staging directory is left: %v", err)
	}
}

func TestAStateDirectoryThatExistsIsLeftAlone(t *testing.T) {
	lower, data := lay(t), t.TempDir()
	must(t, Seed(data, lower, []string{"/var/lib/app"}))
	must(t, os.WriteFile(filepath.Join(data, "var/lib/app/file"), []byte("mine"), 0o600))
	must(t, os.Remove(filepath.Join(data, "var/lib/app/sub/twin")))
	must(t, Seed(data, lower, []string{"/var/lib/app"}))
	if got, err := os.ReadFile(filepath.Join(data, "var/lib/app/file")); err != nil || string(got) != "mine" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := os.Lstat(filepath.Join(data, "var/lib/app/sub/twin")); err == nil {
		t.Error("a deleted file came back")
	}
}

func TestHalfASeedIsDoneAgain(t *testing.T) {
	lower, data := lay(t), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(data, ".seeding/0/junk"), 0o700))
	must(t, Seed(data, lower, []string{"/var/lib/app"}))
	if _, err := os.Lstat(filepath.Join(data, "var/lib/app/junk")); err == nil {
		t.Error("what a cut seed left behind is in the state")
	}
}

func TestADirectoryThatWasOnlyTheWayToAnotherIsFilledUp(t *testing.T) {
	lower, data := lay(t), t.TempDir()
	must(t, os.WriteFile(filepath.Join(lower, "var/lib/other"), nil, 0o644))
	must(t, Seed(data, lower, []string{"/var/lib/app"}))
	must(t, os.WriteFile(filepath.Join(data, "var/lib/app/file"), []byte("mine"), 0o600))
	must(t, Seed(data, lower, []string{"/var/lib"}))
	if got, err := os.ReadFile(filepath.Join(data, "var/lib/app/file")); err != nil || string(got) != "mine" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := os.Lstat(filepath.Join(data, "var/lib/other")); err != nil {
		t.Error(err)
	}
}

func TestStateDirectoriesAreJoinedAndNested(t *testing.T) {
	got, err := Dirs([]string{"/var/lib/postgresql/", "/var/log/app", "/srv", "/srv"})
	want := []string{"/home", "/root", "/srv", "/var/lib/postgresql", "/var/lib/slipway", "/var/lib/systemd", "/var/log"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"", "srv", "/", "/.."} {
		if _, err := Dirs([]string{bad}); err == nil {
			t.Errorf("%q passes for a state directory", bad)
		}
	}
}

func TestAMachineKeepsItsIdentity(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	first, err := MachineID(dir)
	must(t, err)
	again, err := MachineID(dir)
	if err != nil || again != first || !validID(first) || first[12] != '4' {
		t.Errorf("%q, then %q, %v", first, again, err)
	}
	must(t, InstallMachineID(root, first))
	if got, err := os.ReadFile(filepath.Join(root, "etc/machine-id")); err != nil || string(got) != first+"\n" {
		t.Errorf("%q, %v", got, err)
	}
	must(t, os.Chmod(filepath.Join(dir, "machine-id"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "machine-id"), []byte(strings.Repeat("0", 32)), 0o600))
	if other, err := MachineID(dir); err != nil || !validID(other) {
		t.Errorf("from a damaged file: %q, %v", other, err)
	}
}
