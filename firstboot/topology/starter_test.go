package topology

import (
	"fmt"
	"math/rand"
	"net/netip"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED ops@example.org"

// TestWhateverIsAskedForPassesTheCheck tries many answers: each gives a file without
// a mistake, or is refused as wrong usage.
func TestWhateverIsAskedForPassesTheCheck(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	pick := func(from ...string) string { return from[r.Intn(len(from))] }
	written := 0
	for range 1500 {
		s := Starter{
			File:      "cluster.yaml",
			Name:      pick("orders", "Orders", "true", "o: x\nname: y", "a-b", ""),
			Domain:    pick("", "example.internal", "example.internal", "bad domain"),
			Subnet:    netip.MustParsePrefix(pick("192.0.2.0/24", "192.0.2.0/24", "198.51.100.0/28", "203.0.113.64/26", "10.0.0.0/8", "192.0.2.4/30")),
			Databases: r.Intn(7), Balancers: r.Intn(4), NoVIP: r.Intn(4) == 0, RouterID: pick2(r, 51, 1, 255, 0),
			On:   plan.Holder(pick("", "", "balancers", "databases")),
			User: pick("ops", "ops", "root", "null"), Database: pick("", "app", "app", "postgres"),
		}
		if r.Intn(3) == 0 {
			s.Standby, s.StandbyDatabases = netip.MustParsePrefix(pick("203.0.113.0/25", "203.0.113.0/29", "203.0.113.0/30")), 1+r.Intn(4)
		}
		if r.Intn(2) == 0 {
			s.Keys = []string{testKey}
		}
		if r.Intn(2) == 0 {
			s.DNS, s.NTP = []netip.Addr{netip.MustParseAddr("192.0.2.1")}, []string{"time.example.internal"}
		}
		if r.Intn(3) == 0 {
			s.VIP = netip.MustParseAddr(pick("192.0.2.50", "198.51.100.3"))
		}
		text, err := s.Text()
		if err != nil {
			if fault.Of(err) != fault.Usage {
				t.Fatalf("%+v: class %v: %v", s, fault.Of(err), err)
			}
			continue
		}
		written++
		got, mistakes := Parse("cluster.yaml", text)
		if got == nil {
			t.Fatalf("%+v\n%s\n%v", s, text, mistakes)
		}
		p := got.Plan()
		site := p.Sites[0].Name
		if n, m := len(p.DatabaseNodes(site)), len(p.Balancers(site)); n != s.Databases || m != s.Balancers || len(p.VIPs) == 0 != s.NoVIP || got.Name != s.Name {
			t.Fatalf("%+v\n%s", s, text)
		}
	}
	if written < 200 {
		t.Errorf("only %d of the answers made a cluster", written)
	}
}

func pick2(r *rand.Rand, from ...int) int { return from[r.Intn(len(from))] }

func TestANewFileIsCommentedAndLaidOutByHabit(t *testing.T) {
	text, err := Starter{File: "cluster.yaml", Name: "orders", Domain: "example.internal", Subnet: netip.MustParsePrefix("192.0.2.0/24"), Databases: 3, Balancers: 2,
		RouterID: 51, User: "ops", Keys: []string{testKey}, NTP: []string{"192.0.2.1"}, Database: "app"}.Text()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name: orders\n", "subnet: 192.0.2.0/24, gateway: 192.0.2.1", "address: 192.0.2.10\n", "on: balancers\n", "ntp: [192.0.2.1]",
		"name: db1\n    role: db-master\n    nics: [{network: lan, address: 192.0.2.11}]", "name: db3", "name: lb2\n    role: balancer\n    nics: [{network: lan, address: 192.0.2.22}]",
		"slipway check cluster.yaml", "# roles:", "clients: [192.0.2.0/24]"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if got, mistakes := Parse("cluster.yaml", text); got == nil || len(mistakes) > 0 {
		t.Errorf("%v", mistakes)
	}
	if strings.Contains(string(text), " \n") || strings.Contains(string(text), "\n\n\n") {
		t.Errorf("blank space at the end of a line, or two empty lines:\n%s", text)
	}
}

func TestAnswersThatMakeNoClusterAreToldWithoutLines(t *testing.T) {
	lan := netip.MustParsePrefix("192.0.2.0/24")
	for want, s := range map[string]Starter{
		"third vote":            {Name: "orders", Subnet: lan, Databases: 2, RouterID: 51},
		"needs a subnet":        {Name: "orders", Databases: 3},
		"do not fit":            {Name: "orders", Subnet: lan, Databases: 300},
		"no balancer":           {Name: "orders", Subnet: lan, Databases: 3, On: plan.OnBalancers, RouterID: 51},
		"not between 1 and 255": {Name: "orders", Subnet: lan, Databases: 3, RouterID: 256},
		"no host name":          {Name: "my orders", Subnet: lan, Databases: 3, RouterID: 51},
		"no network for":        {Name: "orders", Subnet: netip.MustParsePrefix("2001:db8::/64"), Databases: 3, RouterID: 51},
		"outside the subnet":    {Name: "orders", Subnet: lan, Databases: 3, RouterID: 51, VIP: netip.MustParseAddr("198.51.100.1")},
	} {
		text, err := s.Text()
		if text != nil || fault.Of(err) != fault.Usage || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}
