package apt_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ulikunitz/xz"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/apt/apttest"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/internal/fault"
)

var now = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC) // a day after the test archives

func load(t *testing.T, a *apttest.Archive, opts apt.LoadOptions) (*apt.Archive, error) {
	t.Helper()
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	opts.Fetch = fetch.Options{Backoff: time.Millisecond}
	if opts.Now.IsZero() {
		opts.Now = now
	}
	return apt.Load(t.Context(), c, a.Distribution(), a.Locations(), opts)
}

func TestASignedArchiveIsRead(t *testing.T) {
	a := apttest.New(t)
	a.Publish("Package: hello\nVersion: 2.10-5+b1\nSource: hello-src (2.10-5)\nDepends: libc6 (>= 2.34)", "Package: foreign\nArchitecture: arm64")
	got, err := load(t, a, apt.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Packages) != 1 {
		t.Fatalf("%d packages, want hello alone: the other is for another architecture", len(got.Packages))
	}
	p := got.Packages[0]
	if p.ID() != "hello 2.10-5+b1" || p.Source != "hello-src" || p.Alias != "main" || p.Suite != "test" || p.InstalledSize != 10<<10 {
		t.Errorf("got %+v", p)
	}
	s := got.Suites[0]
	if !s.Date.Equal(a.Date) || len(s.Signers) != 1 || s.Signers[0] != a.Fingerprint() || len(s.Indices) != 1 {
		t.Errorf("got %+v", s)
	}
}

// TestWhatIsNotAsSignedIsRefused changes one thing at a time in an archive.
func TestWhatIsNotAsSignedIsRefused(t *testing.T) {
	replace := func(old, new string) func(*apttest.Archive) {
		return func(a *apttest.Archive) {
			a.Tamper = func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(new), 1) }
		}
	}
	tests := map[string]struct {
		change func(a *apttest.Archive)
		class  fault.Class
		says   string
	}{
		"another signed text": {replace("Origin: Test", "Origin: Tess"), fault.Integrity, "signature"},
		"text before the message": {func(a *apttest.Archive) {
			a.Tamper = func(b []byte) []byte { return append([]byte("Suite: evil\n\n"), b...) }
		}, fault.Integrity, "first byte"},
		"text after the message": {func(a *apttest.Archive) { a.Tamper = func(b []byte) []byte { return append(b, "Suite: evil\n"...) } }, fault.Integrity, "after the signature"},
		"two messages":           {func(a *apttest.Archive) { a.Tamper = func(b []byte) []byte { return append(b, b...) } }, fault.Integrity, "after the signature"},
		"no signature": {func(a *apttest.Archive) {
			a.Tamper = func([]byte) []byte { return []byte("Suite: test\nDate: Sun, 01 Nov 2026 12:00:00 UTC\n") }
		}, fault.Integrity, "clear-signed"},
		"a key that is not allowed": {func(a *apttest.Archive) {
			other := apttest.New(t)
			a.Tamper = func([]byte) []byte { return other.Sign("Suite: test\n") }
		}, fault.Integrity, "allowed keys"},
		"past its time":   {func(a *apttest.Archive) { a.Fields = []string{"Valid-Until: Mon, 02 Nov 2026 11:59:59 UTC"} }, fault.Integrity, "valid until"},
		"from the future": {func(a *apttest.Archive) { a.Date = now.Add(3 * time.Hour) }, fault.Integrity, "future"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a := apttest.New(t)
			test.change(a)
			a.Publish("Package: hello")
			_, err := load(t, a, apt.LoadOptions{})
			if fault.Of(err) != test.class || err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v (%v), want %q", err, fault.Of(err), test.says)
			}
		})
	}
}

func TestADateALittleAheadPasses(t *testing.T) {
	a := apttest.New(t)
	a.Date = now.Add(time.Hour)
	a.Publish("Package: hello")
	if _, err := load(t, a, apt.LoadOptions{}); err != nil {
		t.Error(err)
	}
}

func TestAnExpiredReleaseCanBeAcceptedWithAWarning(t *testing.T) {
	a := apttest.New(t)
	a.Fields = []string{"Valid-Until: Mon, 02 Nov 2026 11:59:59 UTC"}
	a.Publish("Package: hello")
	got, err := load(t, a, apt.LoadOptions{AllowExpired: true})
	if err != nil || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "valid until") {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestASuiteInPlaceOfAnotherIsRefused(t *testing.T) {
	a := apttest.New(t)
	a.PublishRelease("Suite: other\nCodename: other\nDate: Sun, 01 Nov 2026 12:00:00 UTC\n")
	if _, err := load(t, a, apt.LoadOptions{}); fault.Of(err) != fault.Integrity {
		t.Errorf("got %v", err)
	}
}

func TestAnIndexThatIsNotAsListedIsRefused(t *testing.T) {
	a := apttest.New(t)
	a.Publish("Package: hello")
	path := filepath.Join(a.Dir, "dists/test/main/binary-amd64/Packages.xz")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t, a, apt.LoadOptions{}); fault.Of(err) != fault.Integrity {
		t.Errorf("got %v (%v)", err, fault.Of(err))
	}
}

func TestAnIndexCompressedOtherwiseOrBrokenInside(t *testing.T) {
	for name, test := range map[string]struct {
		path, content string
		good          bool
	}{
		"plain":     {"main/binary-amd64/Packages", "", true},
		"not xz":    {"main/binary-amd64/Packages.xz", "hello", false},
		"not gzip":  {"main/binary-amd64/Packages.gz", "hello", false},
		"bad field": {"main/binary-amd64/Packages", "Package hello\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			a := apttest.New(t)
			a.PublishIndex(test.path, []byte(test.content))
			if _, err := load(t, a, apt.LoadOptions{}); (err == nil) != test.good {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAMirrorThatDoesNotAnswerIsOneClearError(t *testing.T) {
	a := apttest.New(t) // published nothing
	_, err := load(t, a, apt.LoadOptions{})
	if fault.Of(err) != fault.Network || !strings.Contains(err.Error(), "suite test of archive main") || fault.Mend(err) == "" {
		t.Errorf("got %v (%v), mend %q", err, fault.Of(err), fault.Mend(err))
	}
}

func TestTheDistributionFilesOfTheProjectAreRight(t *testing.T) {
	for file, suites := range map[string]string{
		"../../profiles/distribution.yaml": "trixie trixie-updates trixie-security",
		"testdata/bookworm.yaml":           "bookworm bookworm-updates bookworm-security",
	} {
		d, err := apt.LoadDistribution(file)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range d.Archives {
			got = append(got, a.Suites...)
		}
		if strings.Join(got, " ") != suites {
			t.Errorf("%s: suites %v", file, got)
		}
	}
}

func TestMistakesInADistributionFileAreNamed(t *testing.T) {
	good, err := os.ReadFile("../../profiles/distribution.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string][2]string{
		"name":             {"name: debian-13", "name: Debian 13"},
		"components":       {"components: [main]", "components: []"},
		"arch":             {"arch: amd64", "arch: ''"},
		"suites":           {"suites: [trixie-security]", "suites: []"},
		"not a suite name": {"suites: [trixie-security]", "suites: [../../etc]"},
		"in none of":       {"5E04A1E3223A19A20706E20F9904613D4CCE68C6", "5E04A1E3223A19A20706E20F9904613D4CCE68C7"},
		"keys":             {"keys: [debian]", "keys: [missing.asc]"},
		"unknown":          {"snapshot:", "snapshoot:"},
	} {
		t.Run(want, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "distribution.yaml")
			text := strings.Replace(string(good), change[0], change[1], 1)
			if text == string(good) {
				t.Fatalf("nothing to change: %q", change[0])
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := apt.LoadDistribution(file); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), file) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestAnIndexCannotTakeMoreRoomThanItsSignerSays reads small files that unpack to a lot.
func TestAnIndexCannotTakeMoreRoomThanItsSignerSays(t *testing.T) {
	packed := func(dictionary int) *bytes.Buffer {
		var b bytes.Buffer
		w, err := xz.WriterConfig{DictCap: dictionary}.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	w.Write(make([]byte, 4<<20))
	w.Close()
	for name, c := range map[string]struct {
		path, want string
		from       *bytes.Buffer
	}{
		"xz":                     {"Packages.xz", "unpacks to more", packed(1 << 20)},
		"gzip":                   {"Packages.gz", "unpacks to more", &zipped},
		"xz that wants much RAM": {"Packages.xz", "", packed(96 << 20)},
	} {
		var read int64
		err := apt.Decompress(c.from, apt.Index{Path: c.path}, &apt.FileSum{Size: 1 << 20}, func(r io.Reader) (err error) {
			read, err = io.Copy(io.Discard, r)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), c.want) || fault.Of(err) != fault.Integrity || read > 2<<20 {
			t.Errorf("%s: %d bytes were read, %v", name, read, err)
		}
	}
	err := apt.Decompress(&zipped, apt.Index{Path: "Packages.gz"}, &apt.FileSum{Size: 1 << 40}, func(io.Reader) error {
		t.Error("an index of a terabyte is read, since its signer says so")
		return nil
	})
	if fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), "more than the 2147483648") {
		t.Errorf("an index of a terabyte: %v", err)
	}
}

func FuzzInRelease(f *testing.F) {
	a := apttest.New(f)
	const text = "Suite: test\nDate: Sun, 01 Nov 2026 12:00:00 UTC\nSHA256:\n 0000000000000000000000000000000000000000000000000000000000000000 1 a/b\n"
	f.Add(a.Sign(text))
	f.Add([]byte(text))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, _, err := apt.VerifyInRelease(data, a.Key(), []string{a.Fingerprint()}, now)
		if err == nil && strings.TrimSpace(string(got)) != strings.TrimSpace(text) {
			t.Errorf("accepted %q, which nobody signed", got)
		}
		if rel, err := apt.ParseRelease(data); err == nil && rel.Date.IsZero() {
			t.Error("a Release without a date")
		}
	})
}
