package balancer

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// variants are plans that differ in what the balancer has to do.
var variants = map[string]func(*plan.Plan){
	"databases":    nil,
	"a standby":    func(p *plan.Plan) { p.Sites[0].StandbyOf = "b" },
	"desktops too": desktops,
	"brokers alone": func(p *plan.Plan) {
		desktops(p)
		p.Nodes = slices.DeleteFunc(p.Nodes, func(n plan.Node) bool { return n.Role == plan.GatewayRole })
		p.VIPs[0].Gateway, p.VIPs[0].Tunnel = 0, 0
	},
	"desktops behind one balancer": func(p *plan.Plan) {
		desktops(p)
		p.Nodes = slices.DeleteFunc(p.Nodes, func(n plan.Node) bool { return n.Name == "a-lb2" })
	},
	"desktops at other ports with a certificate": func(p *plan.Plan) {
		desktops(p)
		v := &p.VIPs[0]
		v.HTTP, v.HTTPS, v.Gateway, v.Tunnel, v.Certificate = 8080, 8443, 10444, 1444, true
	},
	"desktops behind two addresses": func(p *plan.Plan) {
		desktops(p)
		v := p.VIPs[0]
		v.Name, v.Address, v.Certificate = "more", netip.MustParsePrefix("127.77.1.9/24"), true
		p.VIPs = append(p.VIPs, v)
	},
	"no databases": func(p *plan.Plan) { p.Nodes = p.Nodes[3:] },
	"no address":   func(p *plan.Plan) { p.VIPs = nil },
	"no read-only": func(p *plan.Plan) { p.VIPs[0].ReadOnly = 0 },
	"two addresses": func(p *plan.Plan) {
		v := p.VIPs[0]
		v.Name, v.Address = "more", netip.MustParsePrefix("127.77.1.9/24")
		p.VIPs = append(p.VIPs, v)
	},
	"version 6": func(p *plan.Plan) {
		for i, a := range p.Nodes {
			bytes := netip.MustParseAddr("2001:db8::").As16()
			copy(bytes[12:], a.Address.AsSlice())
			p.Nodes[i].Address = netip.AddrFrom16(bytes)
		}
		p.VIPs[0].Address = netip.MustParsePrefix("2001:db8::10/64")
	},
}

func TestHAProxyAcceptsEveryConfiguration(t *testing.T) {
	for name, change := range variants {
		t.Run(name, func(t *testing.T) {
			n := nodetest.Start(t)
			n.Member, _ = site(t, change)
			if err := (Configure{}).Apply(t.Context(), n.Node); err != nil {
				t.Fatal(err)
			}
			if out := n.Output(t, "sh", "-c", "haproxy -c -f "+configPath+" 2>&1"); strings.Contains(out, "WARNING") {
				t.Error(out)
			}
			n.Said.Reset()
			if err := (Configure{}).Apply(t.Context(), n.Node); err != nil || len(n.Said.Changes) > 0 {
				t.Errorf("applied again: %v, %v", n.Said.Changes, err)
			}
		})
	}
}

func TestThePrimaryIsLookedForMoreOftenThanTheRest(t *testing.T) {
	for loopWait, want := range map[int][]string{5: {"inter 3s fastinter 500ms", "inter 1500ms downinter 1000ms"}, 10: {"inter 6s fastinter 500ms", "inter 6000ms downinter 6000ms"}} {
		m, _ := site(t, func(p *plan.Plan) { p.Sites[0].Patroni.LoopWait = loopWait })
		config, err := render(m)
		if err != nil {
			t.Fatal(err)
		}
		before, after, _ := strings.Cut(config, "backend read-write ")
		own, _, _ := strings.Cut(after, "\nbackend ")
		if !strings.Contains(before, want[0]) || !strings.Contains(own, "default-server "+want[1]+"\n") {
			t.Errorf("with a loop_wait of %d, want %q:\n%s", loopWait, want, config)
		}
	}
}

func TestANodeThatIsNoBalancerOfAClusterKeepsTheImagesConfiguration(t *testing.T) {
	n := nodetest.Start(t)
	before := n.File(t, configPath)
	m, _ := site(t, nil)
	database := *m
	database.Self = m.Plan.Nodes[0]
	n.Member = nil
	for range 2 {
		if err := (Configure{}).Apply(t.Context(), n.Node); err != nil {
			t.Error(err)
		}
		if err := (Start{}).Apply(t.Context(), n.Node); err != nil {
			t.Error(err)
		}
		if n.File(t, configPath) != before || len(n.Said.Changes) > 0 {
			t.Errorf("changed: %v", n.Said.Changes)
		}
		n.Member = &database
	}
}

func TestAConfigurationThatHAProxyRefusesLeavesTheOneInPlace(t *testing.T) {
	n := nodetest.Start(t)
	n.Member, _ = site(t, nil)
	if err := (Configure{}).Apply(t.Context(), n.Node); err != nil {
		t.Fatal(err)
	}
	before := n.File(t, configPath)
	n.Member.Authority = "no certificate\n"
	n.Member.Plan.VIPs[0].ReadWrite = 6432
	err := (Configure{}).Apply(t.Context(), n.Node)
	if fault.Of(err) != fault.Input || fault.Mend(err) == "" {
		t.Errorf("%v (%s)", err, fault.Of(err))
	}
	if n.File(t, configPath) != before {
		t.Error("the configuration was replaced")
	}
	n.Output(t, "haproxy", "-c", "-q", "-f", configPath) // with the authority that belongs to it
	if _, err := os.Stat(n.Path(candidatePath)); err == nil {
		t.Error("the refused configuration stays")
	}
	if err := (Start{}).Apply(t.Context(), n.Node); err == nil || !strings.Contains(err.Error(), "not what the plan asks for") {
		t.Errorf("started all the same: %v", err)
	}
}

func TestOnlyABalancerWithBrokersListensForTheWeb(t *testing.T) {
	for name, change := range variants {
		m, _ := site(t, change)
		config, err := render(m)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Contains(config, "frontend http "), strings.Contains(name, "desktops") || strings.Contains(name, "brokers"); got != want {
			t.Errorf("%s: listens for the web: %t", name, got)
		}
		if strings.Contains(config, "frontend tunnel ") != strings.Contains(name, "desktops") {
			t.Errorf("%s: listens for tunnels", name)
		}
		// WebSockets and tunnels may be silent for an hour.
		if strings.Count(config, "\ttimeout tunnel 1h\n") != strings.Count(config, "defaults front\n")+strings.Count(config, "defaults tunnels\n") {
			t.Errorf("%s: what is silent for less than an hour is cut off", name)
		}
	}
}

func TestABalancerWithoutTheCertificatesOfItsAddressesSaysSo(t *testing.T) {
	for want, spoil := range map[string]func(*member.Member){
		"lacks a certificate for that":                        func(m *member.Member) { m.Certificates = nil },
		"has a certificate of its own, and the seed of a-lb1": func(m *member.Member) { m.Secrets = nil },
	} {
		n := nodetest.Start(t)
		n.Member, _ = site(t, variants["desktops at other ports with a certificate"])
		spoil(n.Member)
		before := n.File(t, configPath)
		err := (Configure{}).Apply(t.Context(), n.Node)
		if fault.Of(err) != fault.Input || !strings.Contains(err.Error(), want) || n.File(t, configPath) != before {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

func TestAKeyThatNothingRefersToIsRemoved(t *testing.T) {
	n := nodetest.Start(t)
	n.Member, _ = site(t, variants["desktops at other ports with a certificate"])
	apply := func() {
		t.Helper()
		if err := (Configure{}).Apply(t.Context(), n.Node); err != nil {
			t.Fatal(err)
		}
	}
	apply()
	own := ownCertificate(n.Member.Plan.VIPs[0])
	for _, path := range []string{own, clusterCertificate} {
		if info, err := os.Stat(n.Path(path)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	n.Member.Plan.VIPs[0].Certificate = false
	apply()
	if n.Exists(own) || !n.Exists(clusterCertificate) {
		t.Error("the key of a certificate that is not used any more stays")
	}
}

func TestPlansThatCannotBeAreRefused(t *testing.T) {
	for name, change := range map[string]func(*plan.Plan){
		"one port for both": func(p *plan.Plan) { p.VIPs[0].ReadOnly = p.VIPs[0].ReadWrite },
		"a line in a name":  func(p *plan.Plan) { p.Nodes[0].Name = "x\n\tserver y 192.0.2.1" },
	} {
		m, _ := site(t, change)
		if _, err := render(m); fault.Of(err) != fault.Input {
			t.Errorf("%s: %v", name, err)
		}
	}
}
