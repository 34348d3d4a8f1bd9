package builder

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// writeDeb has dpkg-deb make a package.
func writeDeb(t *testing.T, to, control string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "DEBIAN/control"), []byte(control), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", dir, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func portalControl(arch string) string {
	return "Package: acme-portal\nVersion: 4.1-1\nArchitecture: " + arch + "\nMaintainer: Acme <it@acme.example>\n" +
		"Depends: nginx, libc6 (>= 2.30)\nInstalled-Size: 12\nDescription: the portal\n of Acme\n"
}

func TestPackagesOfTheProjectAreListedAndTakenByTheirHash(t *testing.T) {
	project := t.TempDir()
	file := filepath.Join(project, "vendor/acme/portal.deb")
	writeDeb(t, file, portalControl("amd64"))
	writeDeb(t, filepath.Join(project, "vendor/acme/arm.deb"), portalControl("arm64"))
	if err := os.WriteFile(filepath.Join(project, "vendor/acme/README"), []byte("no package"), 0o644); err != nil {
		t.Fatal(err)
	}
	set := &profile.Set{Base: &profile.Profile{}, Tools: &profile.Profile{}, Roles: []*profile.Profile{{Debs: []string{"vendor/acme"}}, {Debs: []string{"vendor/acme"}}}}
	list, err := ProjectDebs(project, "amd64", set)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	p := list[0]
	if p.ID() != "acme-portal 4.1-1" || p.Path != "vendor/acme/portal.deb" || p.Alias != "project" || p.Depends != "nginx, libc6 (>= 2.30)" || p.InstalledSize != 12<<10 {
		t.Errorf("%+v", p)
	}
	locked := lock.Package{Name: p.Name, Version: p.Version, Size: p.Size, SHA256: p.SHA256, Path: p.Path, Alias: p.Alias, Line: 7}
	b, _ := testBuild(t, "registry.example/layers")
	b.Project = project
	if err := b.fetch(t.Context(), plan{packages: []lock.Package{locked}}); err != nil {
		t.Fatal(err)
	}
	debs, err := b.debs(plan{packages: []lock.Package{locked}})
	if err != nil || len(debs) != 1 {
		t.Fatalf("%v, %v", debs, err)
	}

	b, _ = testBuild(t, "registry.example/layers")
	b.Project = project
	writeDeb(t, file, strings.Replace(portalControl("amd64"), "4.1-1", "4.1-2", 1))
	if err := b.fetch(t.Context(), plan{packages: []lock.Package{locked}}); fault.Of(err) != fault.Integrity || !strings.Contains(fault.Mend(err), "slipway lock") {
		t.Errorf("another package in its place: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := b.fetch(t.Context(), plan{packages: []lock.Package{locked}}); fault.Of(err) != fault.Missing || !strings.Contains(err.Error(), "line 7") {
		t.Errorf("a package that is gone: %v", err)
	}
	if err := os.WriteFile(file, []byte("no package"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ProjectDebs(project, "amd64", set); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "vendor/acme/portal.deb") {
		t.Errorf("what is no package: %v", err)
	}
	set.Roles = []*profile.Profile{{Debs: []string{"vendor/gone"}}}
	if _, err := ProjectDebs(project, "amd64", set); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "vendor/gone") {
		t.Errorf("a directory that is not there: %v", err)
	}
}
