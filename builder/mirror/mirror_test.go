package mirror_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/apt/apttest"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/mirror"
	"github.com/slipwayhq/slipway/builder/mirror/receipt"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/site"
	"github.com/slipwayhq/slipway/builder/mirror/store"
	"github.com/slipwayhq/slipway/builder/mirror/volume"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// TestMain also is the process that the tests of power cuts kill.
func TestMain(m *testing.M) {
	if order := os.Getenv("MIRRORTEST_ORDER"); order != "" {
		if err := obey(order); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// No test here cuts real power, so none needs a real disk; flushing a busy one takes long. In containers
	// this file system may be tiny.
	var st syscall.Statfs_t
	if syscall.Statfs("/dev/shm", &st) == nil && st.Bavail*uint64(st.Bsize) > 4<<30 {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	os.Exit(m.Run())
}

var (
	made     = time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	volume16 = int64(16 << 20)
)

// side is a connected side: everything on disk, so that another process can work with it.
type side struct {
	Cache, Distribution, Lock, Site, Big string
	Archive                              string
	Security                             []string // URLs of the second archive, if there is one
	Now                                  time.Time
	Volume                               int64

	images    []mirror.Image
	bootstrap bool
	sources   bool
	all       []string
	clock     time.Time // zero: Now
}

// newSide makes an archive with some packages, their lock, a site, and a large file.
func newSide(t *testing.T, large int) (*side, *apttest.Archive) {
	t.Helper()
	a := apttest.New(t)
	a.Publish(packages(1)...)
	return newSideOf(t, a, large), a
}

// newSideOf is newSide for an archive that is published.
func newSideOf(t *testing.T, a *apttest.Archive, large int) *side {
	t.Helper()
	dir := t.TempDir()
	s := &side{Cache: filepath.Join(dir, "cache"), Distribution: a.Distribution().File, Archive: a.Dir, Security: a.Locations()["security"], Lock: filepath.Join(dir, "images.lock"),
		Site: filepath.Join(dir, "site"), Big: filepath.Join(dir, "big"), Now: made, Volume: volume16}
	rng := rand.NewChaCha8([32]byte{1})
	big := make([]byte, large)
	rng.Read(big)
	must(t, os.WriteFile(s.Big, big, 0o644))
	keys, err := site.Create(s.Site, "plant-7", nil, made.Add(-time.Hour), 0)
	must(t, err)
	keys.Close()
	s.relock(t)
	return s
}

// packages are the packages of the archive in one of its states.
func packages(state int) []string {
	out := []string{"Package: base\nEssential: yes\nDepends: lib (>= 1)", fmt.Sprintf("Package: lib\nVersion: %d", state)}
	for i := range 20 {
		out = append(out, fmt.Sprintf("Package: tool%d\nDepends: lib", i))
	}
	out[2+9] += ", part9" // tool9 is asked for beside the lock, and nothing in the lock needs part9
	out = append(out, "Package: part9")
	if state > 1 {
		out = append(out, "Package: news")
	}
	return out
}

// relock has the lock follow the archive.
func (s *side) relock(t *testing.T) {
	t.Helper()
	c, err := cache.Open(s.Cache)
	must(t, err)
	defer c.Close()
	d, err := apt.LoadDistribution(s.Distribution)
	must(t, err)
	archive, err := apt.Load(t.Context(), c, d, s.locations(), apt.LoadOptions{Now: s.now()})
	must(t, err)
	want := lock.Want{Sets: []lock.Set{{Name: "base", File: "profiles/base.yaml", Packages: []string{"tool1", "tool2", "tool3"}}}}
	l, err := lock.Resolve(t.Context(), c, archive, want, nil, nil, fetch.Options{})
	must(t, err)
	must(t, l.WriteFile(s.Lock))
}

func (s *side) locations() fetch.Locations {
	l := fetch.Locations{"main": {fetch.FileURL(s.Archive)}}
	if s.Security != nil {
		l["security"] = s.Security
	}
	return l
}

// create makes a bundle in out; r may be nil.
func (s *side) create(ctx context.Context, out string, r *receipt.Receipt) (*mirror.Result, error) {
	c, err := cache.Open(s.Cache)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	d, err := apt.LoadDistribution(s.Distribution)
	if err != nil {
		return nil, err
	}
	keys, err := site.Open(s.Site)
	if err != nil {
		return nil, err
	}
	defer keys.Close()
	l, err := lock.Read(s.Lock)
	if err != nil {
		return nil, err
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	m := mirror.Means{Cache: c, Distribution: d, Locations: s.locations(), Progress: progress.None, Log: log, Now: s.now()}
	req := mirror.Request{Lock: l, LockData: l.Bytes(), Extra: []string{"tool9"}, Bootstrap: s.bootstrap, Sources: s.sources, All: s.all, Programs: map[string]string{"big": s.Big}, Images: s.images, Site: keys.Name(), Volume: s.Volume, Receipt: r}
	var after int64
	if r != nil {
		after = r.Edition
	}
	return mirror.Create(ctx, keys, out, after, s.Now, m, func(b mirror.Begun) (*mirror.Plan, error) {
		req.Edition, req.Date, req.States = b.Edition, b.Date, b.States
		if req.Keys, err = keys.Signers(b.Date); err != nil {
			return nil, err
		}
		return mirror.NewPlan(ctx, req, m)
	})
}

func (s *side) mustCreate(t *testing.T, r *receipt.Receipt) (string, *mirror.Result) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "media")
	res, err := s.create(t.Context(), out, r)
	must(t, err)
	return out, res
}

// now is what the side's clock says.
func (s *side) now() time.Time {
	if s.clock.IsZero() {
		return s.Now
	}
	return s.clock
}

// public are the site's public keys.
func (s *side) public(t *testing.T) []byte {
	t.Helper()
	keys, err := site.Open(s.Site)
	must(t, err)
	defer keys.Close()
	public, err := keys.Public(s.Now)
	must(t, err)
	return public
}

// far makes an isolated side.
func (s *side) far(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	st, err := store.Create(dir, s.public(t))
	must(t, err)
	st.Close()
	return dir
}

// take imports volumes into a store.
func take(ctx context.Context, dir string, volumes ...string) ([]store.Imported, error) {
	return takeWith(ctx, dir, store.ImportOptions{}, volumes...)
}

func takeWith(ctx context.Context, dir string, opts store.ImportOptions, volumes ...string) ([]store.Imported, error) {
	s, err := store.Open(dir)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var all []string
	for _, v := range volumes {
		found, err := volume.Find(v)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return s.Import(ctx, all, opts)
}

// mustTake imports and wants the bundle published.
func mustTake(t *testing.T, dir string, volumes ...string) {
	t.Helper()
	r, err := take(t.Context(), dir, volumes...)
	must(t, err)
	if len(r) == 0 || !r[len(r)-1].Published {
		t.Fatalf("not published: %+v", r)
	}
}

// wrong verifies a store and returns what is wrong, and the report.
func wrong(t *testing.T, dir string, upstream openpgp.EntityList, repair bool) ([]string, *store.Report) {
	t.Helper()
	s, err := store.Open(dir)
	if err != nil {
		return []string{err.Error() + "; " + fault.Mend(err)}, nil
	}
	defer s.Close()
	r, err := s.Verify(t.Context(), store.VerifyOptions{Upstream: upstream, Repair: repair})
	if err != nil {
		return []string{err.Error() + "; " + fault.Mend(err)}, nil
	}
	var all []string
	for _, f := range r.Wrong {
		all = append(all, f.String())
	}
	return all, r
}

func mustBeWhole(t *testing.T, dir string, upstream openpgp.EntityList) *store.Report {
	t.Helper()
	flaws, r := wrong(t, dir, upstream, false)
	if len(flaws) > 0 {
		t.Fatalf("not whole:\n%s", strings.Join(flaws, "\n"))
	}
	return r
}

func receiptOf(t *testing.T, dir string) *receipt.Receipt {
	t.Helper()
	s, err := store.Read(dir)
	must(t, err)
	r, err := s.Receipt(made)
	must(t, err)
	again, err := receipt.Parse(r.Bytes())
	must(t, err)
	return again
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// digest is the hash of all files below a directory, names and content; but for what skip says.
func digest(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == ".slipway-bundle" {
			return err
		}
		data, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		fmt.Fprintf(h, "%s %x\n", rel, sha256.Sum256(data))
		return err
	}))
	return hex.EncodeToString(h.Sum(nil))
}

func copyTree(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(from))
	must(t, os.CopyFS(to, os.DirFS(from)))
	return to
}

func TestABundleCarriesEverythingAndProvesIt(t *testing.T) {
	s, a := newSide(t, 24<<20)
	media, res := s.mustCreate(t, nil)
	if len(res.Volumes) < 2 || res.Packages != 7 || len(res.Unproven) != 0 || res.Base != 0 {
		t.Fatalf("%+v", res)
	}
	ring, err := sign.ParseRing(s.public(t))
	must(t, err)
	for _, v := range res.Volumes {
		alone := copyTree(t, v.Path) // each is checked with nothing beside it
		opened, err := volume.Open(alone, ring)
		must(t, err)
		flaws, err := opened.Verify(t.Context(), func(int64) {})
		must(t, err)
		if len(flaws) > 0 {
			t.Errorf("volume %d: %v", v.Number, flaws)
		}
		opened.Close()
	}
	far := s.far(t)
	mustTake(t, far, media)
	r := mustBeWhole(t, far, a.Key())
	if r.Packages != 7 || r.Proven != 7 {
		t.Errorf("%d of %d packages are proven by upstream's signature, want 7", r.Proven, r.Packages)
	}
	stranger := apttest.New(t)
	if flaws, _ := wrong(t, far, stranger.Key(), false); len(flaws) == 0 {
		t.Error("a stranger's key proves upstream's signature")
	}
	big, err := os.ReadFile(filepath.Join(far, "public/slipway/big"))
	must(t, err)
	if want, _ := os.ReadFile(s.Big); !bytes.Equal(big, want) {
		t.Error("the file that was cut over volumes differs")
	}
}

// TestWhatTwoArchivesHaveIsInBoth has the lock take a package from the archive of security, and a point release
// bring it into main, unchanged.
func TestWhatTwoArchivesHaveIsInBoth(t *testing.T) {
	for name, wish := range map[string]func(*side){
		"bootstrap": func(s *side) { s.bootstrap = true },
		"all":       func(s *side) { s.all = []string{"test"} },
	} {
		t.Run(name, func(t *testing.T) {
			a := apttest.New(t)
			security := a.Beside("security")
			a.Publish(append(packages(1), "Package: apt")...)
			security.Publish("Package: lib\nVersion: 2")
			s := newSideOf(t, a, 1<<20)
			l, err := lock.Read(s.Lock)
			must(t, err)
			if !slices.ContainsFunc(l.Packages, func(p lock.Package) bool { return p.ID() == "lib 2" && p.Alias == "security" }) {
				t.Fatal("the lock did not take lib from security")
			}
			a.Date = a.Date.Add(time.Hour)
			a.Publish(append(packages(2), "Package: apt")...)
			wish(s)
			media, _ := s.mustCreate(t, nil)
			far := s.far(t)
			mustTake(t, far, media)
			mustBeWhole(t, far, a.Key())
			for archive, suite := range map[string]string{"debian": "test", "debian-security": "test-security"} {
				_, err := os.Stat(filepath.Join(far, "public", archive, "pool/lib_2_amd64.deb"))
				must(t, err)
				index, err := os.ReadFile(filepath.Join(far, "public", archive, "dists", suite, "main/binary-amd64/Packages"))
				must(t, err)
				if !strings.Contains(string(index), "Package: lib\nVersion: 2\n") {
					t.Errorf("%s does not list lib 2:\n%s", archive, index)
				}
			}
		})
	}
}

func TestABundleCanBringWhatDebootstrapInstalls(t *testing.T) {
	s, a := newSide(t, 1<<20)
	a.Publish(append(packages(1), "Package: apt\nDepends: tool12", "Package: login\nPriority: required", "Package: game\nPriority: optional")...)
	s.relock(t)
	s.bootstrap = true
	media, _ := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, media)
	mustBeWhole(t, far, a.Key())
	for name, want := range map[string]bool{"apt": true, "tool12": true, "login": true, "tool1": true, "game": false, "tool13": false} {
		_, err := os.Stat(filepath.Join(far, "public/debian/pool", name+"_1_amd64.deb"))
		if (err == nil) != want {
			t.Errorf("%s is carried: %v, want %v", name, err == nil, want)
		}
	}
}

func TestEqualInputGivesEqualVolumes(t *testing.T) {
	s, _ := newSide(t, 20<<20)
	site := copyTree(t, s.Site)
	must(t, os.Chmod(filepath.Join(site, "site.json"), 0o600))
	first, _ := s.mustCreate(t, nil)
	s.Site = site
	second, _ := s.mustCreate(t, nil)
	if digest(t, first) != digest(t, second) {
		t.Error("two bundles of equal input differ")
	}
}

// TestABundleGoesOnFromTheStateThatItWasBegunWith has a download fail, and the archive publish something new before
// the command is run again.
func TestABundleGoesOnFromTheStateThatItWasBegunWith(t *testing.T) {
	s, a := newSide(t, 20<<20)
	s.sources = true
	a.Sources = []string{"tool1_1"}
	a.Publish(packages(1)...)
	s.relock(t)
	begun := copyTree(t, s.Site)
	must(t, os.Chmod(filepath.Join(begun, "site.json"), 0o600))
	whole, _ := s.mustCreate(t, nil)

	s.Site, s.Cache = begun, t.TempDir()
	victim := filepath.Join(s.Archive, "pool/part9_1_amd64.deb")
	deb, err := os.ReadFile(victim)
	must(t, err)
	must(t, os.Remove(victim))
	out := filepath.Join(t.TempDir(), "media")
	if _, err := s.create(t.Context(), out, nil); err == nil {
		t.Fatal("a bundle is made without one of its packages")
	}
	a.Date = a.Date.Add(time.Hour)
	a.Publish(packages(2)...)
	must(t, os.WriteFile(victim, deb, 0o644))
	for _, when := range []string{"cut off", "complete"} {
		_, err := s.create(t.Context(), out, nil)
		must(t, err)
		if digest(t, out) != digest(t, whole) {
			t.Errorf("a bundle that was %s is gone on with differently when the archive has moved on", when)
		}
	}

	// Without the cache that has that state, it says so.
	s.Cache = t.TempDir()
	if _, err := s.create(t.Context(), out, nil); fault.Of(err) != fault.Missing || !strings.Contains(err.Error(), "moved on") || !strings.Contains(fault.Mend(err), "cache") {
		t.Errorf("with another cache: %v", err)
	}
}

func TestVolumesComeInAnyOrderAndNothingShowsBeforeTheLast(t *testing.T) {
	s, a := newSide(t, 40<<20)
	media, res := s.mustCreate(t, nil)
	far := s.far(t)
	order := rand.Perm(len(res.Volumes))
	for i, n := range order {
		// Twice: a volume that is put in again is harmless.
		for range 2 {
			r, err := take(t.Context(), far, res.Volumes[n].Path)
			must(t, err)
			if last := i == len(order)-1; r[0].Published != last || len(r[0].Missing) != len(order)-1-i {
				t.Fatalf("after volume %d of %v: %+v", n+1, order, r[0])
			}
		}
		entries, err := os.ReadDir(filepath.Join(far, "public"))
		must(t, err)
		if i < len(order)-1 && len(entries) > 0 {
			t.Fatal("something is published before all is there")
		}
	}
	mustBeWhole(t, far, a.Key())
	_ = media
}

func TestAnUpdateCarriesOnlyWhatWasNotAcknowledged(t *testing.T) {
	s, a := newSide(t, 20<<20)
	media, full := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, media)
	old := digest(t, filepath.Join(far, "public/debian/pool"))

	s.Now = s.Now.Add(24 * time.Hour)
	a.Date = a.Date.Add(24 * time.Hour)
	a.Publish(packages(2)...)
	s.relock(t)
	r := receiptOf(t, far)
	lost, first := s.mustCreate(t, r)
	if first.Carried >= full.Carried/10 || first.Base != 1 || first.Edition != 2 {
		t.Errorf("the update brings %d bytes, the whole %d: %+v", first.Carried, full.Carried, first)
	}
	// The first update is lost on its way. The second is made against the same receipt and needs nothing of it.
	second, res := s.mustCreate(t, r)
	if res.Edition != 3 {
		t.Errorf("edition %d, want 3", res.Edition)
	}
	mustTake(t, far, second)
	mustBeWhole(t, far, a.Key())
	if digest(t, filepath.Join(far, "public/debian/pool")) == old {
		t.Error("no new package is published")
	}
	// The lost one turns up: it is older now.
	if _, err := take(t.Context(), far, lost); err == nil || !strings.Contains(fault.Mend(err), "--allow-older") {
		t.Errorf("an older bundle: %v", err)
	}
	if r, err := takeWith(t.Context(), far, store.ImportOptions{AllowOlder: true}, lost); err != nil || !r[0].Published {
		t.Errorf("an older bundle that is asked for: %v", err)
	}
	mustBeWhole(t, far, a.Key())

	// A mirror that does not have what the update counts on says so and publishes nothing.
	other := s.far(t)
	_, err := take(t.Context(), other, second)
	if err == nil || !strings.Contains(err.Error(), "counts on") || fault.Of(err) != fault.Input {
		t.Errorf("an update for another mirror: %v", err)
	}
}

func TestAReceiptOfAnIncompleteBundleCountsWhatIsThere(t *testing.T) {
	s, _ := newSide(t, 40<<20)
	media, res := s.mustCreate(t, nil)
	_ = media
	far := s.far(t)
	if _, err := take(t.Context(), far, res.Volumes[0].Path); err != nil {
		t.Fatal(err)
	}
	r := receiptOf(t, far)
	if r.Edition != 0 || len(r.Have) == 0 {
		t.Errorf("edition %d, %d files", r.Edition, len(r.Have))
	}
	rest, update := s.mustCreate(t, r)
	if update.Carried >= res.Carried {
		t.Errorf("%d bytes again", update.Carried)
	}
	mustTake(t, far, rest)
}

func TestBundlesThatDoNotBelongHereAreRefused(t *testing.T) {
	s, _ := newSide(t, 1<<20)
	media, _ := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, media)
	before := digest(t, filepath.Join(far, "public"))

	stranger, _ := newSide(t, 1<<20)
	foreign, _ := stranger.mustCreate(t, nil)
	if _, err := take(t.Context(), far, foreign); fault.Of(err) != fault.Integrity {
		t.Errorf("a volume under another key: %v", err)
	}

	// The same keys, but the state of the site was lost, and the number given out again.
	twin, _ := newSide(t, 2<<20)
	twin.Site = copyTree(t, s.Site)
	data, err := os.ReadFile(filepath.Join(twin.Site, "site.json"))
	must(t, err)
	var state map[string]any
	must(t, json.Unmarshal(data, &state))
	state["edition"], state["given"] = 0, map[string]string{}
	data, err = json.Marshal(state)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(twin.Site, "site.json"), data, 0o600))
	must(t, os.Chmod(filepath.Join(twin.Site, "site.json"), 0o600))
	double, _ := twin.mustCreate(t, nil)
	if _, err := take(t.Context(), far, double); err == nil || !strings.Contains(err.Error(), "one number") {
		t.Errorf("another bundle of the same number: %v", err)
	}
	if digest(t, filepath.Join(far, "public")) != before {
		t.Error("what is published changed")
	}
}

func TestAClockThatIsYearsOffChangesNothing(t *testing.T) {
	s, a := newSide(t, 1<<20)
	media, _ := s.mustCreate(t, nil) // made in what is the future or the past of this machine
	far := s.far(t)
	mustTake(t, far, media)
	mustBeWhole(t, far, a.Key())
	st, err := store.Read(far)
	must(t, err)
	if w := strings.Join(st.Status(made.AddDate(-5, 0, 0)).Warnings, "\n"); !strings.Contains(w, "clock") {
		t.Errorf("a clock that is five years back is not warned of: %q", w)
	}
	// The connected side's clock falls back: the next bundle still is the newer one.
	s.Now = made.Add(-10 * time.Minute)
	next, res := s.mustCreate(t, receiptOf(t, far))
	if date, err := time.Parse(time.RFC3339, res.Date); err != nil || !date.After(made) {
		t.Errorf("dated %s, not after %s", res.Date, made)
	}
	mustTake(t, far, next)
	mustBeWhole(t, far, a.Key())
}

// TestABundlesDateIsNotTheClock dates a bundle before upstream's state that it holds, as SOURCE_DATE_EPOCH may; upstream's
// dates are held against the clock alone.
func TestABundlesDateIsNotTheClock(t *testing.T) {
	s, a := newSide(t, 1<<20)
	a.Date = made.Add(24 * time.Hour)
	a.Publish(packages(1)...)
	s.clock = made.Add(48 * time.Hour)
	s.relock(t)
	media, res := s.mustCreate(t, nil)
	if res.Date != made.Format(time.RFC3339) {
		t.Errorf("dated %s, want %s", res.Date, made)
	}
	far := s.far(t)
	mustTake(t, far, media)
	mustBeWhole(t, far, a.Key())

	s.clock = made
	if _, err := s.create(t.Context(), filepath.Join(t.TempDir(), "media"), nil); fault.Of(err) != fault.Integrity || !strings.Contains(fault.Mend(err), "clock") {
		t.Errorf("a clock that is behind the archive's: %v", err)
	}
}

func TestKeysRotateOverTheGap(t *testing.T) {
	s, a := newSide(t, 1<<20)
	media, _ := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, media)
	keys, err := site.Open(s.Site)
	must(t, err)
	young, err := keys.Rotate(nil, made.Add(time.Hour), 0, 30*24*time.Hour)
	must(t, err)
	keys.Close()

	// While both sign, the mirror learns of the new key from a bundle that the old one vouches for.
	s.Now = made.Add(24 * time.Hour)
	overlap, _ := s.mustCreate(t, receiptOf(t, far))
	late := copyTree(t, far) // this one misses the overlap
	mustTake(t, far, overlap)
	st, err := store.Read(far)
	must(t, err)
	if trusted := st.Ring().Fingerprints(); len(trusted) != 2 || !slices.Contains(trusted, young.Fingerprint()) {
		t.Errorf("trusted are %v", trusted)
	}

	// Then only the new one signs, and only it is trusted.
	s.Now = made.Add(40 * 24 * time.Hour)
	after, _ := s.mustCreate(t, receiptOf(t, far))
	mustTake(t, far, after)
	mustBeWhole(t, far, a.Key())
	st, err = store.Read(far)
	must(t, err)
	if trusted := st.Ring().Fingerprints(); len(trusted) != 1 || trusted[0] != young.Fingerprint() {
		t.Errorf("trusted are %v", trusted)
	}

	// Who missed the overlap is told, and given the key by hand goes on.
	full, _ := s.mustCreate(t, nil)
	if _, err := take(t.Context(), late, full); fault.Of(err) != fault.Integrity {
		t.Errorf("a key that nobody vouched for: %v", err)
	}
	ls, err := store.Open(late)
	must(t, err)
	_, err = ls.Trust(young.Public(), false)
	must(t, err)
	ls.Close()
	mustTake(t, late, full)
}

func TestDamagedMirrorsSayWhatToBringAndAreMended(t *testing.T) {
	s, a := newSide(t, 40<<20)
	media, _ := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, media)
	victims := map[string]string{"debian/pool/tool1_1_amd64.deb": "volume", "slipway/big": "volume", "debian/dists/test/main/binary-amd64/Packages": "volume"}
	for name := range victims {
		p := filepath.Join(far, "public", name)
		data, err := os.ReadFile(p)
		must(t, err)
		data[len(data)/2] ^= 4
		must(t, os.Chmod(p, 0o644))
		must(t, os.WriteFile(p, data, 0o644))
	}
	flaws, _ := wrong(t, far, a.Key(), true)
	text := strings.Join(flaws, "\n")
	for name, says := range victims {
		if !strings.Contains(text, name) || !strings.Contains(text, "bring "+says) {
			t.Errorf("%s was damaged; verify says\n%s", name, text)
		}
	}
	mustTake(t, far, media)
	mustBeWhole(t, far, a.Key())
}

func TestGCKeepsWhatIsPublished(t *testing.T) {
	s, a := newSide(t, 1<<20)
	far := s.far(t)
	for n := 1; n <= 4; n++ {
		s.Now = s.Now.Add(time.Hour)
		a.Date = a.Date.Add(time.Hour)
		a.Publish(packages(n)...)
		s.relock(t)
		var r *receipt.Receipt
		if n > 1 {
			r = receiptOf(t, far)
		}
		media, _ := s.mustCreate(t, r)
		mustTake(t, far, media)
	}
	count := func() int {
		n := 0
		must(t, filepath.WalkDir(filepath.Join(far, "blobs"), func(p string, d fs.DirEntry, err error) error {
			if !d.IsDir() {
				n++
			}
			return err
		}))
		return n
	}
	before := count()
	st, err := store.Open(far)
	must(t, err)
	dry, err := st.GC(t.Context(), 1, true)
	must(t, err)
	if count() != before || dry.Blobs == 0 {
		t.Errorf("a dry run removed %d, said %+v", before-count(), dry)
	}
	did, err := st.GC(t.Context(), 1, false)
	must(t, err)
	st.Close()
	if did != dry || count() != before-did.Blobs || did.Catalogs != 2 {
		t.Errorf("said %+v, did %+v, %d are gone", dry, did, before-count())
	}
	mustBeWhole(t, far, a.Key())
	if _, err := os.Stat(filepath.Join(far, "public/debian/pool/lib_2_amd64.deb")); err == nil {
		t.Error("a package of two bundles ago is still there")
	}
	if _, err := os.Stat(filepath.Join(far, "public/debian/pool/lib_3_amd64.deb")); err != nil {
		t.Error("a package of the bundle before is gone")
	}
}
