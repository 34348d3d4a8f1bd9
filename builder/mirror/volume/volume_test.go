package volume_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/volume"
)

func hash(n int) string { return fmt.Sprintf("%064x", n) }

func sample() *volume.Manifest {
	return &volume.Manifest{Site: "plant-7", Edition: 3, Bundle: hash(9), Volume: 2, Volumes: 4, Date: time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC),
		Catalog: volume.Sum{SHA256: hash(9), Size: 100}, Parts: []volume.Sum{{SHA256: hash(1), Size: 5}, {SHA256: hash(2), Size: 0}}}
}

func TestAManifestReadsBackAsItWasWritten(t *testing.T) {
	got, err := volume.ParseManifest(sample().Text())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, sample()) {
		t.Errorf("got %+v", got)
	}
}

func TestManifestsThatCannotBeAreRefused(t *testing.T) {
	text := string(sample().Text())
	for _, c := range []struct{ old, new, want string }{
		{"slipway-volume 1", "slipway-volume 2", "format"},
		{"Volume: 2", "Volume: 5", "cannot be"},
		{"Volume: 2", "Volume: 0", "cannot be"},
		{"Volumes: 4", "Volumes: 40000", "cannot be"},
		{"Edition: 3", "Edition: -3", "cannot be"},
		{"Edition: 3", "Edition: 03", "not as slipway writes it"},
		{"Bundle: " + hash(9), "Bundle: " + hash(8), "not the catalog's hash"},
		{"data/00/" + hash(1), "data/00/../../etc/passwd", "not where slipway puts it"},
		{"data/00/" + hash(1), "/etc/passwd", "not where slipway puts it"},
		{" 5 data", " -5 data", "bad size"},
		{" 5 data", " 99999999999999999 data", "bad size"},
		{hash(2) + " 0 data/00/" + hash(2), hash(1) + " 0 data/00/" + hash(1), "twice"},
		{"Site: plant-7\n", "Site: plant-7\nMore: x\n", "not as slipway writes it"},
		{"SHA256:\n", "\nSHA256:\n", "catalog's hash"},
	} {
		changed := strings.Replace(text, c.old, c.new, 1)
		if changed == text {
			t.Fatalf("%q is not in the sample", c.old)
		}
		if _, err := volume.ParseManifest([]byte(changed)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q for %q: %v, want %q", c.new, c.old, err, c.want)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add(sample().Text())
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := volume.ParseManifest(data)
		if err != nil {
			return
		}
		for _, p := range m.Parts {
			if strings.Contains(volume.PartPath(p.SHA256), "..") {
				t.Fatalf("%q", p.SHA256)
			}
		}
	})
}
