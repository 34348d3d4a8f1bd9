package catalog_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/catalog"
)

func hash(n int) string { return fmt.Sprintf("%064x", n) }

func sample() *catalog.Catalog {
	return &catalog.Catalog{
		Site: "plant-7", Edition: 3, Base: catalog.Base{Edition: 2, ID: hash(99)},
		Date: time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC), Volumes: 2,
		Files: []catalog.File{
			{Path: "debian/pool/a_1%3a2~rc1+dfsg_amd64.deb", Size: 7, SHA256: hash(1)},
			{Path: "debian/pool/same.deb", Size: 7, SHA256: hash(1)},
			{Path: "layers/big.sqfs", Size: 30, SHA256: hash(2)},
			{Path: "old", Size: 0, SHA256: hash(3)},
		},
		Parts: []catalog.Part{
			{Volume: 1, SHA256: hash(1), Size: 7, File: hash(1)},
			{Volume: 1, SHA256: hash(4), Size: 20, File: hash(2)},
			{Volume: 2, SHA256: hash(5), Size: 10, File: hash(2), Offset: 20},
		},
	}
}

func TestACatalogReadsBackAsItWasWritten(t *testing.T) {
	want := sample()
	data := want.Bytes()
	got, err := catalog.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if v := got.VolumesOf(hash(2)); !reflect.DeepEqual(v, []int{1, 2}) {
		t.Errorf("the large file is on volumes %v", v)
	}
	if f, ok := got.File("layers/big.sqfs"); !ok || f.Size != 30 {
		t.Errorf("the large file is %+v", f)
	}
}

func TestCatalogsThatContradictThemselvesAreRefused(t *testing.T) {
	text := string(sample().Bytes())
	for _, c := range []struct{ old, new, want string }{
		{"slipway-catalog 1", "slipway-catalog 2", "format"},
		{"edition 3", "edition 2", "cannot build on"},
		{"edition 3", "edition 03", "shortest form"},
		{"volumes 2", "volumes 1", "part on volume 2 of 1"},
		{"volumes 2", "volumes 0", "want a number"},
		{"old\n", "old", "want a number"}, // the file's line loses its end and runs into the next
		{" old\n", " ../old\n", "bad path"},
		{" old\n", " /old\n", "bad path"},
		{" old\n", " layers\n", "stands twice or not in its place"},
		{" old\n", " layers/big.sqfs\n", "stands twice"},
		{" old\n", " layers/big.sqfs/x\n", "a file and a directory"},
		{" old\n", " a\u202eb\n", "bad path"},
		{hash(2) + " 20\n", hash(2) + " 21\n", "want 20"},
		{hash(4) + " 20 ", hash(4) + " 31 ", "of 30"},
		{hash(5) + " 10 ", hash(5) + " 9 ", "end at 29 of 30"},
		{hash(1) + " 7 " + hash(1), hash(6) + " 7 " + hash(1), "one part with another hash"},
		{hash(2) + " 30 ", hash(2) + " 9999999999999999 ", "want a number"},
		{"site plant-7", "site ../x", "site"},
		{"site plant-7\n", "", "unexpected"},
		{"base 2 " + hash(99), "base 2 -", "base"},
	} {
		changed := strings.Replace(text, c.old, c.new, 1)
		if changed == text {
			t.Fatalf("%q is not in the sample", c.old)
		}
		if c.want == "want a number" && c.old == "old\n" {
			c.want = "words"
		}
		_, err := catalog.Parse([]byte(changed))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q for %q: %v, want %q", c.new, c.old, err, c.want)
		}
	}
	if _, err := catalog.Parse([]byte(text[:len(text)-1])); err == nil {
		t.Error("a catalog without its last line end is taken")
	}
}

func TestLayingFillsVolumesAndLosesNoByte(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		files := map[string]int64{}
		for i := range 1 + rng.IntN(200) {
			files[hash(i)] = rng.Int64N(1 << rng.IntN(29))
		}
		size := int64(64<<20) + rng.Int64N(1<<28)
		volumes, err := catalog.Lay(files, size, 100<<10)
		if err != nil {
			t.Fatal(err)
		}
		pieces := map[string][]catalog.Cut{}
		for n, cuts := range volumes {
			var sum int64
			for _, c := range cuts {
				pieces[c.File] = append(pieces[c.File], c)
				sum += c.Size
			}
			if sum > size {
				t.Errorf("volume %d has %d bytes, of %d", n+1, sum, size)
			}
		}
		for h, n := range files {
			slices.SortFunc(pieces[h], func(a, b catalog.Cut) int { return int(a.Offset - b.Offset) })
			var end int64
			for _, c := range pieces[h] {
				if c.Offset != end {
					t.Fatalf("%s continues at %d, want %d", h, c.Offset, end)
				}
				end += c.Size
			}
			if end != n || len(pieces[h]) == 0 {
				t.Errorf("%s has %d of %d bytes on volumes", h, end, n)
			}
		}
		again, err := catalog.Lay(files, size, 100<<10)
		if err != nil || !reflect.DeepEqual(volumes, again) {
			t.Errorf("laying again differs (%v)", err)
		}
	}
	if _, err := catalog.Lay(nil, 1<<20, 0); err == nil {
		t.Error("volumes of 1 MiB are taken")
	}
	if v, err := catalog.Lay(nil, 0, 0); err != nil || len(v) != 1 {
		t.Errorf("nothing to lay: %v, %v", v, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample().Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := catalog.Parse(data)
		if err != nil {
			return
		}
		if string(c.Bytes()) != string(data) {
			t.Fatal("it reads back differently")
		}
		for _, file := range c.Files {
			if strings.Contains("/"+file.Path+"/", "/../") || strings.HasPrefix(file.Path, "/") {
				t.Fatalf("path %q", file.Path)
			}
		}
	})
}
