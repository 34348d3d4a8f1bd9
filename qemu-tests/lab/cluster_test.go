package lab

import (
	"context"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

// twoNetworks is a topology with an untagged network, on whose gateway DNS and
// time are asked, and a tagged one without a gateway.
func twoNetworks() *topology.Topology {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	return &topology.Topology{
		Name: "two", Domain: "example.internal",
		Networks: []topology.Network{
			{Name: "lan", Subnet: prefix("10.77.1.0/24"), Gateway: addr("10.77.1.1")},
			{Name: "storage", Subnet: prefix("10.77.9.0/29"), VLAN: 1},
			{Name: "backup", Subnet: prefix("10.77.8.0/24"), Gateway: addr("10.77.8.1")},
		},
		DNS:  topology.DNS{Servers: []netip.Addr{addr("10.77.1.53"), addr("192.0.2.53"), addr("10.77.1.11")}},
		NTP:  []string{"10.77.1.1", "time.example.org", "10.77.1.123"},
		VIPs: []topology.VIP{{Name: "database", Network: "lan", Address: addr("10.77.1.10"), Names: []string{"db", "db.example.org"}}},
		Nodes: []topology.Node{
			{Name: "a", Role: "gateway", NICs: []topology.NIC{
				{Network: "lan", Address: addr("10.77.1.11"), MAC: "52:54:00:00:00:01"},
				{Network: "storage", Address: addr("10.77.9.6"), MAC: "52:54:00:00:00:02"}}},
			{Name: "b", Role: "balancer", NICs: []topology.NIC{{Network: "lan", Address: addr("10.77.1.12")}}, Size: topology.Size{Memory: 2 << 30}},
			{Name: "c", Role: "gateway", NICs: []topology.NIC{{Network: "backup", Address: addr("10.77.8.13")}}},
		},
	}
}

func TestEachNetworkHasAVLANOfItsOwn(t *testing.T) {
	vlans := vlansOf(twoNetworks())
	if vlans["storage"] != 1 || vlans["lan"] == 1 || vlans["backup"] == 1 || vlans["lan"] == vlans["backup"] {
		t.Errorf("%v", vlans)
	}
}

func TestCardsCarryTheTagThatTheTopologyGives(t *testing.T) {
	top := twoNetworks()
	n, err := newNetwork(top, noLog())
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	cards := n.cards(top.Nodes[0])
	if len(cards) != 2 || cards[0].Port.VLAN != n.vlans["lan"] || cards[0].Port.Trunk != nil ||
		cards[1].Port.VLAN != 0 || !slices.Equal(cards[1].Port.Trunk, []uint16{1}) {
		t.Errorf("%+v", cards)
	}
	if cards[0].MAC != "52:54:00:00:00:01" || cards[0].PortName != "a/0" || cards[1].PortName != "a/1" {
		t.Errorf("%+v", cards)
	}
}

func TestTheGatewayTakesTheAddressesOfServersThatNobodyHas(t *testing.T) {
	top := twoNetworks()
	for i, want := range []string{
		"10.77.1.1/24 10.77.1.53/24 10.77.1.123/24", // not 10.77.1.11, which is a node's
		"10.77.9.5/29", // .7 is broadcast, .6 a node's
		"10.77.8.1/24",
	} {
		addresses, err := gatewayAddresses(top, top.Networks[i])
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range addresses {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("network %s: %v, want %s", top.Networks[i].Name, got, want)
		}
	}
}

func TestANetworkThatIsFullIsAMistake(t *testing.T) {
	top := &topology.Topology{Networks: []topology.Network{{Name: "point", Subnet: netip.MustParsePrefix("10.77.1.0/30")}}}
	for _, a := range []string{"10.77.1.1", "10.77.1.2"} {
		top.Nodes = append(top.Nodes, topology.Node{Name: a, NICs: []topology.NIC{{Network: "point", Address: netip.MustParseAddr(a)}}})
	}
	if _, err := newNetwork(top, noLog()); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "no address left") {
		t.Error(err)
	}
}

func TestTheLabKnowsNodesVirtualAddressesAndTimeServersByName(t *testing.T) {
	names := namesOf(twoNetworks(), netip.MustParseAddr("10.77.1.1"))
	for name, want := range map[string]string{
		"a.example.internal": "10.77.1.11", "c.example.internal": "10.77.8.13", "database.example.internal": "10.77.1.10",
		"db.example.internal": "10.77.1.10", "db.example.org": "10.77.1.10", "time.example.org": "10.77.1.1",
	} {
		if got := names[name]; len(got) != 1 || got[0].String() != want {
			t.Errorf("%s: %v, want %s", name, got, want)
		}
	}
}

func noLog() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

// clusterFiles makes a directory with empty images and seeds.
func clusterFiles(t *testing.T, top *topology.Topology) ClusterConfig {
	t.Helper()
	cfg := ClusterConfig{Topology: top, Images: t.TempDir(), Seeds: t.TempDir(), Dir: t.TempDir(), Log: noLog()}
	for _, n := range top.Nodes {
		if err := os.WriteFile(Seed(cfg.Seeds, n.Name), make([]byte, 40<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := runImg(t.Context(), "create", "-q", "-f", "qcow2", Image(cfg.Images, n.Role), "1M"); err != nil {
			t.Fatal(err)
		}
	}
	return cfg
}

func TestWhatAClusterLacksIsNamedWithTheCommandThatMakesIt(t *testing.T) {
	cfg := clusterFiles(t, twoNetworks())
	if err := os.Remove(Seed(cfg.Seeds, "c")); err != nil {
		t.Fatal(err)
	}
	if _, err := NewCluster(t.Context(), cfg); fault.Of(err) != fault.Missing || !strings.Contains(err.Error(), "node c") || !strings.Contains(fault.Mend(err), "slipway seed") {
		t.Errorf("%v; mend: %s", err, fault.Mend(err))
	}
	if err := os.Remove(Image(cfg.Images, "balancer")); err != nil {
		t.Fatal(err)
	}
	if _, err := NewCluster(t.Context(), cfg); fault.Of(err) != fault.Missing || fault.Mend(err) != "run: slipway build balancer" {
		t.Errorf("%v; mend: %s", err, fault.Mend(err))
	}
}

// The disks are empty: the firmware finds nothing to boot, and the machines run.
func TestNodesArePoweredOnAndOff(t *testing.T) {
	t.Setenv(AccelEnv, "tcg")
	cfg := clusterFiles(t, twoNetworks())
	cfg.Adjust = func(_ topology.Node, vm *VM) { vm.Memory = 128 << 20 }
	c, err := NewCluster(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, n := range c.Nodes() {
		if n.On || !n.Since.IsZero() {
			t.Errorf("a new cluster is off: %+v", n)
		}
	}
	on := func(want ...string) {
		t.Helper()
		var got []string
		for _, n := range c.Nodes() {
			if n.On {
				got = append(got, n.Name)
			}
			if n.On != (n.PID != 0) || n.On && n.Since.IsZero() {
				t.Errorf("%+v", n)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("on: %v, want %v", got, want)
		}
	}
	changed := func(got []string, err error) func(...string) {
		return func(want ...string) {
			t.Helper()
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("changed %v, %v; want %v", got, err, want)
			}
		}
	}
	changed(c.Start(t.Context(), "b"))("b")
	changed(c.Start(t.Context()))("a", "c")
	on("a", "b", "c")
	if _, ok := c.network.sw.Stats()["a/1"]; !ok {
		t.Errorf("a's second card is not in the switch: %v", c.network.sw.Stats())
	}
	changed(c.Crash("b"))("b")
	changed(c.Crash("b"))()
	on("a", "c")

	// Its disk is removed, as slipway down --destroy does: it begins with a new one.
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "b")); err != nil {
		t.Fatal(err)
	}
	changed(c.Start(t.Context(), "b"))("b")

	// No guest answers, so that the limit ends all of them.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	stopped, forced, err := c.Shutdown(ctx)
	if want := []string{"a", "b", "c"}; err != nil || !slices.Equal(stopped, want) || !slices.Equal(forced, want) {
		t.Errorf("stopped %v, forced %v, %v", stopped, forced, err)
	}
	on()
	if _, err := c.Start(t.Context(), "a", "d"); fault.Of(err) != fault.Usage {
		t.Error(err)
	}
	on()
}

func TestABlockedNodeIsCutFromTheSwitchUnderItsName(t *testing.T) {
	top := twoNetworks()
	n, err := newNetwork(top, noLog())
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	heard := make(chan struct{}, 1)
	port := func(name string, receive func([]byte)) *ether.Port {
		p, err := n.sw.Join(name, ether.PortConfig{VLAN: n.vlans["lan"]}, receive)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a := port("a/0", func([]byte) {})
	port("b/0", func([]byte) { heard <- struct{}{} })
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}, make([]byte, 46)...)
	n.block("a", true)
	a.Send(frame)
	if cut := n.sw.Stats()["a/0"].Cut; cut != 1 {
		t.Errorf("%d frames were cut off", cut)
	}
	n.block("a", false)
	a.Send(frame)
	<-heard
}

func TestProgressNamesTheFirstThingThatIsAmiss(t *testing.T) {
	for want, r := range map[string]status.Report{
		"ready":                          {State: status.Ready},
		"converging: network":            {State: status.Converging, Steps: []status.Step{{Name: "hostname", State: status.Done}, {Name: "network", State: status.Running}}},
		"converging: peers: b is silent": {State: status.Converging, Steps: []status.Step{{Name: "network", State: status.Running}, {Name: "peers", State: status.Running, WaitingFor: "b is silent"}, {Name: "role", State: status.Running, WaitingFor: "x is starting"}}},
		"failed: disks: no room":         {State: status.Failed, Steps: []status.Step{{Name: "disks", State: status.Broken, Error: "no room"}}},
	} {
		if got := Progress(&r); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
