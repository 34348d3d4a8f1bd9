package boottest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// brokenVersion is the name of the version that cannot start.
const brokenVersion = "20991231-broken"

// TestBrokenVersionFallsBack starts an appliance with a second version on trial
// that lacks a layer. The trial has one start left, so that the test need not
// watch three of them fail; GRUB's counting is the same.
func TestBrokenVersionFallsBack(t *testing.T) {
	t.Parallel()
	disk, good := twoVersionDisk(t)
	m := labtest.Start(t, lab.VM{
		Name: "trial", Image: disk, Format: "raw", CPUs: 1,
		Seeds: []string{noCloudISO(t, seed.Files{
			MetaData: []byte("instance-id: trial\nlocal-hostname: trial-1\n"), UserData: []byte("#cloud-config\n"),
		})},
	})
	m.WaitForConsole("This machine cannot start version " + brokenVersion)
	m.WaitForConsole("starting version " + good)
	// The node works, but not with the version that it was given.
	report := waitUntil(m, status.Degraded)
	if report.Version != good || report.Trial {
		t.Errorf("version %s runs (on trial: %v), want %s", report.Version, report.Trial, good)
	}
	facts := factsOf(m)
	if facts.Good != good || facts.Try != brokenVersion || facts.Tries != 0 {
		t.Errorf("boot counting says good %q, try %q, %d tries left", facts.Good, facts.Try, facts.Tries)
	}
	warnsOf(m, report, brokenVersion)
}

// espOffset is where the boot partition starts on the disk, see builder/disk.
const espOffset = 2 << 20

// twoVersionDisk adds to the gateway's disk a version on trial whose manifest
// names a layer that is not there, with mtools, as an upgrade that went wrong
// would leave it. It returns the disk and the version that works.
func twoVersionDisk(t *testing.T) (path, good string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "two-versions.raw")
	run(t, "qemu-utils", "qemu-img", "convert", "-O", "raw", images.Path(t, "gateway", "qcow2"), path)
	esp := fmt.Sprintf("%s@@%d", path, espOffset)

	block := filepath.Join(dir, "grubenv")
	run(t, "mtools", "mcopy", "-i", esp, "::/grub/grubenv", block)
	content, err := os.ReadFile(block)
	if err != nil {
		t.Fatal(err)
	}
	env, err := grubenv.Parse(content)
	if err != nil {
		t.Fatal(err)
	}
	good = env.Good
	env.Try, env.Tries = brokenVersion, 1
	if content, err = env.Bytes(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(block, content, 0o600); err != nil {
		t.Fatal(err)
	}

	run(t, "mtools", "mcopy", "-s", "-i", esp, "::/images/"+good, filepath.Join(dir, brokenVersion))
	loseLayer(t, filepath.Join(dir, brokenVersion, "manifest.json"))
	run(t, "mtools", "mcopy", "-s", "-i", esp, filepath.Join(dir, brokenVersion), "::/images/")
	run(t, "mtools", "mcopy", "-o", "-i", esp, block, "::/grub/grubenv")
	return path, good
}

// loseLayer makes a manifest name a layer that nobody has.
func loseLayer(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	m.Version = brokenVersion
	m.Layers[len(m.Layers)-1].Digest = strings.Repeat("0", 64)
	if data, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// run runs a tool of the host that the named Debian package brings.
func run(t *testing.T, pkg, tool string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Fatalf("%s is missing; run: apt-get install --no-install-recommends %s", tool, pkg)
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, out)
	}
}
