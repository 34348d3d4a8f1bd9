package store_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/apt/apttest"
	"github.com/slipwayhq/slipway/builder/mirror/repository"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/store"
	"github.com/slipwayhq/slipway/internal/fault"
)

// verified is what verify reports of a store that holds these files.
func verified(t *testing.T, key *sign.Key, files map[string]string, opts store.VerifyOptions) *store.Report {
	t.Helper()
	dir := newStore(t, key)
	mustTake(t, dir, bundle{edition: 1, signers: []*sign.Key{key}, files: files}.write(t)...)
	s, err := store.Read(dir)
	must(t, err)
	r, err := s.Verify(t.Context(), opts)
	must(t, err)
	return r
}

// carried are files of an archive as a bundle has them, signed by the site: packages and source packages by their path
// below the archive. A source package is what ends in .dsc, with the .tar.xz beside it.
func carried(t *testing.T, key *sign.Key, pool map[string]string) map[string]string {
	t.Helper()
	files := map[string]string{}
	suite := repository.Suite{Name: "test", Codename: "test", Date: made, Arch: "amd64", Components: []string{"main"}, Keys: []*sign.Key{key},
		Packages: map[string][]repository.Paragraph{}, Sources: map[string][]repository.Paragraph{}}
	for _, path := range slices.Sorted(maps.Keys(pool)) {
		content := pool[path]
		files["debian/"+path] = content
		name, _, _ := strings.Cut(filepath.Base(path), "_")
		if stem, ok := strings.CutSuffix(path, ".dsc"); ok {
			text := fmt.Sprintf("Package: %s\nVersion: 1\nDirectory: %s\nChecksums-Sha256:\n", name, filepath.Dir(path))
			for _, file := range []string{path, stem + ".tar.xz"} {
				text += fmt.Sprintf(" %s %d %s\n", sum(pool[file]), len(pool[file]), filepath.Base(file))
			}
			suite.Sources["main"] = append(suite.Sources["main"], repository.Paragraph{Name: name, Version: "1", Text: []byte(text)})
		} else if strings.HasSuffix(path, ".deb") {
			text := fmt.Sprintf("Package: %s\nVersion: 1\nArchitecture: amd64\nFilename: %s\nSize: %d\nSHA256: %s\n", name, path, len(content), sum(content))
			suite.Packages["main"] = append(suite.Packages["main"], repository.Paragraph{Name: name, Version: "1", Text: []byte(text)})
		}
	}
	made, err := repository.Files(suite)
	must(t, err)
	for _, f := range made {
		files["debian/"+f.Path] = string(f.Content)
	}
	return files
}

func TestWhatNoSignatureOfUpstreamCoversIsNamed(t *testing.T) {
	key, upstream := newKey(t), apttest.New(t)
	upstream.Sources = []string{"good_1", "bad_1"}
	upstream.Publish("Package: good", "Package: changed")
	pool := map[string]string{"pool/news_1_amd64.deb": "a package that upstream's index does not list"}
	read := func(path string) string {
		data, err := os.ReadFile(filepath.Join(upstream.Dir, path))
		must(t, err)
		return string(data)
	}
	for _, path := range []string{"pool/good_1_amd64.deb", "pool/changed_1_amd64.deb", "pool/good/good_1.dsc", "pool/good/good_1.tar.xz", "pool/bad/bad_1.dsc", "pool/bad/bad_1.tar.xz"} {
		pool[path] = read(path)
	}
	report := func() *store.Report {
		t.Helper()
		files := carried(t, key, pool)
		for _, path := range []string{"dists/test/InRelease", "dists/test/main/binary-amd64/Packages.xz", "dists/test/main/source/Sources.xz"} {
			files["upstream/debian/"+path] = read(path)
		}
		r := verified(t, key, files, store.VerifyOptions{Upstream: upstream.Key()})
		if len(r.Wrong) > 0 || r.Packages != 3 || r.Sources != 2 {
			t.Fatalf("%+v", r)
		}
		return r
	}
	if r := report(); r.Proven != 4 || !slices.Equal(r.Unproven, []string{"debian/pool/news_1_amd64.deb"}) {
		t.Errorf("%d are proven, and not %q", r.Proven, r.Unproven)
	}
	// Whoever has the site's key can sign whatever they like.
	pool["pool/changed_1_amd64.deb"] += ", and a back door"
	pool["pool/bad/bad_1.tar.xz"] += ", and a back door"
	if r := report(); r.Proven != 2 || !slices.Equal(r.Unproven, []string{"debian/pool/bad/bad_1.tar.xz", "debian/pool/changed_1_amd64.deb", "debian/pool/news_1_amd64.deb"}) {
		t.Errorf("%d are proven, and not %q", r.Proven, r.Unproven)
	}
}

// release signs a Release that names these indices, with the size that each is to have when it is unpacked.
func release(t *testing.T, key *sign.Key, indices map[string]string, unpacked int64) map[string]string {
	t.Helper()
	text := "Codename: test\nDate: Mon, 02 Nov 2026 10:00:00 UTC\nArchitectures: amd64\nComponents: main\nSHA256:\n"
	files := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(indices)) {
		files["debian/dists/test/"+name] = indices[name]
		text += fmt.Sprintf(" %s %d %s\n", sum(indices[name]), len(indices[name]), name)
		if plain, ok := strings.CutSuffix(name, ".gz"); ok {
			text += fmt.Sprintf(" %s %d %s\n", sum("another"), unpacked, plain)
		}
	}
	signed, err := sign.ClearSign([]byte(text), []*sign.Key{key}, made)
	must(t, err)
	files["debian/dists/test/InRelease"] = string(signed)
	return files
}

func TestVerifyUnpacksNoBomb(t *testing.T) {
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	for range 64 {
		_, err := w.Write(bytes.Repeat([]byte("\n"), 1<<20))
		must(t, err)
	}
	must(t, w.Close())
	key := newKey(t)
	for unpacked, want := range map[int64]string{1 << 20: "unpacks to more than it may", 1 << 40: "more than the 2147483648 that an index may have"} {
		r := verified(t, key, release(t, key, map[string]string{"main/binary-amd64/Packages.gz": bomb.String()}, unpacked), store.VerifyOptions{})
		if len(r.Wrong) != 1 || !strings.Contains(r.Wrong[0].What, want) {
			t.Errorf("of an index that is to unpack to %d bytes: %v, want %q", unpacked, r.Wrong, want)
		}
	}
}

func TestVerifyListsTheFirstFlawsOfAFileAndCountsTheOthers(t *testing.T) {
	var index strings.Builder
	for n := range 1000 {
		fmt.Fprintf(&index, "Package: p%d\nFilename: pool/%s%d.deb\nSize: 1\nSHA256: %s\n\n", n, strings.Repeat("x", 500), n, sum("x"))
	}
	key := newKey(t)
	files := release(t, key, map[string]string{"main/binary-amd64/Packages": index.String(), "contrib/binary-amd64/Packages": index.String()}, 0)
	files["debian/pool/forgotten.deb"] = "no index lists it"
	r := verified(t, key, files, store.VerifyOptions{})
	listed := map[string]int{}
	for _, f := range r.Wrong {
		listed[f.Path]++
		if len(f.What) > 300 {
			t.Errorf("a flaw of %d bytes: %s", len(f.What), f.What)
		}
	}
	want := map[string]int{"debian/dists/test/main/binary-amd64/Packages": 20, "debian/dists/test/contrib/binary-amd64/Packages": 20, "debian/pool/forgotten.deb": 1}
	if !maps.Equal(listed, want) || r.More != 2*980 {
		t.Errorf("listed are %v, and %d more; want %v and 1960", listed, r.More, want)
	}
}

func TestEveryFlippedBitOfTheStoresOwnRecordsIsFound(t *testing.T) {
	old, young := newKey(t), newKey(t)
	dir := newStore(t, old)
	mustTake(t, dir, bundle{edition: 1, signers: []*sign.Key{old, young}}.write(t)...)
	last := bundle{edition: 2, signers: []*sign.Key{young}}.write(t) // retires the old
	mustTake(t, dir, last...)
	for _, name := range []string{"STORE", "state.json"} {
		path := filepath.Join(dir, name)
		data, err := os.ReadFile(path)
		must(t, err)
		for i := range data {
			for bit := range 8 {
				changed := bytes.Clone(data)
				changed[i] ^= 1 << bit
				must(t, os.WriteFile(path, changed, 0o644))
				if _, err := store.Read(dir); fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), path) {
					t.Fatalf("bit %d of byte %d (%q) of %s was flipped: %v", bit, i, data[i], name, err)
				}
			}
		}
		must(t, os.WriteFile(path, data, 0o644))
	}
	// What the advice says does help.
	state := filepath.Join(dir, "state.json")
	harm(t, state)
	if _, err := store.Open(dir); !strings.Contains(fault.Mend(err), "remove that file and import any volume of the last bundle") {
		t.Errorf("%v, %q", err, fault.Mend(err))
	}
	must(t, os.Remove(state))
	mustTake(t, dir, last...)
	if wrong := flaws(t, dir); len(wrong) > 0 {
		t.Errorf("verify says %q", wrong)
	}
}

// Records of before there were checksums are read, and compared with the bundle.
func TestRecordsWithoutAChecksumAreComparedWithTheBundle(t *testing.T) {
	key := newKey(t)
	dir := newStore(t, key)
	volumes := bundle{edition: 1, signers: []*sign.Key{key}}.write(t)
	mustTake(t, dir, volumes...)
	path := filepath.Join(dir, "state.json")
	for name, c := range map[string]struct {
		value any
		want  string // that verify says; "" is nothing
	}{
		"format": {1, ""}, "site": {"plant-8", "another site or date"}, "date": {"2026-11-02T10:00:00Z", "another site or date"}, "keys": {[]string{strings.Repeat("A", 40)}, "other keys"},
	} {
		data, err := os.ReadFile(path)
		must(t, err)
		var state map[string]any
		must(t, json.Unmarshal(data, &state))
		delete(state, "checksum")
		state[name] = c.value
		old, err := json.Marshal(state)
		must(t, err)
		must(t, os.WriteFile(path, old, 0o644))
		wrong := flaws(t, dir)
		if c.want == "" && len(wrong) > 0 || c.want != "" && (len(wrong) != 1 || !strings.Contains(wrong[0], c.want)) {
			t.Errorf("%s: verify says %q, want %q", name, wrong, c.want)
		}
		must(t, os.WriteFile(path, data, 0o644))
	}
}

func TestADirectoryThatCannotBeReadHidesNoOtherFlaw(t *testing.T) {
	key := newKey(t)
	dir := newStore(t, key)
	mustTake(t, dir, bundle{edition: 1, signers: []*sign.Key{key}, files: map[string]string{"a": "one", "slipway/b": "two"}}.write(t)...)
	hash := sum("one")
	harm(t, filepath.Join(dir, "blobs", hash[:2], hash))
	shut := filepath.Join(dir, "public/slipway")
	must(t, os.Chmod(shut, 0o311)) // its files can be opened, and not listed
	defer os.Chmod(shut, 0o755)
	if os.Geteuid() == 0 { // no permission stops root; this thread gives that up for its access to files (setfsuid(2))
		must(t, os.Chmod(filepath.Dir(filepath.Dir(dir)), 0o755))
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		must(t, unix.Setfsuid(65534))
		defer unix.Setfsuid(0)
	}
	wrong := strings.Join(flaws(t, dir), "\n")
	if !strings.Contains(wrong, "a: is damaged") || !strings.Contains(wrong, shut+": permission denied") {
		t.Errorf("verify says\n%s", wrong)
	}
}
