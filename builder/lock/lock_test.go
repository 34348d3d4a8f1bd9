package lock_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/apt/apttest"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/internal/fault"
)

// world is a small archive with a cache and what is wanted from it.
type world struct {
	t     *testing.T
	a     *apttest.Archive
	dist  *apt.Distribution
	cache *cache.Cache
	want  lock.Want
}

func newWorld(t *testing.T) *world {
	t.Helper()
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	a := apttest.New(t)
	return &world{t: t, a: a, dist: a.Distribution(), cache: c, want: lock.Want{Sets: []lock.Set{
		{Name: "base", File: "/some/where/profiles/base.yaml", Packages: []string{"shell"}},
		{Name: "web", File: "/some/where/profiles/web.yaml", Extends: "base", Packages: []string{"server"}},
	}}}
}

// The first state of the archive.
var first = []string{
	"Package: libc\nEssential: yes\nVersion: 1",
	"Package: shell\nDepends: libc",
	"Package: server\nVersion: 1\nSource: web\nDepends: server-common (= 1), libc, libssl",
	"Package: server-common\nVersion: 1\nSource: web",
	"Package: libssl\nVersion: 1",
	"Package: editor\nDepends: libssl",
}

func (w *world) publish(day int, packages ...string) *apt.Archive {
	w.t.Helper()
	w.a.Date = time.Date(2026, 11, day, 0, 0, 0, 0, time.UTC)
	w.a.Publish(packages...)
	archive, err := apt.Load(w.t.Context(), w.cache, w.dist, w.a.Locations(), apt.LoadOptions{Now: w.a.Date})
	if err != nil {
		w.t.Fatal(err)
	}
	return archive
}

func (w *world) resolve(archive *apt.Archive, previous *lock.Lock, upgrade ...string) *lock.Lock {
	w.t.Helper()
	l, err := lock.Resolve(w.t.Context(), w.cache, archive, w.want, previous, upgrade, fetch.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// versions words a lock's packages.
func versions(l *lock.Lock) string {
	var ids []string
	for _, p := range l.Packages {
		ids = append(ids, p.ID())
	}
	return strings.Join(ids, ", ")
}

// after changes the version of packages in a state of the archive.
func after(state []string, changes ...string) []string {
	text := strings.NewReplacer(changes...)
	var out []string
	for _, p := range state {
		out = append(out, text.Replace(p))
	}
	return out
}

func TestSetsAreResolvedOnTopOfEachOther(t *testing.T) {
	w := newWorld(t)
	l := w.resolve(w.publish(1, first...), nil)
	if got := versions(l); got != "libc 1, libssl 1, server 1, server-common 1, shell 1" {
		t.Fatalf("locked %s", got)
	}
	names := func(packages []lock.Package) string {
		var out []string
		for _, p := range packages {
			out = append(out, p.Name)
		}
		return strings.Join(out, " ")
	}
	if got := names(l.Own("web")); got != "libssl server server-common" {
		t.Errorf("web's own: %s", got)
	}
	if got := names(l.Closure("web")); got != "libc libssl server server-common shell" {
		t.Errorf("web with base: %s", got)
	}
	if got := names(l.Closure("base")); got != "libc shell" {
		t.Errorf("base: %s", got)
	}
	if !l.Date().Equal(w.a.Date) {
		t.Errorf("date %s, want that of the archive, %s", l.Date(), w.a.Date)
	}
	if s, _ := l.Set("web"); s.File != "profiles/web.yaml" {
		t.Errorf("file %s depends on where the project stands", s.File)
	}
}

func TestALockIsTheSameBytesAgain(t *testing.T) {
	w := newWorld(t)
	archive := w.publish(1, first...)
	a := w.resolve(archive, nil)
	slices.Reverse(w.want.Sets)
	b := w.resolve(archive, nil)
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the order of wanted sets shows in the file")
	}
	path := filepath.Join(t.TempDir(), "images.lock")
	if err := a.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	c, err := lock.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), c.Bytes()) || a.Checksum() != c.Checksum() {
		t.Error("reading and writing changed it")
	}
	for _, p := range c.Packages {
		line := strings.Split(string(c.Bytes()), "\n")[p.Line-1]
		if !strings.HasPrefix(line, "deb "+p.Name+" ") {
			t.Errorf("%s is said to be at line %d, where stands %q", p.Name, p.Line, line)
		}
	}
}

func TestLockingAgainKeepsWhatIsLocked(t *testing.T) {
	w := newWorld(t)
	one := w.resolve(w.publish(1, first...), nil)

	t.Run("no byte changes when only the archive's date moves on", func(t *testing.T) {
		if two := w.resolve(w.publish(2, first...), one); two != one {
			t.Error("the lock changed")
		}
	})
	second := w.publish(3, append(after(first, "libssl\nVersion: 1", "libssl\nVersion: 2"), "Package: libssl\nVersion: 1")...)
	t.Run("a version that is still there stays", func(t *testing.T) {
		if got := versions(w.resolve(second, one)); !strings.Contains(got, "libssl 1") {
			t.Errorf("locked %s", got)
		}
	})
	t.Run("what is newly wanted comes with it", func(t *testing.T) {
		w.want.Sets[1].Packages = append(w.want.Sets[1].Packages, "editor")
		defer func() { w.want.Sets[1].Packages = w.want.Sets[1].Packages[:1] }()
		if got := versions(w.resolve(second, one)); got != "editor 1, libc 1, libssl 1, server 1, server-common 1, shell 1" {
			t.Errorf("locked %s", got)
		}
	})
	t.Run("--upgrade moves what it names", func(t *testing.T) {
		if got := versions(w.resolve(second, one, "libssl")); !strings.Contains(got, "libssl 2") {
			t.Errorf("locked %s", got)
		}
	})
	third := w.publish(4, after(first, "Version: 1\nSource: web", "Version: 2\nSource: web", "(= 1)", "(= 2)", "libc\nEssential: yes\nVersion: 1", "libc\nEssential: yes\nVersion: 2")...)
	t.Run("a superseded version stays while its file can be had", func(t *testing.T) {
		if got := versions(w.resolve(third, one)); got != versions(one) {
			t.Errorf("locked %s", got)
		}
	})
	t.Run("packages of one source move together", func(t *testing.T) {
		if got := versions(w.resolve(third, one, "server")); got != "libc 1, libssl 1, server 2, server-common 2, shell 1" {
			t.Errorf("locked %s", got)
		}
	})
	t.Run("--upgrade alone moves everything", func(t *testing.T) {
		if got := versions(w.resolve(third, one, lock.All)); got != "libc 2, libssl 1, server 2, server-common 2, shell 1" {
			t.Errorf("locked %s", got)
		}
	})
	t.Run("a version that is nowhere any more is replaced", func(t *testing.T) {
		if err := os.Remove(filepath.Join(w.a.Dir, "pool/server_1_amd64.deb")); err != nil {
			t.Fatal(err)
		}
		if got := versions(w.resolve(third, one)); !strings.Contains(got, "server 2, server-common 2") {
			t.Errorf("locked %s", got)
		}
	})
	t.Run("upgrading what is not locked is a usage error", func(t *testing.T) {
		_, err := lock.Resolve(t.Context(), w.cache, third, w.want, one, []string{"gone"}, fetch.Options{})
		if fault.Of(err) != fault.Usage {
			t.Errorf("got %v", err)
		}
	})
}

func TestWhatIsLockedGivesWayToWhatIsWantedNow(t *testing.T) {
	w := newWorld(t)
	one := w.resolve(w.publish(1, first...), nil)
	archive := w.publish(2, append(after(first, "libssl\nVersion: 1", "libssl\nVersion: 2"), "Package: libssl\nVersion: 1", "Package: new\nDepends: libssl (>= 2)")...)
	w.want.Sets[1].Packages = append(w.want.Sets[1].Packages, "new")
	if got := versions(w.resolve(archive, one)); got != "libc 1, libssl 2, new 1, server 1, server-common 1, shell 1" {
		t.Errorf("locked %s", got)
	}
}

func TestEveryEditIsRefusedWithItsLine(t *testing.T) {
	w := newWorld(t)
	good := string(w.resolve(w.publish(1, first...), nil).Bytes())
	lines := strings.Split(strings.TrimSuffix(good, "\n"), "\n")
	find := func(prefix string) int {
		return slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, prefix) })
	}
	edit := func(i int, change func(string) string) []string {
		out := slices.Clone(lines)
		out[i] = change(out[i])
		return out
	}
	server := find("deb server ")
	tests := map[string]struct {
		lines []string
		line  int // counted from 1; 0: any
		says  string
	}{
		"a version changed":        {edit(server, func(s string) string { return strings.Replace(s, " 1 ", " 2 ", 1) }), server + 1, "edited"},
		"a hash changed":           {edit(server, func(s string) string { return strings.Replace(s, "a", "b", 1) }), server + 1, "edited"},
		"a root changed":           {edit(find("root web"), func(s string) string { return strings.Replace(s, "server", "servant", 1) }), find("root web") + 1, "edited"},
		"the mark gone":            {edit(server, func(s string) string { return s[:strings.LastIndex(s, " #")] }), server + 1, "mark"},
		"a package removed":        {slices.Delete(slices.Clone(lines), server, server+1), 0, "removed"},
		"a package twice":          {slices.Insert(slices.Clone(lines), server, lines[server]), 0, "twice"},
		"two lines swapped":        {append(append(slices.Clone(lines[:server]), lines[server+1], lines[server]), lines[server+2:]...), server + 1, "moved"},
		"the header changed":       {edit(0, func(s string) string { return s + "!" }), 1, "checksum"},
		"the checksum changed":     {edit(len(lines)-1, func(string) string { return "checksum 00" }), len(lines), "checksum"},
		"the checksum gone":        {lines[:len(lines)-1], 0, "before its checksum"},
		"text after the checksum":  {append(slices.Clone(lines), "deb x"), len(lines) + 1, "after"},
		"a merge conflict":         {slices.Insert(slices.Clone(lines), 5, "<<<<<<< HEAD"), 6, "merge conflict"},
		"an empty line in between": {slices.Insert(slices.Clone(lines), 5, ""), 6, "mark"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := lock.Parse("images.lock", []byte(strings.Join(test.lines, "\n")+"\n"))
			if fault.Of(err) != fault.Input || err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v, want %q", err, test.says)
			}
			if test.line > 0 && !strings.HasPrefix(err.Error(), fmt.Sprintf("images.lock:%d: ", test.line)) {
				t.Errorf("got %v, want line %d", err, test.line)
			}
			if !strings.Contains(fault.Mend(err), "slipway lock") {
				t.Errorf("mend: %q", fault.Mend(err))
			}
		})
	}
	if _, err := lock.Parse("images.lock", []byte(good)); err != nil {
		t.Errorf("the unchanged one: %v", err)
	}
	if _, err := lock.Read(filepath.Join(t.TempDir(), "images.lock")); fault.Of(err) != fault.Input || !strings.Contains(fault.Mend(err), "slipway lock") {
		t.Errorf("a missing one: %v", err)
	}
}

func TestALockThatIsNotWholeIsLockedAnewFromWhatIsLeft(t *testing.T) {
	w := newWorld(t)
	one := w.resolve(w.publish(1, first...), nil)
	moved := w.publish(2, append(after(first, "libssl\nVersion: 1", "libssl\nVersion: 2", "shell\n", "shell\nVersion: 3\n"), "Package: libssl\nVersion: 1", "Package: shell\nVersion: 1")...)
	text := string(one.Bytes())
	for name, broken := range map[string]string{
		"edited":      strings.Replace(text, "deb shell 1", "deb shell 9", 1),
		"in conflict": strings.Replace(text, "deb shell 1", "<<<<<<< ours\ndeb shell 1", 1) + ">>>>>>> theirs\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "images.lock")
			if err := os.WriteFile(path, []byte(broken), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := lock.Read(path); err == nil {
				t.Fatal("it was taken for whole")
			}
			previous, err := lock.Salvage(path)
			if err != nil {
				t.Fatal(err)
			}
			next := w.resolve(moved, previous)
			if next == previous || !strings.Contains(versions(next), "libssl 1") {
				t.Errorf("locked %s", versions(next))
			}
			if _, err := lock.Parse(path, next.Bytes()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAStaleLockNamesWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	l := w.resolve(w.publish(1, first...), nil)
	if err := l.Check(w.want); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		sets []lock.Set
		says []string
	}{
		"a new package":              {[]lock.Set{{Name: "web", File: "web.yaml", Extends: "base", Packages: []string{"server", "editor"}}}, []string{"web.yaml", "editor"}},
		"a package no longer wanted": {[]lock.Set{{Name: "web", File: "web.yaml", Extends: "base"}}, []string{"web.yaml", "server"}},
		"a new set":                  {[]lock.Set{{Name: "mail", File: "mail.yaml"}}, []string{"mail.yaml"}},
		"another base":               {[]lock.Set{{Name: "web", File: "web.yaml", Packages: []string{"server"}}}, []string{"web"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := l.Check(lock.Want{Sets: test.sets})
			if fault.Of(err) != fault.Input || !strings.Contains(fault.Mend(err), "slipway lock") {
				t.Fatalf("got %v", err)
			}
			for _, s := range test.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%v: does not name %s", err, s)
				}
			}
		})
	}
}

func TestALockOfAnotherDistributionDoesNotCount(t *testing.T) {
	w := newWorld(t)
	archive := w.publish(1, first...)
	l := w.resolve(archive, nil)
	w.want.Distribution = "test"
	if err := l.Check(w.want); err != nil {
		t.Fatal(err)
	}
	w.want.Distribution = "other"
	if err := l.Check(w.want); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "other") {
		t.Errorf("got %v", err)
	}
	l.Distribution = "other"
	l.Packages[0].Version = "0"
	if got := versions(w.resolve(archive, l)); !strings.Contains(got, "libc 1") {
		t.Errorf("locked %s", got)
	}
}

func TestADiffReadsAsAChangeLog(t *testing.T) {
	w := newWorld(t)
	one := w.resolve(w.publish(1, first...), nil)
	w.want.Sets[0].Packages = []string{"editor"}
	two := w.resolve(w.publish(2, after(first, "server-common\nVersion: 1", "server-common\nVersion: 0.9", "(= 1)", "(= 0.9)", "server\nVersion: 1", "server\nVersion: 1.1")...), one, lock.All)
	s := lock.Diff(one, two)
	want := `added     editor 1 (base)
removed   shell 1 (base)
upgraded  server 1 → 1.1 (web)
downgraded server-common 1 → 0.9 (web)
moved     libssl (web → base)
1 added, 1 removed, 1 upgraded, 1 downgraded; download +0.0 MiB, installed +0.0 MiB
`
	if got := s.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if b, err := json.Marshal(s); err != nil || !strings.Contains(string(b), `"from":"1","to":"1.1"`) {
		t.Errorf("as JSON: %s, %v", b, err)
	}
	if d := lock.Diff(one, one); !d.Empty() || d.String() != "" {
		t.Errorf("a lock differs from itself: %v", d)
	}
}

func TestDriftIsWhatTheArchiveHasNewAndNoLongerHas(t *testing.T) {
	w := newWorld(t)
	archive := w.publish(1, first...)
	l := w.resolve(archive, nil)
	drift := func(a *apt.Archive) *lock.DriftReport {
		r, err := lock.Drift(t.Context(), w.cache, a, w.want, l, func(*lock.Lock) error { return nil }, fetch.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := drift(archive); !r.None() || r.String() != "" {
		t.Errorf("drift at once: %v", r)
	}
	moved := w.publish(2, after(first, "libssl\nVersion: 1", "libssl\nVersion: 2")...)
	if r := drift(moved); r.None() || len(r.Gone) != 0 || !strings.Contains(r.String(), "libssl 1 → 2") {
		t.Errorf("got %v", r)
	}
	if err := os.Remove(filepath.Join(w.a.Dir, "pool/libssl_1_amd64.deb")); err != nil {
		t.Fatal(err)
	}
	if r := drift(moved); len(r.Gone) != 1 || !strings.Contains(r.String(), "gone      libssl 1") {
		t.Errorf("got %v", r)
	}
}

func TestTheItemsOfALockCanBeFetched(t *testing.T) {
	w := newWorld(t)
	l, err := lock.Parse("images.lock", w.resolve(w.publish(1, first...), nil).Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := fetch.Fetch(t.Context(), w.cache, w.a.Locations(), l.Items("base"), fetch.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, p := range l.Packages {
		_, have := w.cache.Blob(p.SHA256)
		if want := slices.Contains(p.Sets, "base"); have != want {
			t.Errorf("%s is in the cache: %v", p.Name, have)
		}
	}
}

// TestTheProjectsOwnLockIsWhole reads images.lock as it stands in the project.
func TestTheProjectsOwnLockIsWhole(t *testing.T) {
	l, err := lock.Read("../../images.lock")
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Closure("base")) < 100 {
		t.Errorf("base has %d packages", len(l.Closure("base")))
	}
}

func FuzzParse(f *testing.F) {
	if b, err := os.ReadFile("testdata/small.lock"); err == nil {
		f.Add(b)
	} else {
		f.Fatal(err)
	}
	f.Add([]byte("format 1 #8cc7\nchecksum 00\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := lock.Parse("images.lock", b)
		if err != nil {
			if fault.Of(err) != fault.Input || fault.Mend(err) == "" {
				t.Errorf("error without class or mend: %v", err)
			}
			return
		}
		if !bytes.Equal(l.Bytes(), b) {
			t.Error("a lock that was taken is not written back as it was")
		}
	})
}
