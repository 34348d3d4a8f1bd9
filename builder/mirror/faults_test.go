package mirror_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/catalog"
	"github.com/slipwayhq/slipway/builder/mirror/receipt"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/store"
	"github.com/slipwayhq/slipway/builder/mirror/volume"
	"github.com/slipwayhq/slipway/internal/fault"
)

// chance is a source of chance that SLIPWAY_SEED=N repeats: what is flipped, and after which part of the time a
// process is killed.
func chance(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(1)
	if text := os.Getenv("SLIPWAY_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		must(t, err)
	}
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// TestEveryFlippedBitIsFound flips one bit of one file at a time: of the volumes, and of the mirror.
func TestEveryFlippedBitIsFound(t *testing.T) {
	s, a := newSide(t, 14<<20) // more than one volume
	media, res := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, media)
	mustBeWhole(t, far, a.Key())
	ring, err := sign.ParseRing(s.public(t))
	must(t, err)
	content := func(dir string) *catalog.Catalog {
		v, err := volume.Open(dir, ring)
		must(t, err)
		defer v.Close()
		return v.Content
	}(res.Volumes[0].Path)
	if content.Volumes < 2 {
		t.Fatalf("all is on %d volume", content.Volumes)
	}
	var files []string
	for _, dir := range []string{media, far} {
		must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			must(t, err)
			st, err := d.Info()
			// The public tree is hard links to blobs; what create notes for itself is no part of a volume; an empty file has no bit.
			if err == nil && !d.IsDir() && st.Size() > 0 && !strings.Contains(p, "/public/") && d.Name() != ".slipway-bundle" {
				files = append(files, p)
			}
			return err
		}))
	}
	rng := chance(t)
	rng.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	for n := range flips {
		p := files[n%len(files)]
		st, err := os.Stat(p)
		must(t, err)
		at, bit := rng.Int64N(st.Size()), byte(1)<<rng.IntN(8)
		flip := func() {
			must(t, os.Chmod(p, 0o644))
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			b := make([]byte, 1)
			_, err = f.ReadAt(b, at)
			must(t, err)
			b[0] ^= bit
			_, err = f.WriteAt(b, at)
			must(t, err)
		}
		flip()
		var flaws []string
		names := "" // which medium is damaged, or which is to be brought
		if strings.HasPrefix(p, far) {
			flaws, _ = wrong(t, far, a.Key(), false)
			switch sub := filepath.Base(filepath.Dir(p)); {
			case strings.Contains(p, "/blobs/"):
				names = "bring volume " + store.Numbers(content.VolumesOf(filepath.Base(p))) + " of edition 1"
			case sub == "catalogs", filepath.Base(p) == "state.json":
				names = "any volume of "
			}
		} else {
			dir, _, _ := strings.Cut(strings.TrimPrefix(p, media+"/"), "/")
			names = filepath.Join(media, dir)
			v, err := volume.Open(names, ring)
			if err != nil {
				flaws = []string{err.Error()}
			} else {
				found, err := v.Verify(t.Context(), func(int64) {})
				must(t, err)
				for _, f := range found {
					flaws = append(flaws, f.Error())
				}
				v.Close()
			}
		}
		if len(flaws) == 0 || !strings.Contains(strings.Join(flaws, "\n"), names) {
			t.Fatalf("bit %08b of byte %d of %s was flipped; verify says %q, and %q is wanted", bit, at, p, flaws, names)
		}
		flip()
	}
	mustBeWhole(t, far, a.Key())
}

func TestHostileAndBrokenVolumesAreRefused(t *testing.T) {
	s, _ := newSide(t, 20<<20)
	media, res := s.mustCreate(t, nil)
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	part := func(dir string) string {
		found, err := filepath.Glob(filepath.Join(dir, "data/*/*"))
		must(t, err)
		return found[0]
	}
	replace := func(p string, with func(p string) error) error {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
		return with(p)
	}
	for name, harm := range map[string]func(dir string) error{
		"no manifest":       func(d string) error { return os.Remove(filepath.Join(d, "VOLUME")) },
		"an empty manifest": func(d string) error { return os.Truncate(filepath.Join(d, "VOLUME"), 0) },
		"a cut manifest":    func(d string) error { return os.Truncate(filepath.Join(d, "VOLUME"), 900) },
		"no catalog":        func(d string) error { return os.Remove(filepath.Join(d, "CATALOG")) },
		"a cut catalog":     func(d string) error { return os.Truncate(filepath.Join(d, "CATALOG"), 100) },
		"a huge catalog":    func(d string) error { return os.Truncate(filepath.Join(d, "CATALOG"), 1<<40) },
		"a missing part":    func(d string) error { return os.Remove(part(d)) },
		"a cut part":        func(d string) error { return os.Truncate(part(d), 1) },
		"a part that grew":  func(d string) error { return os.Truncate(part(d), 1<<40) },
		"a link for a part": func(d string) error { return replace(part(d), func(p string) error { return os.Symlink(secret, p) }) },
		"a pipe for a part": func(d string) error {
			return replace(part(d), func(p string) error { return syscall.Mkfifo(p, 0o644) })
		},
		"a folder for a part": func(d string) error { return replace(part(d), func(p string) error { return os.Mkdir(p, 0o755) }) },
		"a file for a directory of parts": func(d string) error {
			return replace(filepath.Dir(part(d)), func(p string) error { return os.WriteFile(p, nil, 0o644) })
		},
		"a link for a directory of parts": func(d string) error {
			return replace(filepath.Dir(part(d)), func(p string) error { return os.Symlink(filepath.Dir(secret), p) })
		},
		"links in a circle": func(d string) error {
			return replace(filepath.Dir(part(d)), func(p string) error { return os.Symlink(filepath.Base(p), p) })
		},
		"a link for the manifest": func(d string) error {
			return replace(filepath.Join(d, "VOLUME"), func(p string) error { return os.Symlink(secret, p) })
		},
		"a pipe for the manifest": func(d string) error {
			return replace(filepath.Join(d, "VOLUME"), func(p string) error { return syscall.Mkfifo(p, 0o644) })
		},
		"another volume's manifest": func(d string) error {
			data, err := os.ReadFile(filepath.Join(res.Volumes[1].Path, "VOLUME"))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(d, "VOLUME"), data, 0o644)
		},
		"another volume's files": func(d string) error {
			if err := os.RemoveAll(filepath.Join(d, "data")); err != nil {
				return err
			}
			return os.CopyFS(filepath.Join(d, "data"), os.DirFS(filepath.Join(res.Volumes[1].Path, "data")))
		},
		"text before the manifest": func(d string) error {
			data, err := os.ReadFile(filepath.Join(d, "VOLUME"))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(d, "VOLUME"), append([]byte("Edition: 9\n"), data...), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bad := copyTree(t, res.Volumes[0].Path)
			must(t, harm(bad))
			far := s.far(t)
			if _, err := take(t.Context(), far, bad); err == nil || fault.Of(err) == fault.Internal {
				t.Fatalf("taken, or not explained: %v", err)
			}
			entries, err := os.ReadDir(filepath.Join(far, "public"))
			must(t, err)
			if len(entries) > 0 {
				t.Error("something of it is published")
			}
			// Brought again, all is well.
			mustTake(t, far, media)
		})
	}
}

// TestAFullDiskLeavesNothingHalf fills a small file system while a bundle is made and taken in.
func TestAFullDiskLeavesNothingHalf(t *testing.T) {
	const inside = "MIRRORTEST_NAMESPACE"
	if os.Getenv(inside) == "" { // in a namespace of its own every user may mount
		cmd := exec.CommandContext(t.Context(), "unshare", "--map-root-user", "--mount", os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	s, a := newSide(t, 40<<20)
	small := t.TempDir()
	mount := func(size string, flags uintptr) {
		must(t, syscall.Mount("tmpfs", small, "tmpfs", flags, "size="+size))
	}
	mount("20m", 0)
	defer syscall.Unmount(small, syscall.MNT_DETACH)
	media := filepath.Join(small, "media")
	if _, err := s.create(t.Context(), media, nil); fault.Of(err) != fault.Space {
		t.Fatalf("a full medium: %v", err)
	}
	mount("200m", syscall.MS_REMOUNT)
	_, err := s.create(t.Context(), media, nil)
	must(t, err)
	far := filepath.Join(small, "store")
	mount("120m", syscall.MS_REMOUNT)
	filler := filepath.Join(small, "filler")
	must(t, os.WriteFile(filler, make([]byte, 55<<20), 0o644))
	st, err := store.Create(far, s.public(t))
	must(t, err)
	st.Close()
	if _, err := take(t.Context(), far, media); fault.Of(err) != fault.Space {
		t.Fatalf("a full disk: %v", err)
	}
	must(t, os.Remove(filler))
	mount("300m", syscall.MS_REMOUNT)
	mustTake(t, far, media)
	mustBeWhole(t, far, a.Key())
}

// order is what a process that will be killed is told to do.
type order struct {
	Side    *side    `json:",omitempty"`
	Receipt string   `json:",omitempty"`
	Out     string   `json:",omitempty"`
	Store   string   `json:",omitempty"`
	Volumes []string `json:",omitempty"`
}

func obey(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	if o.Side == nil {
		_, err := take(context.Background(), o.Store, o.Volumes...)
		return err
	}
	var r *receipt.Receipt
	if o.Receipt != "" {
		data, err := os.ReadFile(o.Receipt)
		if err != nil {
			return err
		}
		if r, err = receipt.Parse(data); err != nil {
			return err
		}
	}
	_, err := o.Side.create(context.Background(), o.Out, r)
	return err
}

// untilDone has a process obey an order, kills it at random moments, and starts it anew until it has ended by
// itself. It returns how often it was killed.
func untilDone(t *testing.T, rng *rand.Rand, o order, usual *time.Duration) (kills int) {
	t.Helper()
	text, err := json.Marshal(o)
	must(t, err)
	for {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "MIRRORTEST_ORDER="+string(text))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		began := time.Now()
		must(t, cmd.Start())
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		var timer <-chan time.Time
		if kills < 4 && *usual > 0 { // the first run tells how long one takes
			timer = time.After(time.Duration(rng.Int64N(int64(*usual))))
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("after %d kills: %v\n%s", kills, err, stderr.Bytes())
			}
			*usual = (*usual + time.Since(began)) / 2
			return kills
		case <-timer:
			cmd.Process.Kill()
			<-done
			kills++
		}
	}
}

// TestPowerCutsAtAnyMomentLeadToTheSameBytes kills create, update and import at random moments; whoever runs them
// again gets what an undisturbed run gives.
func TestPowerCutsAtAnyMomentLeadToTheSameBytes(t *testing.T) {
	s, a := newSide(t, 24<<20)
	fresh := func(from string) string {
		to := copyTree(t, from)
		must(t, os.Chmod(filepath.Join(to, "site.json"), 0o600))
		return to
	}
	siteBefore, archiveBefore := fresh(s.Site), copyTree(t, s.Archive)
	// What an undisturbed carry-over gives.
	whole, _ := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, whole)
	published := digest(t, filepath.Join(far, "public"))
	siteAfter := fresh(s.Site)
	receiptFile := filepath.Join(t.TempDir(), "receipt")
	must(t, os.WriteFile(receiptFile, receiptOf(t, far).Bytes(), 0o644))

	s2 := *s
	s2.Now = s.Now.Add(24 * time.Hour)
	a.Date = a.Date.Add(24 * time.Hour)
	a.Publish(packages(2)...)
	s2.Lock = filepath.Join(t.TempDir(), "lock2")
	s2.relock(t)
	diff, _ := s2.mustCreate(t, receiptOf(t, far))
	far2 := s.far(t)
	mustTake(t, far2, whole)
	mustTake(t, far2, diff)
	published2 := digest(t, filepath.Join(far2, "public"))

	rng := chance(t)
	var guess [4]time.Duration // how long create, update and the two imports take
	kills := 0
	for n := range rounds {
		before, after := *s, s2
		before.Site, before.Cache, before.Archive = fresh(siteBefore), t.TempDir(), archiveBefore
		after.Site, after.Cache = fresh(siteAfter), t.TempDir()
		out, out2 := filepath.Join(t.TempDir(), "media"), filepath.Join(t.TempDir(), "media")
		kills += untilDone(t, rng, order{Side: &before, Out: out}, &guess[0])
		if digest(t, out) != digest(t, whole) {
			t.Fatalf("round %d: a bundle whose making was cut off differs", n)
		}
		kills += untilDone(t, rng, order{Side: &after, Out: out2, Receipt: receiptFile}, &guess[1])
		if digest(t, out2) != digest(t, diff) {
			t.Fatalf("round %d: an update whose making was cut off differs", n)
		}
		store1 := s.far(t)
		kills += untilDone(t, rng, order{Store: store1, Volumes: []string{out}}, &guess[2])
		if digest(t, filepath.Join(store1, "public")) != published {
			t.Fatalf("round %d: an import that was cut off publishes other bytes", n)
		}
		kills += untilDone(t, rng, order{Store: store1, Volumes: []string{out2}}, &guess[3])
		if digest(t, filepath.Join(store1, "public")) != published2 {
			t.Fatalf("round %d: the import of an update that was cut off publishes other bytes", n)
		}
		mustBeWhole(t, store1, a.Key())
		for _, dir := range []string{store1, out, out2, before.Site, before.Cache, after.Site, after.Cache} {
			must(t, os.RemoveAll(dir))
		}
	}
	t.Logf("%d rounds, %d kills", rounds, kills)
}
