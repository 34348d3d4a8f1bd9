package boottest

import (
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// seedEnv repeats the moments of an earlier run.
const seedEnv = "SLIPWAY_POWERCUT_SEED"

// TestPowerCut cuts the power twice during the first boot, at random moments
// of its two most delicate stretches: while init makes the state file system,
// and while the agent configures the node. The third start must make it whole.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	random := seededRandom(t)
	m := labtest.Start(t, lab.VM{
		Name:  "cut",
		Image: images.Path(t, "gateway", "qcow2"),
		CPUs:  1, // HAProxy needs what lab.VM tells of
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
	m.Succeed("sync")
	m.Crash()
	m.PowerOn()
	waitUntilReady(m)
	if after := identityOf(m); after != before {
		t.Errorf("a power cut of a ready node made it another:\n%+v\nwas\n%+v", after, before)
	}
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
