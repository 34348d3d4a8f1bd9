package lab

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestNodesThatATopologyHasOrLacksSinceAreTakenOver(t *testing.T) {
	before, next := twoNetworks(), twoNetworks()
	next.Nodes = append(next.Nodes[:2], topology.Node{Name: "d", Role: "gateway", NICs: []topology.NIC{{Network: "lan", Address: netip.MustParseAddr("10.77.1.14")}}})
	both := twoNetworks()
	both.Nodes = append(both.Nodes, next.Nodes[2])
	cfg := clusterFiles(t, both)
	cfg.Topology = before
	c, err := NewCluster(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	kept, err := c.Node("b")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Adopt(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range c.Nodes() {
		names = append(names, n.Name)
	}
	if want := []string{"a", "b", "d"}; !slices.Equal(names, want) {
		t.Errorf("nodes %v, want %v", names, want)
	}
	if same, err := c.Node("b"); err != nil || same != kept {
		t.Errorf("b has another machine: %v", err)
	}
	if _, err := c.Node("c"); fault.Of(err) != fault.Usage {
		t.Errorf("c is still there: %v", err)
	}
	if c.Topology() != next {
		t.Error("the topology is the former one")
	}
}

func TestATopologyThatDiffersInMoreThanItsNodesIsNotTakenOver(t *testing.T) {
	cfg := clusterFiles(t, twoNetworks())
	c, err := NewCluster(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	added := func(address string) func(*topology.Topology) {
		return func(t *topology.Topology) {
			t.Nodes = append(t.Nodes, topology.Node{Name: "d", Role: "gateway", NICs: []topology.NIC{{Network: "storage", Address: netip.MustParseAddr(address)}}})
		}
	}
	for why, edit := range map[string]func(*topology.Topology){
		"the node b is another one":                                    func(t *topology.Topology) { t.Nodes[1].Size.Memory = 1 << 30 },
		"the network backup is another one":                            func(t *topology.Topology) { t.Networks[2].Gateway = netip.Addr{} },
		"not only its nodes are others":                                func(t *topology.Topology) { t.VIPs[0].Names = nil },
		"the lab's gateway would have other addresses in network stor": added("10.77.9.5"),
		"has no seed of the node d":                                    added("10.77.9.2"),
	} {
		next := twoNetworks()
		edit(next)
		if err := c.Adopt(t.Context(), next); err == nil || !strings.Contains(err.Error(), why) || fault.Mend(err) == "" {
			t.Errorf("%s: %v; mend: %s", why, err, fault.Mend(err))
		}
		if len(c.Nodes()) != 3 {
			t.Errorf("%s: nodes %v", why, c.Nodes())
		}
	}
}
