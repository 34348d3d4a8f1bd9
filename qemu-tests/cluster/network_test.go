package clustertest

import (
	"errors"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

// readyTime bounds the wait for nodes that boot at the same time under TCG.
const readyTime = 8 * time.Minute

// smallest is a topology with two gateways, the smallest appliances, and what
// gateways need to make sense, which is not started.
const smallest = `slipway: 1
name: smallest
domain: lab.example.internal
networks:
  lan: {subnet: 10.77.1.0/24, gateway: 10.77.1.1}
dns: {servers: [10.77.1.1], search: [lab.example.internal]}
ntp: [10.77.1.1]
users:
  - {name: ops, keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED ops@example.org]}
vips:
  - {name: database, address: 10.77.1.10, on: balancers, router_id: 51, names: [db.example.internal]}
nodes:
  - {name: db1, role: db-master, nics: [{network: lan, address: 10.77.1.11}]}
  - {name: lb1, role: balancer, nics: [{network: lan, address: 10.77.1.21}]}
  - {name: br1, role: broker, nics: [{network: lan, address: 10.77.1.31}]}
  - {name: gw1, role: gateway, nics: [{network: lan, address: 10.77.1.41}]}
  - {name: gw2, role: gateway, nics: [{network: lan, address: 10.77.1.42}]}
`

// plainSeeds writes seeds for nodes that belong to no cluster: what is tested is
// what they run in.
func plainSeeds(t *testing.T, top *topology.Topology, dir, key string) {
	t.Helper()
	for _, n := range top.Nodes {
		f, err := os.Create(lab.Seed(dir, n.Name))
		if err != nil {
			t.Fatal(err)
		}
		err = seed.NoCloudISO(f, seed.Files{
			MetaData: fmt.Appendf(nil, "instance-id: %s\nlocal-hostname: %s\n", n.Name, n.Name),
			UserData: fmt.Appendf(nil, "#cloud-config\nssh_authorized_keys: [%q]\nntp: {servers: [10.77.1.1]}\n", key),
			NetworkConfig: fmt.Appendf(nil, `version: 2
ethernets:
  lan:
    match: {name: "e*"}
    addresses: [%s/24]
    routes: [{to: default, via: 10.77.1.1}]
    nameservers: {addresses: [10.77.1.1], search: [%s]}
`, n.Address(), top.Domain),
		})
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnOrdinaryUserRunsALab tells the story of two nodes through the command.
func TestAnOrdinaryUserRunsALab(t *testing.T) {
	u := newUser(t)
	u.write("cluster.yaml", smallest)
	top, err := topology.Load(u.path("cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	u.shareImages(images.Path(t, "gateway", "qcow2"))
	u.endLabs()

	u.mkdir("seeds")
	out := u.fails(4, "up", "cluster.yaml", "--images", "images", "--seeds", "seeds", "gw1")
	u.says(out, "no seed of the node db1")
	plainSeeds(t, top, u.path("seeds"), u.key())

	out = u.runs("up", "cluster.yaml", "--images", "images", "--seeds", "seeds", "gw1", "gw2", "--timeout", readyTime.String())
	u.says(out, "2 nodes ready, 2 of them started now")

	u.part("nodes reach each other by name", func(u *user) {
		u.says(u.ssh("gw1", "ping -c 1 -W 5 gw2"), "(10.77.1.42)")
		for name, want := range map[string]string{"db1": "10.77.1.11", "database": "10.77.1.10", "db.example.internal": "10.77.1.10"} {
			if got := strings.Fields(u.ssh("gw2", "getent ahostsv4 "+name)); len(got) == 0 || got[0] != want {
				u.Errorf("%s resolves to %v, want %s", name, got, want)
			}
		}
	})
	u.part("the gateway gives them the time", func(u *user) {
		u.ssh("gw1", "until timedatectl show --property=NTPSynchronized --value | grep -qx yes; do sleep 1; done")
	})
	u.part("the exit status of a command comes through", func(u *user) {
		u.fails(7, "ssh", "cluster.yaml", "-i", "key", "gw1", "--", "exit 7")
	})
	u.part("the screen and the console show the node", func(u *user) {
		picture, err := png.Decode(strings.NewReader(u.runs("screenshot", "cluster.yaml", "gw1", "-o", "-")))
		if err != nil || picture.Bounds().Dx() < 640 {
			u.Errorf("the screenshot: %v", err)
		}
		u.says(u.runs("console", "cluster.yaml", "gw1"), "gw1 login:")
	})
	u.part("a blocked node is out of reach until it is not", func(u *user) {
		u.order(daemon.Block, "gw2")
		u.fails(1, "ssh", "cluster.yaml", "-i", "key", "gw1", "--", "ping -c 1 -W 2 10.77.1.42")
		u.order(daemon.Unblock, "gw2")
		u.ssh("gw1", "ping -c 1 -w 30 10.77.1.42")
	})
	u.part("a power cut leaves the disk to the next start", func(u *user) {
		u.ssh("gw2", "echo kept > kept && sync")
		u.order(daemon.Crash, "gw2")
		u.says(u.fails(9, "ssh", "cluster.yaml", "gw2"), "powered off")
		u.says(u.runs("up", "cluster.yaml", "gw1", "gw2", "--timeout", readyTime.String()), "2 nodes ready, 1 of them started now")
		u.says(u.ssh("gw2", "cat kept"), "kept")
		u.ssh("gw1", "ping -c 1 -w 30 gw2")
	})
	u.part("down ends everything and keeps the disks until they are destroyed", func(u *user) {
		place := u.place()
		u.says(u.runs("down", "cluster.yaml"), "stopped: gw1, gw2")
		if running, err := place.Runs(); running || err != nil {
			u.Errorf("the daemon runs on: %v, %v", running, err)
		}
		if _, err := os.Stat(filepath.Join(place.Machine("gw1"), "disk.qcow2")); err != nil {
			u.Error(err)
		}
		u.says(u.runs("down", "cluster.yaml", "--destroy"), "removed: "+string(place))
		if left, err := os.ReadDir(filepath.Dir(string(place))); len(left) != 0 || err != nil {
			u.Errorf("left behind: %v, %v", left, err)
		}
	})
}
