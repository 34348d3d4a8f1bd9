package inspect

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipwayhq/slipway/internal/fault"
)

// next is a later version of the sample: a package upgraded, one gone, one new, and
// files to match.
func next() appliance {
	a := sample()
	a.version = "20261121-def"
	a.layers[0].files = map[string]string{
		"etc/os-release": "ID=debian\n", "etc/removed": "x", "usr/bin/tool": "tool 2\n", "usr/bin/new": "longer than before\n",
	}
	a.packages[0].Version = "13.9"
	a.packages[1].Name = "libbar"
	return a
}

func TestTwoImagesDifferInPackagesLayersAndFiles(t *testing.T) {
	d, err := Diff(context.Background(), sample().write(t, FormatQCOW2), next().write(t, FormatVMDK))
	if err != nil {
		t.Fatal(err)
	}
	wantPackages := []PackageChange{
		{Name: "base-files", From: "13.8+deb13u1", To: "13.9"},
		{Name: "libbar", To: "1:2.0~rc1-1", Delta: 4000},
		{Name: "libfoo++", From: "1:2.0~rc1-1", Delta: -4000},
	}
	if diff := cmp.Diff(wantPackages, d.Packages); diff != "" {
		t.Errorf("packages (-want +got):\n%s", diff)
	}
	var files []string
	for _, f := range d.Files {
		files = append(files, f.Change+" "+f.Path+" "+strings.Join(f.What, ","))
	}
	wantFiles := []string{
		"added usr/bin/new ", "changed usr/bin/tool content", "removed usr/share ", "removed usr/share/doc ",
		"removed usr/share/doc/libfoo++ ", "removed usr/share/doc/libfoo++/copyright ",
	}
	if diff := cmp.Diff(wantFiles, files); diff != "" {
		t.Errorf("files (-want +got); /etc/removed is hidden on both sides:\n%s", diff)
	}
	if len(d.Layers) != 2 || d.Layers[0].Same || !d.Layers[1].Same {
		t.Errorf("layers: %+v", d.Layers)
	}
	var text bytes.Buffer
	if err := d.Text(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"~ base-files", "+ libbar", "- libfoo++", "+ /usr/bin/new", "layer base"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, text.String())
		}
	}
}

func TestAnImageDoesNotDifferFromItselfInAnotherFormat(t *testing.T) {
	d, err := Diff(context.Background(), sample().write(t, FormatRaw), sample().write(t, FormatOVA))
	if err != nil || !d.None() {
		t.Errorf("differences %+v, %v", d, err)
	}
}

func TestALockIsComparedWithItself(t *testing.T) {
	lock := filepath.Join("..", "..", "images.lock")
	d, err := Diff(context.Background(), lock, lock)
	if err != nil || !d.None() || d.A.Kind != "lock" {
		t.Errorf("got %+v, %v", d, err)
	}
}

func TestALockAndAnImageAreComparedByPackages(t *testing.T) {
	d, err := Diff(context.Background(), filepath.Join("..", "..", "images.lock"), sample().write(t, FormatQCOW2))
	if err != nil {
		t.Fatal(err)
	}
	if d.A.Kind != "lock" || d.B.Kind != "image" || len(d.Packages) == 0 || d.Files != nil {
		t.Errorf("got %+v", d)
	}
}

func TestWhatIsNeitherImageNorLockIsRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := Diff(context.Background(), dir, dir); fault.Of(err) != fault.Input {
		t.Errorf("got %v", err)
	}
	if _, err := Diff(context.Background(), "diff_test.go", "diff_test.go"); fault.Of(err) != fault.Input {
		t.Errorf("class %v: %v", fault.Of(err), err)
	}
}
