package boottest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

const (
	// seedEnv repeats the moments of an earlier run.
	seedEnv = "SLIPWAY_POWERCUT_SEED"

	// notes is a directory of the state partition.
	notes = "/var/lib/slipway/notes"
)

// TestPowerCut cuts the power twice during the first boot, at random moments
// of its two most delicate stretches: while init makes the state file system,
// and while the agent configures the node. The third start must make it whole. Then
// it cuts the power of the node that is ready, and hurts it in other ways. The disk has
// a write cache that loses what was not flushed.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	random := seededRandom(t)
	m := labtest.Start(t, lab.VM{
		Name: "cut", Image: images.Path(t, "gateway", "qcow2"), Volatile: true,
		CPUs: 1, // HAProxy needs what lab.VM tells of
		Seeds: []string{noCloudISO(t, seed.Files{
			MetaData: []byte("instance-id: cut\nlocal-hostname: cut-1\n"),
			UserData: []byte("#cloud-config\nssh_authorized_keys: [\"" + newKey(t).authorized + "\"]\n" +
				"write_files:\n  - {path: /etc/asked, content: for}\n" +
				"runcmd:\n  - echo ran >> /var/lib/slipway/ran\n"),
		})},
	})
	m.WaitForConsole("making the state file system")
	cutAfter(t, m, random, 2*time.Second)

	m.PowerOn()
	m.WaitForConsole("handing over to systemd")
	cutAfter(t, m, random, 25*time.Second)

	m.PowerOn()
	m.WaitUntilSucceeds("grep --quiet 'once: runcmd' " + node.KeptPath)
	state := stateOf(m)
	m.SlowDisk(time.Hour, 0) // what it holds now is what a power cut would leave
	if ran := state.file(wholeFileSystem(m, state), "/var/lib/slipway/ran"); !strings.HasPrefix(ran, "ran\n") {
		t.Errorf("it is noted that runcmd ran, and what it wrote is not there: %q", ran)
	}
	m.MendDisk()
	report := waitUntilReady(m)
	if report.Hostname != "cut-1" {
		t.Errorf("the node calls itself %q", report.Hostname)
	}
	servicesRun(m)
	wants(m, "cat /etc/asked", "for")
	// A command whose end was not recorded runs again; it must have run, and at most once for each start.
	if ran := strings.Count(m.ReadFile("/var/lib/slipway/ran"), "ran"); ran < 1 || ran > 2 {
		t.Errorf("runcmd ran %d times", ran)
	}
	m.Succeed("ssh-keygen -l -f /var/lib/slipway/ssh/ssh_host_ed25519_key")
	if id := strings.TrimSpace(m.ReadFile("/etc/machine-id")); len(id) != 32 {
		t.Errorf("machine-id is %q", id)
	}

	before := identityOf(m)
	m.Succeed("mkdir " + notes + " && cd " + notes + ` &&
		fill() { head -c 1048576 /dev/zero | tr '\0' $1; } &&
		fill k > kept && fill o > over && sync kept over . &&
		fill n > /run/new`)
	last := cutBetweenFlushes(m, func(try int) string {
		return fmt.Sprintf("cd %s && echo written > lost-%d && dd if=/run/new of=over bs=1M oflag=direct conv=notrunc", notes, try)
	})
	if s := m.DiskStats(); s.Dropped < 1<<20 || s.Survived != 0 {
		t.Errorf("the power cut has lost %+v", s)
	}
	wholeFileSystem(m, state)

	m.PowerOn()
	waitUntilReady(m)
	t.Run("what was flushed is there, what was not is gone", func(t *testing.T) {
		m := m.In(t)
		wants(m, "tr -d k < "+notes+"/kept | wc --bytes; wc --bytes < "+notes+"/kept", "0\n1048576")
		wants(m, "tr -d o < "+notes+"/over | wc --bytes; wc --bytes < "+notes+"/over", "0\n1048576")
		m.MustFail(fmt.Sprintf("grep --no-messages written %s/lost-%d", notes, last))
	})
	t.Run("it is the node that it was", func(t *testing.T) {
		if after := identityOf(m.In(t)); after != before {
			t.Errorf("a power cut of a ready node made it another:\n%+v\nwas\n%+v", after, before)
		}
	})
	hurt(t, m)
	t.Run("a guest that powers off loses nothing", func(t *testing.T) {
		m := m.In(t)
		m.Succeed("echo not synced > " + notes + "/last")
		m.Shutdown()
		if s := m.DiskStats(); s.Dropped != 0 || s.Held != 0 {
			t.Errorf("%+v", s)
		}
		if last := state.file(wholeFileSystem(m, state), notes+"/last"); last != "not synced\n" {
			t.Errorf("it has written %q", last)
		}
	})
}

// cutAfter lets the machine go on for a random time and cuts its power. Here
// passing time is the point: a condition would always hit the same moment.
func cutAfter(t *testing.T, m *labtest.Machine, random *rand.Rand, most time.Duration) {
	t.Helper()
	wait := time.Duration(random.Int64N(int64(most)))
	t.Logf("cutting the power after %v", wait.Round(time.Millisecond))
	<-time.After(wait)
	m.Crash()
}

func seededRandom(t *testing.T) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if text := os.Getenv(seedEnv); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
	}
	t.Logf("repeat these moments with %s=%d", seedEnv, n)
	return rand.New(rand.NewPCG(n, 0))
}

// cutBetweenFlushes has the guest write past its own cache, and cuts the power
// before it flushes the disk's. A journal may flush at any moment: the disk is
// held while the host looks whether it has, and all is done again if so. (To hold
// the guest is no way: QEMU flushes the disks of a machine that it pauses.) It
// says which try it was.
func cutBetweenFlushes(m *labtest.Machine, command func(try int) string) int {
	m.Helper()
	for try := range 20 {
		before := m.DiskStats()
		m.Succeed(command(try))
		m.SlowDisk(time.Hour, 0)
		now := m.DiskStats()
		if now.Flushes == before.Flushes && now.Held >= 1<<20 {
			m.Crash()
			m.MendDisk()
			return try
		}
		m.Logf("the guest has flushed in between (%+v): once more", now)
		m.MendDisk()
	}
	m.Fatal("the guest flushes too often for a power cut in between")
	return 0
}

// partition is where a file system lies on the disk, bytes, and what of it is mounted where.
type partition struct {
	start, size  int64
	root, target string
}

// stateOf is the partition with the node's state.
func stateOf(m *labtest.Machine) partition {
	m.Helper()
	out := m.Succeed(`of() { findmnt --noheadings --output "$1" --nofsroot --target /var/lib/slipway; } &&
		name=$(lsblk --noheadings --output KNAME "$(of SOURCE)") && cat /sys/class/block/$name/start /sys/class/block/$name/size && of FSROOT && of TARGET`)
	var p partition
	if _, err := fmt.Sscan(out, &p.start, &p.size, &p.root, &p.target); err != nil || p.size == 0 {
		m.Fatalf("where the state is: %q, %v", out, err)
	}
	p.start, p.size = p.start*512, p.size*512 // the kernel's sectors, whatever the disk's
	return p
}

// file reads a file of the node from a copy of the file system; "" if there is none.
func (p partition) file(copied, path string) string {
	out, _ := exec.Command("debugfs", "-R", "cat "+p.root+strings.TrimPrefix(path, p.target), copied).Output()
	return string(out)
}

// wholeFileSystem has the outside judges look at a disk as a power cut left it, or would:
// it has no power, or is held. The overlay may have leaked clusters (status 3) and no
// more, and the file system needs its journal played back and no more. It returns a copy
// of the file system.
func wholeFileSystem(m *labtest.Machine, part partition) string {
	m.Helper()
	overlay := filepath.Join(m.Lab().Dir(), "disk.qcow2")
	if out, err := exec.Command("qemu-img", "check", overlay).CombinedOutput(); err != nil && exitStatus(err) != 3 {
		m.Errorf("qemu-img check: %v\n%s", err, out)
	}
	copied := filepath.Join(m.TempDir(), "state.img")
	source := fmt.Sprintf("driver=raw,offset=%d,size=%d,file.driver=qcow2,file.file.filename=%s", part.start, part.size, overlay)
	if out, err := exec.Command("qemu-img", "convert", "--image-opts", source, "-O", "raw", copied).CombinedOutput(); err != nil {
		m.Fatalf("qemu-img convert: %v\n%s", err, out)
	}
	// Preening plays the journal back and frees files that were removed while open
	// (status 1); what a power cut must not do, it refuses to mend (e2fsck(8)).
	if out, err := exec.Command("e2fsck", "-p", copied).CombinedOutput(); err != nil && exitStatus(err) != 1 {
		m.Errorf("e2fsck -p: %v\n%s", err, out)
	}
	if out, err := exec.Command("e2fsck", "-fn", copied).CombinedOutput(); err != nil {
		m.Errorf("e2fsck -fn: %v\n%s", err, out)
	}
	return copied
}

func exitStatus(err error) int {
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	return -1
}
