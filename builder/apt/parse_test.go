package apt

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"pault.ag/go/debian/version"
)

func paragraphs(text string) (out []map[string]string, err error) {
	err = EachParagraph(strings.NewReader(text), func(p *Paragraph) error {
		m := map[string]string{}
		for _, f := range p.fields {
			m[f.name] = string(f.value)
		}
		out = append(out, m)
		return nil
	})
	return out, err
}

func TestParagraphsAreReadAsDebControlSays(t *testing.T) {
	got, err := paragraphs("# comment\nA: 1\nB:  two \n  more\n\t.\n\n\n\nA: 2\r\nEmpty:\n")
	if err != nil || len(got) != 2 {
		t.Fatalf("got %q, %v", got, err)
	}
	if got[0]["A"] != "1" || got[0]["B"] != "two\n  more\n\t." || got[1]["A"] != "2" || got[1]["Empty"] != "" || len(got[1]) != 2 {
		t.Errorf("got %q", got)
	}
}

func TestMalformedParagraphsAreRefusedWithTheirLine(t *testing.T) {
	for text, line := range map[string]string{
		"A: 1\nnonsense\n":             "line 2",
		" continued\n":                 "line 1",
		"A: 1\n\nB: 1\nb: 2\n":         "line 4",
		": no name\n":                  "line 1",
		"A B: 1\n":                     "line 1",
		strings.Repeat("x", maxLine+1): "line 1",
	} {
		if _, err := paragraphs(text); err == nil || !strings.Contains(err.Error(), line) {
			t.Errorf("%.20q: got %v, want %s", text, err, line)
		}
	}
}

func TestRelationsAreReadAndWritten(t *testing.T) {
	for in, want := range map[string]string{
		"libc6 (>= 2.34), foo|bar:any(<<1:2~rc1), baz": "libc6 (>= 2.34), foo | bar:any (<< 1:2~rc1), baz",
		"a (> 1), b (< 2)": "a (>= 1), b (<= 2)", // obsolete spellings
		" , a,\n b ,":      "a, b",
		"":                 "",
	} {
		clauses, err := ParseRelations(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
		}
		var parts []string
		for _, c := range clauses {
			parts = append(parts, c.String())
		}
		if got := strings.Join(parts, ", "); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	for _, bad := range []string{"a (", "a (1)", "a (== 1)", "a (>= )", "a (>= x y)", "|", "A b", "-a", "a [amd64]", "a (>= 1) x"} {
		if _, err := ParseRelations(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestVersionConditionsAreThoseOfDpkg asks dpkg about every pair.
func TestVersionConditionsAreThoseOfDpkg(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Fatal("this test compares with dpkg; run it on Debian, or: apt-get install dpkg")
	}
	versions := []string{"1", "1.0", "1.0-1", "1.0-1-2", "1.0~rc1-1", "1:0", "0:1", "1.0+b1", "1.0-1+deb13u1", "1.0-1~deb13u1", "10", "2", "1a", "1~"}
	dpkg := func(a, op, b string) bool {
		return exec.Command("dpkg", "--compare-versions", a, op, b).Run() == nil
	}
	for _, a := range versions {
		for _, b := range versions {
			va, err := version.Parse(a)
			if err != nil {
				t.Fatal(err)
			}
			less, equal := dpkg(a, "lt", b), dpkg(a, "eq", b)
			for op, want := range map[string]bool{"<<": less, "<=": less || equal, "=": equal, ">=": !less, ">>": !less && !equal} {
				clauses, err := ParseRelations("x (" + op + " " + b + ")")
				if err != nil {
					t.Fatal(err)
				}
				if got := clauses[0][0].Allows(va); got != want {
					t.Errorf("%s %s %s: got %v, dpkg says %v", a, op, b, got, want)
				}
			}
		}
	}
}

func TestDatesOfReleaseFiles(t *testing.T) {
	want := time.Date(2026, 9, 2, 7, 55, 41, 0, time.UTC)
	for _, s := range []string{"Wed, 02 Sep 2026 07:55:41 UTC", "Wed,  2 Sep 2026 07:55:41 UTC", "Wed, 2 Sep 2026 07:55:41 +0000", "Wed, 02 Sep 2026 07:55:41 GMT"} {
		if got, err := parseDate(s); err != nil || !got.Equal(want) {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "yesterday", "Wed, 02 Sep 2026 07:55:41 CEST", "Wed, 02 Sep 2026 07:55:41 +0200"} {
		if got, err := parseDate(s); err == nil {
			t.Errorf("%q was taken for %v", s, got)
		}
	}
}

// TestDebiansOwnSignatureIsAccepted reads an InRelease as Debian served it.
func TestDebiansOwnSignatureIsAccepted(t *testing.T) {
	d, err := LoadDistribution("../../profiles/distribution.yaml")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("testdata/InRelease")
	if err != nil {
		t.Fatal(err)
	}
	when := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	text, signers, err := VerifyInRelease(data, d.Keyring, d.Archives[0].SignedBy, when)
	if err != nil || len(signers) != 2 {
		t.Fatalf("signed by %v, %v", signers, err)
	}
	rel, err := ParseRelease(text)
	if err != nil || rel.Codename != "trixie-updates" || !rel.ByHash || rel.Files["main/binary-amd64/Packages.xz"].Size == 0 {
		t.Fatalf("got %+v, %v", rel, err)
	}
	if err := rel.Check("trixie-updates", when); err != nil {
		t.Error(err)
	}
	if err := rel.Check("trixie-updates", when.AddDate(0, 1, 0)); err == nil {
		t.Error("a month later it is still valid")
	}
	for at := 100; at < len(text); at += 997 {
		tampered := bytes.Clone(data)
		tampered[at] ^= 1
		if _, _, err := VerifyInRelease(tampered, d.Keyring, d.Archives[0].SignedBy, when); err == nil {
			t.Errorf("byte %d was altered, and nobody minded", at)
		}
	}
}

func FuzzParagraphs(f *testing.F) {
	f.Add("A: 1\nB: 2\n more\n\nA: 1\n")
	f.Add("# c\n\n\nA:\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := paragraphs(text)
		if err != nil {
			return
		}
		for _, p := range got {
			if len(p) == 0 {
				t.Error("a paragraph without fields")
			}
		}
	})
}

func FuzzRelations(f *testing.F) {
	f.Add("a | b (>= 1:2-3), c:any")
	f.Fuzz(func(t *testing.T, text string) {
		clauses, err := ParseRelations(text)
		if err != nil {
			return
		}
		var parts []string
		for _, c := range clauses {
			parts = append(parts, c.String())
		}
		again, err := ParseRelations(strings.Join(parts, ", "))
		if err != nil || len(again) != len(clauses) {
			t.Errorf("%q: read back: %v", text, err)
		}
	})
}

func FuzzPackages(f *testing.F) {
	f.Add("Package: a\nVersion: 1\nArchitecture: amd64\nFilename: pool/a.deb\nSize: 1\nSHA256: " + strings.Repeat("0", 64) + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		packages, err := ReadPackages(strings.NewReader(text), "main", "test", "amd64")
		if err != nil {
			return
		}
		for _, p := range packages {
			if strings.ContainsAny(p.Path+p.Version+p.Name+p.Source, " \n") || strings.Contains(p.Path, "..") && checkPath(p.Path) != nil {
				t.Errorf("unsafe package %+v", p)
			}
		}
	})
}

func FuzzSources(f *testing.F) {
	f.Add([]byte("Package: hello\nDirectory: pool/h\nChecksums-Sha256:\n " + strings.Repeat("0f", 32) + " 12 hello_1.dsc\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		EachParagraph(bytes.NewReader(data), func(p *Paragraph) error {
			files, err := SourceFiles(p)
			for path, sum := range files {
				if err != nil || strings.HasPrefix(path, "/") || strings.Contains("/"+path+"/", "/../") || sum.Size < 0 || len(sum.SHA256) != 64 {
					t.Fatalf("%q %+v (%v)", path, sum, err)
				}
			}
			return nil
		})
	})
}
