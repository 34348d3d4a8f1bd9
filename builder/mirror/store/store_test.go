package store_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/mirror/catalog"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/store"
	"github.com/slipwayhq/slipway/builder/mirror/volume"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestMain(m *testing.M) {
	// No test here cuts power, so none needs a real disk; flushing a busy one takes long.
	var st syscall.Statfs_t
	if syscall.Statfs("/dev/shm", &st) == nil && st.Bavail*uint64(st.Bsize) > 256<<20 {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var made = time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)

func newKey(t *testing.T) *sign.Key {
	t.Helper()
	k, err := sign.Generate("plant-7", made.Add(-time.Hour), 0)
	must(t, err)
	return k
}

// bundle is a bundle made by hand.
type bundle struct {
	site    string // plant-7 unless it is told
	edition int64
	signers []*sign.Key
	keys    []*sign.Key // that it brings; nil: the signers
	files   map[string]string
	on      map[string][]int // volumes of a file's parts, which are as long as each other; {1} unless it is told
	lacks   []string         // files that are on no volume
}

// date is when an edition was made.
func date(edition int64) time.Time { return made.Add(time.Duration(edition) * time.Hour) }

func sum(content string) string {
	h := sha256.Sum256([]byte(content))
	return hex.EncodeToString(h[:])
}

// write makes the bundle's volumes and returns their directories.
func (b bundle) write(t *testing.T) []string {
	t.Helper()
	c := &catalog.Catalog{Site: "plant-7", Edition: b.edition, Date: date(b.edition), Volumes: 1}
	if b.site != "" {
		c.Site = b.site
	}
	keys := b.keys
	if keys == nil {
		keys = b.signers
	}
	files := maps.Clone(b.files)
	if files == nil {
		files = map[string]string{}
	}
	files["keys/site.asc"] = string(sign.Public(keys))
	dir := t.TempDir()
	seen := map[string]bool{}
	for path, content := range files {
		whole := sum(content)
		c.Files = append(c.Files, catalog.File{Path: path, Size: int64(len(content)), SHA256: whole})
		must(t, os.WriteFile(filepath.Join(dir, whole), []byte(content), 0o644))
		if seen[whole] || slices.Contains(b.lacks, path) {
			continue
		}
		seen[whole] = true
		on := b.on[path]
		if on == nil {
			on = []int{1}
		}
		length := len(content) / len(on)
		for i, volume := range on {
			part := content[i*length : (i+1)*length]
			c.Parts = append(c.Parts, catalog.Part{Volume: volume, SHA256: sum(part), Size: int64(length), File: whole, Offset: int64(i * length)})
			c.Volumes = max(c.Volumes, volume)
		}
	}
	var dirs []string
	for n := 1; n <= c.Volumes; n++ {
		to := filepath.Join(dir, volume.DirName(n))
		must(t, volume.Write(t.Context(), to, c, n, b.signers, func(sum string) (string, error) { return filepath.Join(dir, sum), nil }, func(int64) {}))
		dirs = append(dirs, to)
	}
	return dirs
}

// newStore makes an empty store that trusts the key.
func newStore(t *testing.T, key *sign.Key) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	s, err := store.Create(dir, key.Public())
	must(t, err)
	s.Close()
	return dir
}

// change opens a store and has do work with it.
func change(t *testing.T, dir string, do func(*store.Store)) {
	t.Helper()
	s, err := store.Open(dir)
	must(t, err)
	defer s.Close()
	do(s)
}

func take(t *testing.T, dir string, opts store.ImportOptions, volumes ...string) (r []store.Imported, err error) {
	t.Helper()
	change(t, dir, func(s *store.Store) { r, err = s.Import(context.Background(), volumes, opts) })
	return r, err
}

// mustTake imports and wants the last bundle published.
func mustTake(t *testing.T, dir string, volumes ...string) {
	t.Helper()
	r, err := take(t, dir, store.ImportOptions{}, volumes...)
	must(t, err)
	if len(r) == 0 || !r[len(r)-1].Published {
		t.Fatalf("not published: %+v", r)
	}
}

// flaws are what verify finds.
func flaws(t *testing.T, dir string) []string {
	t.Helper()
	s, err := store.Read(dir)
	must(t, err)
	r, err := s.Verify(t.Context(), store.VerifyOptions{})
	must(t, err)
	var all []string
	for _, f := range r.Wrong {
		all = append(all, f.String())
	}
	return all
}

func trusted(t *testing.T, dir string) []string {
	t.Helper()
	s, err := store.Read(dir)
	must(t, err)
	return s.Ring().Fingerprints()
}

func TestAKeyThatABundleRetiredStaysOut(t *testing.T) {
	old, young := newKey(t), newKey(t)
	dir := newStore(t, old)
	mustTake(t, dir, bundle{edition: 1, signers: []*sign.Key{old}}.write(t)...)
	both := bundle{edition: 2, signers: []*sign.Key{old, young}}.write(t)
	mustTake(t, dir, both...)
	mustTake(t, dir, bundle{edition: 3, signers: []*sign.Key{young}}.write(t)...)

	stolen := bundle{edition: 9, signers: []*sign.Key{old}}.write(t)
	file := append(old.Public(), young.Public()...) // of the topology, which still names the old key
	change(t, dir, func(s *store.Store) {
		retired, err := s.Trust(file, false)
		must(t, err)
		if !slices.Equal(retired, []string{old.Fingerprint()}) {
			t.Errorf("left out are %v, want %s", retired, old.Fingerprint())
		}
	})
	if got := trusted(t, dir); !slices.Equal(got, []string{young.Fingerprint()}) {
		t.Errorf("trusted are %v", got)
	}
	if _, err := take(t, dir, store.ImportOptions{}, stolen...); fault.Of(err) != fault.Integrity {
		t.Errorf("a bundle under the retired key: %v", err)
	}
	if wrong := flaws(t, dir); len(wrong) > 0 {
		t.Errorf("verify says %q", wrong)
	}

	// Neither does going back to a bundle of the time when both signed let it in.
	_, err := take(t, dir, store.ImportOptions{AllowOlder: true}, both...)
	must(t, err)
	if got := trusted(t, dir); !slices.Equal(got, []string{young.Fingerprint()}) {
		t.Errorf("after going back, trusted are %v", got)
	}
	mustTake(t, dir, bundle{edition: 4, signers: []*sign.Key{young}}.write(t)...)

	// Whoever insists has it back.
	change(t, dir, func(s *store.Store) {
		retired, err := s.Trust(old.Public(), true)
		must(t, err)
		if len(retired) > 0 {
			t.Errorf("left out are %v", retired)
		}
	})
	mustTake(t, dir, stolen...)
}

// A key that was given by hand before a bundle brings it is not retired by bundles that do not know of it.
func TestAKeyThatIsAheadOfItsBundleIsNotRetired(t *testing.T) {
	old, young := newKey(t), newKey(t)
	dir := newStore(t, old)
	mustTake(t, dir, bundle{edition: 1, signers: []*sign.Key{old}}.write(t)...)
	trust := func() {
		change(t, dir, func(s *store.Store) {
			retired, err := s.Trust(young.Public(), false)
			must(t, err)
			if len(retired) > 0 {
				t.Errorf("left out are %v", retired)
			}
		})
	}
	trust()
	mustTake(t, dir, bundle{edition: 2, signers: []*sign.Key{old}}.write(t)...)
	trust()
	mustTake(t, dir, bundle{edition: 3, signers: []*sign.Key{young}}.write(t)...)
	if got := strings.Join(trusted(t, dir), " "); got != young.Fingerprint() {
		t.Errorf("trusted are %s", got)
	}
}

func TestPublishedFilesBearTheDateOfTheirBundle(t *testing.T) {
	key := newKey(t)
	dir := newStore(t, key)
	for n := int64(1); n <= 2; n++ {
		release := fmt.Sprint("edition ", n)
		mustTake(t, dir, bundle{edition: n, signers: []*sign.Key{key}, files: map[string]string{"debian/dists/a/InRelease": release, "slipway/cut": release + release},
			on: map[string][]int{"slipway/cut": {1, 2}}}.write(t)...)
		for _, name := range []string{"debian/dists/a/InRelease", "slipway/cut"} {
			st, err := os.Stat(filepath.Join(dir, "public", name))
			must(t, err)
			if !st.ModTime().Equal(date(n)) {
				t.Errorf("%s of edition %d, made %s, bears %s", name, n, date(n), st.ModTime().UTC())
			}
		}
	}
}

func TestOnlyTheOwnerChangesAStore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("only root can have a store of another user")
		return
	}
	key := newKey(t)
	dir := newStore(t, key)
	mustTake(t, dir, bundle{edition: 1, signers: []*sign.Key{key}}.write(t)...)
	u, err := user.Lookup("nobody")
	must(t, err)
	uid, err := strconv.Atoi(u.Uid)
	must(t, err)
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Chown(p, uid, 0)) }))
	if _, err := store.Open(dir); fault.Of(err) != fault.Usage || !strings.Contains(fault.Mend(err), "sudo -u nobody slipway") {
		t.Errorf("root may write there: %v, %q", err, fault.Mend(err))
	}
	if wrong := flaws(t, dir); len(wrong) > 0 {
		t.Errorf("root may not look: %q", wrong)
	}
	s, err := store.Read(dir)
	must(t, err)
	if _, err := s.Receipt(made); err != nil {
		t.Errorf("root may not write a receipt: %v", err)
	}
	empty := t.TempDir()
	must(t, os.Chown(empty, uid, 0))
	if _, err := store.Create(empty, key.Public()); fault.Of(err) != fault.Usage {
		t.Errorf("root makes a store in another user's directory: %v", err)
	}
	if left, _ := os.ReadDir(empty); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}

func TestAStoreThatMayNotBeWrittenSaysSo(t *testing.T) {
	key := newKey(t)
	dir := newStore(t, key)
	volumes := bundle{edition: 1, signers: []*sign.Key{key}}.write(t)
	s, err := store.Open(dir)
	must(t, err)
	defer s.Close()
	refused := func(why string, class fault.Class) {
		t.Helper()
		if _, err := s.Import(t.Context(), volumes, store.ImportOptions{}); fault.Of(err) != class || fault.Mend(err) == "" {
			t.Errorf("%s: %v (%s), %q", why, err, fault.Of(err), fault.Mend(err))
		}
	}
	if os.Geteuid() != 0 {
		must(t, os.Chmod(filepath.Join(dir, "catalogs"), 0o555))
		refused("a directory without permission", fault.Usage)
		return
	}
	// Root is stopped by no permission; this thread gives that up for its access to files (setfsuid(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	must(t, unix.Setfsuid(65534))
	refused("a directory without permission", fault.Usage)
	must(t, unix.Setfsuid(0))
	must(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	defer unix.Unmount(dir, unix.MNT_DETACH)
	must(t, unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	s.Close()
	if s, err = store.Read(dir); err == nil {
		refused("a file system that is read-only", fault.Missing)
	}
	must(t, err)
}

func TestWhateverAMediumFailsWithTheRestOfItIsTaken(t *testing.T) {
	key := newKey(t)
	files := map[string]string{"a": "one", "b": "two", "c": "three"}
	at := func(dir, file string) string { return filepath.Join(dir, volume.PartPath(sum(files[file]))) }
	for name, spoil := range map[string]func(dir string) error{
		"a file for a directory": func(dir string) error {
			up := filepath.Dir(at(dir, "b"))
			return errors.Join(os.RemoveAll(up), os.WriteFile(up, nil, 0o644))
		},
		"a link out of the medium": func(dir string) error {
			up := filepath.Dir(at(dir, "b"))
			return errors.Join(os.Rename(up, filepath.Join(dir, "..", "elsewhere")), os.Symlink("../../elsewhere", up))
		},
		"a link to itself": func(dir string) error {
			up := filepath.Dir(at(dir, "b"))
			return errors.Join(os.RemoveAll(up), os.Symlink(filepath.Base(up), up))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newStore(t, key)
			b := bundle{edition: 1, signers: []*sign.Key{key}, files: files}
			broken := b.write(t)
			must(t, spoil(broken[0]))
			r, err := take(t, dir, store.ImportOptions{}, broken...)
			if fault.Of(err) != fault.Integrity || len(r) != 1 || r[0].Published || len(r[0].Damaged) != 1 || !strings.Contains(r[0].Damaged[0], volume.PartPath(sum("two"))) {
				t.Fatalf("%v (%s), %+v", err, fault.Of(err), r)
			}
			for file, want := range map[string]bool{"a": true, "b": false, "c": true} {
				hash := sum(files[file])
				if _, err := os.Stat(filepath.Join(dir, "blobs", hash[:2], hash)); (err == nil) != want {
					t.Errorf("%s is taken: %v, want %v", file, err == nil, want)
				}
			}
			if !strings.Contains(err.Error(), "1 files of volume 1 of edition 1 are damaged") || !strings.HasPrefix(fault.Mend(err), "bring volume 1 again") {
				t.Errorf("it does not say which volume: %v, %q", err, fault.Mend(err))
			}
			mustTake(t, dir, b.write(t)...)
		})
	}
}

// harm changes the bytes of a file of a volume, or of the store.
func harm(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	data[len(data)/2] ^= 1
	must(t, os.Chmod(path, 0o644))
	must(t, os.WriteFile(path, data, 0o644))
}

func TestAGoodCopyMakesUpForADamagedOneInEitherOrder(t *testing.T) {
	key := newKey(t)
	b := bundle{edition: 1, signers: []*sign.Key{key}, files: map[string]string{"a": "one", "b": "two", "c": "more"}, on: map[string][]int{"c": {2}}}
	good := b.write(t)
	bad, worse := b.write(t)[0], b.write(t)[0]
	harm(t, filepath.Join(bad, volume.PartPath(sum("one"))))
	harm(t, filepath.Join(worse, volume.PartPath(sum("one"))))
	harm(t, filepath.Join(worse, volume.PartPath(sum("two"))))
	var notices []string
	opts := store.ImportOptions{Notice: func(text string) { notices = append(notices, text) }}
	for name, c := range map[string]struct {
		media     []string
		damaged   int // files that are named
		noticed   int // media that are
		published bool
	}{
		"the damaged first":         {[]string{bad, good[0], good[1]}, 1, 1, true},
		"the good first":            {[]string{good[0], bad, good[1]}, 0, 0, true}, // nothing of the other is read
		"another volume to come":    {[]string{bad, good[0]}, 1, 1, false},
		"two that are damaged":      {[]string{worse, bad, good[0], good[1]}, 3, 2, true},
		"each has what one has not": {[]string{worse, bad, good[1]}, 3, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			notices = nil
			dir := newStore(t, key)
			r, err := take(t, dir, opts, c.media...)
			if len(r) != 1 || r[0].Published != c.published || len(r[0].Damaged) != c.damaged || len(notices) != c.noticed {
				t.Errorf("%v, %+v, told are %q", err, r, notices)
			}
			if c.noticed > 0 && !strings.Contains(strings.Join(notices, "\n"), bad+" holds volume 1 of 2, edition 1 of plant-7, of which 1 files are damaged") {
				t.Errorf("told are %q", notices)
			}
			if lost := name == "each has what one has not"; lost != (fault.Of(err) == fault.Integrity) || lost != strings.HasPrefix(fault.Mend(err), "bring volume 1 again") || !lost && err != nil {
				t.Errorf("%v, %q", err, fault.Mend(err))
			}
			if !c.published {
				mustTake(t, dir, good...)
			}
			if wrong := flaws(t, dir); len(wrong) > 0 {
				t.Errorf("verify says %q", wrong)
			}
		})
	}
}

// cutPublishing has the publishing of a bundle be cut off, as by a power cut.
func cutPublishing(t *testing.T, dir string, volumes ...string) {
	t.Helper()
	// A directory in the place of a file that is linked late ends the publishing there.
	inTheWay := filepath.Join(dir, "public/oci/index.json/x")
	must(t, os.MkdirAll(inTheWay, 0o755))
	if _, err := take(t, dir, store.ImportOptions{}, volumes...); err == nil {
		t.Fatal("the publishing was not cut off")
	}
	must(t, os.RemoveAll(filepath.Dir(inTheWay)))
	s, err := store.Read(dir)
	must(t, err)
	if w := s.Status(made).Warnings; !strings.Contains(strings.Join(w, "\n"), "cut off") {
		t.Fatalf("status says %q", w)
	}
}

func TestAPublishingThatWasCutOffIsEndedWhateverBecameOfItsCatalog(t *testing.T) {
	key := newKey(t)
	mine := []*sign.Key{key}
	keys := sum(string(key.Public()))
	catalogs := func(dir string) string {
		found, err := filepath.Glob(filepath.Join(dir, "catalogs", "2-*"))
		must(t, err)
		return found[0]
	}
	for name, damage := range map[string]func(dir string){
		"it is whole":      func(string) {},
		"it is missing":    func(dir string) { must(t, os.Remove(catalogs(dir))) },
		"it is damaged":    func(dir string) { harm(t, catalogs(dir)) },
		"it is cut off":    func(dir string) { must(t, os.Truncate(catalogs(dir), 20)) },
		"keys are damaged": func(dir string) { harm(t, filepath.Join(dir, "blobs", keys[:2], keys)) },
		"all of it is gone": func(dir string) {
			must(t, os.Remove(catalogs(dir)))
			must(t, os.RemoveAll(filepath.Join(dir, "blobs")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newStore(t, key)
			mustTake(t, dir, bundle{edition: 1, signers: mine, files: map[string]string{"a": "old"}}.write(t)...)
			second := bundle{edition: 2, signers: mine, files: map[string]string{"a": "one", "oci/index.json": "{}"}}.write(t)
			cutPublishing(t, dir, second...)
			damage(dir)
			mustTake(t, dir, second...)
			if wrong := flaws(t, dir); len(wrong) > 0 {
				t.Errorf("verify says %q", wrong)
			}
			s, err := store.Read(dir)
			must(t, err)
			if st := s.Status(made); st.Edition != 2 || len(st.Warnings) > 1 { // the clock
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestAVolumeThatIsOfNoUseKeepsNoOtherOut(t *testing.T) {
	key, stranger := newKey(t), newKey(t)
	dir := newStore(t, key)
	mine := []*sign.Key{key}
	first := bundle{edition: 1, signers: mine}.write(t)
	mustTake(t, dir, first...)
	mustTake(t, dir, bundle{edition: 2, signers: mine}.write(t)...)
	third := bundle{edition: 3, signers: mine}.write(t)
	foreign := bundle{edition: 7, signers: []*sign.Key{stranger}}.write(t)
	elsewhere := bundle{site: "plant-8", edition: 9, signers: mine}.write(t)
	other := bundle{edition: 2, signers: mine, files: map[string]string{"a": "another"}}.write(t)

	// An old disc alone is refused; beside a newer one it is passed over.
	if _, err := take(t, dir, store.ImportOptions{}, first...); fault.Of(err) != fault.Input || !strings.Contains(fault.Mend(err), "--allow-older") {
		t.Errorf("an old disc: %v", err)
	}
	var notices []string
	opts := store.ImportOptions{Notice: func(text string) { notices = append(notices, text) }}
	r, err := take(t, dir, opts, slices.Concat(first, third)...)
	if err != nil || len(r) != 1 || r[0].Edition != 3 || !r[0].Published {
		t.Errorf("an old disc and a new one: %v, %+v", err, r)
	}
	if len(notices) != 1 || !strings.Contains(notices[0], first[0]+" holds volume 1 of 1, edition 1") {
		t.Errorf("told are %q", notices)
	}

	fourth := bundle{edition: 4, signers: mine}.write(t)
	r, err = take(t, dir, opts, slices.Concat(foreign, elsewhere, other, []string{t.TempDir()}, fourth)...)
	if len(r) != 1 || r[0].Edition != 4 || !r[0].Published {
		t.Errorf("what is right among what is wrong: %+v", r)
	}
	for _, want := range []string{foreign[0], "plant-8", "holds no volume"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error names no %q: %v", want, err)
		}
	}
	if fault.Of(err) != fault.Integrity {
		t.Errorf("class %s", fault.Of(err))
	}

	// Of two bundles of one number only the first that comes is taken.
	twins := slices.Concat(bundle{edition: 5, signers: mine, files: map[string]string{"a": "x"}}.write(t), bundle{edition: 5, signers: mine, files: map[string]string{"a": "y"}}.write(t))
	r, err = take(t, dir, opts, twins...)
	if len(r) != 1 || !r[0].Published || fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "one number") {
		t.Errorf("two bundles of one number: %v, %+v", err, r)
	}
}

func count(t *testing.T, dir string) (n int) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	}))
	return n
}

func TestGCRemovesNothingWithoutTheCatalogOfWhatIsPublished(t *testing.T) {
	key := newKey(t)
	dir := newStore(t, key)
	volumes := bundle{edition: 1, signers: []*sign.Key{key}, files: map[string]string{"a": "one"}}.write(t)
	mustTake(t, dir, volumes...)
	found, err := filepath.Glob(filepath.Join(dir, "catalogs", "1-*"))
	must(t, err)
	must(t, os.Remove(found[0]))
	before := count(t, dir)
	change(t, dir, func(s *store.Store) {
		if r, err := s.GC(t.Context(), 0, false); fault.Of(err) != fault.Integrity || !strings.Contains(fault.Mend(err), "import any volume of edition 1") {
			t.Errorf("%+v, %v, %q", r, err, fault.Mend(err))
		}
	})
	if after := count(t, dir); after != before {
		t.Errorf("of %d files %d are left", before, after)
	}
	mustTake(t, dir, volumes...)
	if wrong := flaws(t, dir); len(wrong) > 0 {
		t.Errorf("%q", wrong)
	}
}

func TestGCCountsOnlyBundlesThatCanBeGoneBackTo(t *testing.T) {
	key := newKey(t)
	mine := []*sign.Key{key}
	dir := newStore(t, key)
	for n := int64(1); n <= 5; n++ {
		volumes := bundle{edition: n, signers: mine, files: map[string]string{"a": fmt.Sprint("content ", n), "b": fmt.Sprint("more ", n)}, on: map[string][]int{"b": {2}}}.write(t)
		if n == 3 || n == 4 {
			volumes = volumes[:1] // their second volumes never came
		}
		_, err := take(t, dir, store.ImportOptions{}, volumes...)
		must(t, err)
	}
	change(t, dir, func(s *store.Store) {
		r, err := s.GC(t.Context(), 1, false)
		must(t, err)
		if r.Catalogs != 3 {
			t.Errorf("%+v", r)
		}
	})
	left, err := filepath.Glob(filepath.Join(dir, "catalogs", "*"))
	must(t, err)
	var names []string
	for _, p := range left {
		names = append(names, filepath.Base(p)[:2])
	}
	if !slices.Equal(names, []string{"2-", "5-"}) {
		t.Errorf("kept are %v, want the published bundle 5 and 2, the last complete one before it", names)
	}
	for content, want := range map[string]bool{"content 1": false, "content 2": true, "more 2": true, "content 3": false, "content 4": false, "more 5": true} {
		hash := sum(content)
		if _, err := os.Stat(filepath.Join(dir, "blobs", hash[:2], hash)); (err == nil) != want {
			t.Errorf("%q is there: %v, want %v", content, err == nil, want)
		}
	}
}

func TestFilesMayHavePartsInCommon(t *testing.T) {
	key := newKey(t)
	dir := newStore(t, key)
	files := map[string]string{"one": "commonfirst!", "two": "commonsecond", "late": "commonlatest"}
	volumes := bundle{edition: 1, signers: []*sign.Key{key}, files: files,
		on: map[string][]int{"one": {1, 1}, "two": {1, 1}, "late": {1, 2}}}.write(t)
	r, err := take(t, dir, store.ImportOptions{}, volumes[0])
	must(t, err)
	if !slices.Equal(r[0].Missing, []int{2}) {
		t.Errorf("still to come: %v", r[0].Missing)
	}
	mustTake(t, dir, volumes[1])
	for file, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, "public", file)); string(got) != want {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
	if n := count(t, filepath.Join(dir, "parts")); n > 0 {
		t.Errorf("%d parts are left", n)
	}
}

func TestVolumesOfOneBundleShareTheCatalogInMemory(t *testing.T) {
	key := newKey(t)
	dirs := bundle{edition: 1, signers: []*sign.Key{key}, files: map[string]string{"a": "one", "b": "two"}, on: map[string][]int{"b": {2}}}.write(t)
	ring, err := sign.ParseRing(key.Public())
	must(t, err)
	first, err := volume.Open(dirs[0], ring)
	must(t, err)
	defer first.Close()
	second, err := volume.Open(dirs[1], ring, first)
	must(t, err)
	second.Close()
	if second.Content != first.Content || &second.CatalogData[0] != &first.CatalogData[0] {
		t.Error("each has one of its own")
	}
	// It is compared all the same.
	must(t, os.Truncate(filepath.Join(dirs[1], volume.CatalogName), 20))
	if _, err := volume.Open(dirs[1], ring, first); fault.Of(err) != fault.Integrity {
		t.Errorf("a catalog that was cut off: %v", err)
	}
}

func TestEverybodyMayReadAMediumWhateverTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dirs := bundle{edition: 1, signers: []*sign.Key{newKey(t)}}.write(t)
	must(t, filepath.WalkDir(dirs[0], func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if want := map[bool]fs.FileMode{true: 0o755, false: 0o644}[d.IsDir()]; err == nil && st.Mode().Perm() != want {
			t.Errorf("%s has mode %s", p, st.Mode())
		}
		return err
	}))
}
