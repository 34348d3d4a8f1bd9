package clustertest

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// readyTime bounds the wait for nodes that boot at the same time under TCG.
const readyTime = 6 * time.Minute

// unusedKey is a public key that nobody has the other half of.
const unusedKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g nobody"

// pair is a topology of two gateways, the smallest appliance, on one network.
func pair() *topology.Topology {
	node := func(name, address string) topology.Node {
		return topology.Node{Name: name, Role: "gateway", Site: topology.DefaultSite,
			NICs: []topology.NIC{{Network: "lan", Address: netip.MustParseAddr(address), MAC: "52:54:00:4d:01:" + name[len(name)-2:]}}}
	}
	return &topology.Topology{
		Name: "pair", Domain: "lab.example.internal",
		Networks: []topology.Network{{Name: "lan", Subnet: netip.MustParsePrefix("10.77.1.0/24"), Gateway: netip.MustParseAddr("10.77.1.1")}},
		Sites:    []topology.Site{{Name: topology.DefaultSite}},
		NTP:      []string{"time.example.internal"},
		Nodes:    []topology.Node{node("node-11", "10.77.1.11"), node("node-12", "10.77.1.12")},
		VIPs:     []topology.VIP{{Name: "db", Network: "lan", Address: netip.MustParseAddr("10.77.1.10"), Names: []string{"postgres"}}},
	}
}

// seeds writes seeds for nodes that belong to no cluster.
func seeds(t *testing.T, top *topology.Topology, key string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range top.Nodes {
		f, err := os.OpenFile(lab.Seed(dir, n.Name), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		err = seed.NoCloudISO(f, seed.Files{
			MetaData: fmt.Appendf(nil, "instance-id: %s\nlocal-hostname: %s\n", n.Name, n.Name),
			UserData: fmt.Appendf(nil, "#cloud-config\nssh_authorized_keys: [%q]\nntp: {servers: [%s]}\n", key, top.NTP[0]),
			NetworkConfig: fmt.Appendf(nil, `version: 2
ethernets:
  lan:
    match: {macaddress: "%s"}
    set-name: lan
    addresses: [%s/24]
    routes: [{to: default, via: 10.77.1.1}]
    nameservers: {addresses: [10.77.1.1], search: [%s]}
`, n.NICs[0].MAC, n.Address(), top.Domain),
		})
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestNodesMeetOnTheSwitchAndFindTheLabsServices(t *testing.T) {
	top := pair()
	c := labtest.NewCluster(t, lab.ClusterConfig{
		Topology: top, Images: filepath.Dir(images.Path(t, "gateway", "qcow2")), Seeds: seeds(t, top, unusedKey),
	})
	c.StartAll()
	c.WaitUntilReady(readyTime)
	a, b := c.Node("node-11"), c.Node("node-12")

	a.Succeed("ping -c 1 -W 5 10.77.1.12")
	b.Succeed("ping -c 1 -W 5 node-11")
	for name, want := range map[string]string{
		"node-12": "10.77.1.12", "node-12.lab.example.internal": "10.77.1.12", "db": "10.77.1.10", "postgres.lab.example.internal": "10.77.1.10",
	} {
		if got := strings.Fields(a.Succeed("getent ahostsv4 " + name)); len(got) == 0 || got[0] != want {
			t.Errorf("%s resolves to %v, want %s", name, got, want)
		}
	}
	a.WaitUntilSucceeds("timedatectl show --property=NTPSynchronized --value | grep -x yes")

	welcome := make([]byte, 8)
	if _, err := io.ReadFull(c.Dial("10.77.1.12:22"), welcome); err != nil || string(welcome[:4]) != "SSH-" {
		t.Errorf("a connection from outside hears %q, %v", welcome, err)
	}

	c.Block("node-12")
	a.MustFail("ping -c 1 -W 2 10.77.1.12")
	c.Unblock("node-12")
	a.Succeed("ping -c 3 -W 5 10.77.1.12")

	b.Succeed("touch /var/lib/gateway/kept && sync")
	c.Crash("node-12")
	a.MustFail("ping -c 1 -W 2 10.77.1.12")
	c.Start("node-12")
	c.WaitUntilReady(readyTime, "node-12")
	b.Succeed("test -e /var/lib/gateway/kept")
	a.Succeed("ping -c 1 -W 5 node-12")
	c.Shutdown(readyTime)
}
