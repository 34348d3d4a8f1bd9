//go:build long

package clustertest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/role/mirror"
	"github.com/slipwayhq/slipway/firstboot/topology"
)

// carried is a package that is in no image and goes along in the bundle; aside is one
// that does not.
const (
	carried = "tree"
	aside   = "figlet"
)

// TestAirGapped tells the story of examples/air-gapped, without its second database: a disc, a
// disk and a stick come to a mirror, and what they bring is all that the other nodes can install.
// The bundle is a real one, made from images.lock. It takes a quarter of an hour under TCG:
//
//	make long
func TestAirGapped(t *testing.T) {
	volumes, key := carry(t)
	disc, disks := disc(t, volumes[0]), []string{onExt4(t, volumes[1])}
	for _, v := range volumes[2:] {
		disks = append(disks, onFAT(t, v))
	}
	s := newSite(t, airGapped(t, key))

	s.part(t, "the mirror serves nothing yet, and nodes have no other sources", func(t *testing.T, s *site) {
		s.StartAll()
		s.becomesWhole()
		m := s.Node("mirror1")
		if out := m.Succeed("ps -o user= -C slipway"); strings.TrimSpace(out) != "mirror" {
			t.Errorf("the service runs as %q", out)
		}
		if out := m.Succeed("slipway mirror status"); !strings.Contains(out, "nothing is published yet") {
			t.Errorf("the mirror says %s", out)
		}
		for _, name := range []string{"db1", "disp1", "mirror1"} {
			out := s.Node(name).Succeed("apt-get update --print-uris | sed \"s|^'\\([^']*\\)/dists/.*|\\1|\" | sort -u")
			if strings.TrimSpace(out) != "https://10.77.8.61/debian\nhttps://10.77.8.61/debian-security" {
				t.Errorf("%s has the sources\n%s", name, out)
			}
		}
	})
	s.part(t, "without a disc the mirror says what is missing", func(t *testing.T, s *site) {
		if _, said := s.load(t); !strings.Contains(said, "no medium with volumes of a mirror") {
			t.Errorf("it says %s", said)
		}
	})
	s.part(t, "disks, one without and one with partitions, come before the disc with the first volume", func(t *testing.T, s *site) {
		m := s.Node("mirror1")
		for i, disk := range disks {
			if err := m.Lab().AttachDisk(s.Life(), disk, fmt.Sprintf("medium-%d", i+2)); err != nil {
				t.Fatal(err)
			}
			m.WaitUntilSucceeds(fmt.Sprintf("ls /dev/disk/by-id/*medium-%d && udevadm settle", i+2))
			if ok, said := s.load(t); !ok || !strings.Contains(said, "still to come: volume 1") {
				t.Errorf("after %s: %s", disk, said)
			}
		}
		s.Node("db1").MustFail("apt-get update --error-on=any")
		m.InsertCD(disc)
		if ok, said := s.load(t); !ok || !strings.Contains(said, "edition 1 of plant-7 is complete and published") {
			t.Errorf("after all: %s", said)
		}
		m.EjectCD()
		m.Succeed("modprobe udf && modprobe exfat") // which no program here writes without a mount
		if out := m.Succeed("ls -A /run/slipway/mirror/media; findmnt -rno TARGET | grep /run/slipway/mirror || true"); out != "" {
			t.Errorf("left behind: %s", out)
		}
		t.Logf("%s", m.Succeed("slipway mirror verify"))
		t.Logf("%s", m.Succeed("slipway mirror receipt -o /tmp/receipt && head -c 300 /tmp/receipt"))
	})
	s.part(t, "other nodes install from the mirror alone", func(t *testing.T, s *site) {
		db := s.Node("db1")
		db.MustFail("command -v " + carried)
		db.Succeed("apt-get update --error-on=any")
		db.Succeed("DEBIAN_FRONTEND=noninteractive apt-get install -y " + carried)
		db.Succeed(carried + " --version")
		if out := db.Succeed("apt-cache policy " + carried); !strings.Contains(out, "https://10.77.8.61/debian trixie/main") {
			t.Errorf("it is from\n%s", out)
		}
		db.MustFail("DEBIAN_FRONTEND=noninteractive apt-get install -y " + aside)
		// It is there as long as this version of the image is.
		db.Reboot()
		s.becomesWhole()
		s.Node("db1").Succeed(carried + " --version")
	})
	s.part(t, "Docker pulls from it, by the image's own name", func(t *testing.T, s *site) {
		d := s.Node("disp1")
		d.WaitUntilSucceeds("docker pull acme/session:4")
		d.Succeed("docker pull 10.77.8.61/acme/session:4")
		if out, err := d.Lab().Fail(s.Life(), "docker pull library/nothing:1"); err != nil {
			t.Errorf("an image that was not carried: %v\n%s", err, out)
		}
	})
	s.part(t, "after a power cut the mirror serves on", func(t *testing.T, s *site) {
		s.Crash("mirror1")
		s.Start("mirror1")
		s.becomesWhole()
		s.Node("db1").Succeed("apt-get update --error-on=any")
		s.Node("mirror1").Succeed("slipway mirror verify")
	})
}

// load has the mirror take in what is attached, as slipway mirror load does.
func (s *site) load(t *testing.T) (ok bool, said string) {
	t.Helper()
	var b strings.Builder
	runner := operations.Runner{Cluster: s.cluster, Agree: func(context.Context, string) error { return nil },
		Say: func(line string) { t.Log(line); fmt.Fprintln(&b, line) }}
	began := time.Now()
	_, err := runner.Run(s.Life(), operations.MirrorLoad(s.cluster, mirror.LoadArgs{}))
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	t.Logf("%.1f s: %v", time.Since(began).Seconds(), err)
	return err == nil, b.String()
}

// carry makes a bundle of several volumes as the connected side does.
func carry(t *testing.T) (volumes []string, key string) {
	t.Helper()
	dir := t.TempDir()
	program, project := filepath.Join(dir, "slipway"), "../.."
	run(t, "go", "build", "-o", program, "github.com/slipwayhq/slipway/cmd/slipway")
	img, err := random.Image(4000, 2)
	if err == nil {
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: rootFS(t, img)})
	}
	if err == nil {
		_, err = layout.Write(filepath.Join(dir, "image"), mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}))
	}
	if err != nil {
		t.Fatal(err)
	}
	siteDir, media := filepath.Join(dir, "site"), filepath.Join(dir, "media")
	run(t, program, "mirror", "key", "generate", "--name", "plant-7", "--site", siteDir)
	began := time.Now()
	out := run(t, program, "--project", project, "mirror", "create", "--site", siteDir, "--no-layers", "--package", carried, "--image", "acme/session:4=oci:"+filepath.Join(dir, "image"),
		"--volume-size", "200MiB", "-o", media)
	t.Logf("%.1f s\n%s", time.Since(began).Seconds(), out)
	volumes, err = filepath.Glob(media + "/volume-*")
	if err != nil || len(volumes) < 3 {
		t.Fatalf("volumes %q, %v; want at least 3", volumes, err)
	}
	return volumes, run(t, program, "mirror", "key", "public", "--site", siteDir)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// disc is an ISO 9660 image of a volume.
func disc(t *testing.T, volume string) string {
	t.Helper()
	to := volume + ".iso"
	run(t, "xorriso", "-as", "mkisofs", "-quiet", "-J", "-joliet-long", "-r", "-V", "PLANT7", "-o", to, volume)
	return to
}

// onExt4 is a disk without partitions, as a hypervisor attaches it.
func onExt4(t *testing.T, volume string) string {
	t.Helper()
	to := volume + ".ext4"
	run(t, "mke2fs", "-q", "-t", "ext4", "-d", volume, to, "300M")
	return to
}

// onFAT is a disk with one partition, as USB sticks are sold.
func onFAT(t *testing.T, volume string) string {
	t.Helper()
	to := volume + ".fat"
	run(t, "truncate", "--size", "300M", to)
	run(t, "sh", "-c", `echo 'start=2048, type=c' | sfdisk --quiet --label dos "$1"`, "sh", to)
	run(t, "mkfs.vfat", "-F", "32", "--offset", "2048", to)
	contents, err := filepath.Glob(volume + "/*")
	if err != nil || len(contents) == 0 {
		t.Fatalf("%s: %q, %v", volume, contents, err)
	}
	run(t, "mcopy", append(append([]string{"-s", "-i", to + "@@1M"}, contents...), "::")...)
	return to
}

func rootFS(t *testing.T, img v1.Image) v1.RootFS {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return config.RootFS
}

// airGapped is examples/air-gapped with another key, and without its second database.
func airGapped(t *testing.T, key string) string {
	t.Helper()
	file := example(t, "air-gapped")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	armour := regexp.MustCompile(`(?s)-----BEGIN PGP.*?-----END PGP PUBLIC KEY BLOCK-----`)
	if !armour.Match(text) {
		t.Fatalf("%s holds no key", file)
	}
	indented := strings.ReplaceAll(strings.TrimSpace(key), "\n", "\n    ")
	text, _, err = topology.Without("cluster.yaml", armour.ReplaceAllLiteral(text, []byte(indented)), "db2")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
