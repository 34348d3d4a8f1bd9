package steps

import (
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/netconf"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
)

// neighbour joins the card "lan" to one of another machine, a network namespace
// in which run runs programs.
func neighbour(t *testing.T, n *nodetest.Node) (run func(argv ...string) string) {
	t.Helper()
	other := exec.Command("sleep", "600")
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(other.Process.Pid)
	t.Cleanup(func() {
		other.Process.Kill()
		other.Wait()
		exec.Command("ip", "link", "delete", "lan").Run()
	})
	run = func(argv ...string) string {
		t.Helper()
		out, err := exec.Command("nsenter", append([]string{"--target", pid, "--net"}, argv...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", argv, err, out)
		}
		return string(out)
	}
	n.Output(t, "ip", "link", "add", "lan", "type", "veth", "peer", "name", "there")
	if out, err := exec.Command("ip", "link", "set", "there", "netns", pid).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run("ip", "link", "set", "dev", "there", "address", "52:54:00:00:00:99", "up")
	return run
}

func TestAnAddressThatAnotherMachineHasIsLeftAloneUntilItIsFree(t *testing.T) {
	n := nodetest.Start(t)
	there := neighbour(t, n)
	n.Member = membertest.New(t).Member(t, "a-db1")
	n.Seed = &node.Seed{Network: &netconf.Config{Source: "test", Links: []netconf.Link{{ID: "lan", Kind: netconf.Ethernet, Addresses: []netconf.Address{
		{Prefix: netip.MustParsePrefix("192.0.2.10/24")}, {Prefix: netip.MustParsePrefix("192.0.2.11/24")},
	}}}}}
	there("ip", "address", "add", "192.0.2.10/24", "dev", "there")
	began := time.Now()
	apply(t, n, Probe{})
	t.Logf("the probe took %s", time.Since(began))
	apply(t, n, Network{})
	if file := n.File(t, "/etc/systemd/network/10-slipway-lan.network"); strings.Contains(file, "192.0.2.10") || !strings.Contains(file, "192.0.2.11") {
		t.Errorf("taken %v, and the network is\n%s", n.Taken, file)
	}
	err := Addresses{Again: func(string) { t.Error("begins anew while the address is taken") }}.Apply(t.Context(), n.Node)
	if err == nil || !strings.Contains(err.Error(), "192.0.2.10 is also used by 52:54:00:00:00:99 on lan") {
		t.Errorf("addresses: %v", err)
	}
	// The other one's neighbours have not heard of this machine by that address.
	if table := there("ip", "neighbour", "show", "192.0.2.10"); table != "" {
		t.Errorf("the other machine knows: %s", table)
	}
	there("ip", "address", "delete", "192.0.2.10/24", "dev", "there")
	again := make(chan string, 1)
	go Addresses{Again: func(why string) { again <- why }}.Apply(t.Context(), n.Node)
	if why := <-again; !strings.Contains(why, "free") {
		t.Errorf("begins anew: %s", why)
	}
	apply(t, n, Probe{})
	apply(t, n, Network{})
	if file := n.File(t, "/etc/systemd/network/10-slipway-lan.network"); !strings.Contains(file, "192.0.2.10") {
		t.Errorf("taken %v, and the network is\n%s", n.Taken, file)
	}
}

func TestANodeThatStandsAloneAsksNobodyForItsAddresses(t *testing.T) {
	n := nodetest.Start(t)
	there := neighbour(t, n)
	there("ip", "address", "add", "192.0.2.10/24", "dev", "there")
	n.Seed = &node.Seed{Network: &netconf.Config{Links: []netconf.Link{{ID: "lan", Kind: netconf.Ethernet, Addresses: []netconf.Address{{Prefix: netip.MustParsePrefix("192.0.2.10/24")}}}}}}
	apply(t, n, Probe{})
	if len(n.Taken) > 0 {
		t.Errorf("taken: %v", n.Taken)
	}
}
