package vip

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/units"
	"github.com/slipwayhq/slipway/internal/fault"
)

func onDatabases(p *plan.Plan) { p.VIPs[0].On, p.VIPs[0].ReadOnly = plan.OnDatabases, 0 }

func TestKeepalivedAcceptsEveryConfiguration(t *testing.T) {
	variants := map[string]func(*plan.Plan){
		"balancers": nil,
		"databases": onDatabases,
		"alone":     func(p *plan.Plan) { p.Nodes = slices.Delete(p.Nodes, 1, 2); p.Nodes = p.Nodes[:2] },
		"two addresses": func(p *plan.Plan) {
			p.VIPs = append(p.VIPs, plan.VIP{Name: "more", Site: "a", Address: netip.MustParsePrefix("192.0.2.9/24"), On: plan.OnBalancers, RouterID: 52, ReadWrite: 5432})
		},
		"version 6": func(p *plan.Plan) {
			for i := range p.Nodes {
				p.Nodes[i].Addresses = append(p.Nodes[i].Addresses, netip.PrefixFrom(netip.MustParseAddr("2001:db8::"+string('1'+rune(i))), 64))
			}
			p.VIPs[0].Address = netip.MustParsePrefix("2001:db8::10/64")
		},
	}
	for name, change := range variants {
		t.Run(name, func(t *testing.T) {
			p, authority := cluster(t, change)
			self := map[bool]string{true: "a-db1", false: "a-lb1"}[p.VIPs[0].On == plan.OnDatabases]
			m := boot(t, p, authority, self)
			join(t, m)
			m.configure()
			if out := m.Output(t, "sh", "-c", "keepalived --vrrp --config-test 2>&1"); out != "" {
				t.Errorf("keepalived: %s", out)
			}
		})
	}
}

func TestSlowNodesCheckLessOften(t *testing.T) {
	for loopWait, want := range map[int]string{5: "\tinterval 2\n", 10: "\tinterval 6\n"} {
		t.Run(want, func(t *testing.T) {
			p, authority := cluster(t, func(p *plan.Plan) { p.Sites[0].Patroni.LoopWait = loopWait })
			m := boot(t, p, authority, "a-lb1")
			join(t, m)
			m.configure()
			if config := m.File(t, "/etc/keepalived/keepalived.conf"); !strings.Contains(config, want) {
				t.Errorf("with a loop_wait of %d:\n%s", loopWait, config)
			}
		})
	}
}

func TestNoTwoHoldersShareAPriorityAndNoneIsTheOwner(t *testing.T) {
	for holders := 1; holders <= 100; holders++ {
		before := 255
		for rank := range holders {
			now := priority(rank, holders)
			if now < 1 || now >= before {
				t.Fatalf("%d of %d has priority %d after %d", rank, holders, now, before)
			}
			before = now
		}
	}
}

func TestTheNewerPromotionHasTheHigherPriorityWhoeverHolds(t *testing.T) {
	for apart := range 10 {
		for _, old := range []int{0, 14} {
			if newer, older := priorityApart(14, apart+1), priorityApart(old, apart); newer <= older || newer > 254 {
				t.Errorf("after %d promotions in a row: %d against %d", apart+1, newer, older)
			}
		}
	}
	if last := priorityApart(0, 1000); last > 254 {
		t.Errorf("%d is the owner's", last)
	}
}

func TestTheTopologysPriorityComesFirst(t *testing.T) {
	p, authority := cluster(t, func(p *plan.Plan) {
		for i := range p.Nodes {
			if p.Nodes[i].Name == "a-lb1" {
				p.Nodes[i].VRRPPriority = 7
			}
		}
	})
	s, err := render(belong(t, p, authority, "a-lb1"), func(netip.Addr) (string, error) { return "eth0", nil })
	if err != nil || !strings.Contains(s, "priority 7\n") {
		t.Errorf("%s, %v", s, err)
	}
}

func TestPlansThatCannotBeAreRefused(t *testing.T) {
	for name, change := range map[string]func(*plan.Plan){
		"an address outside its nodes' networks": func(p *plan.Plan) { p.VIPs[0].Address = netip.MustParsePrefix("198.51.100.10/24") },
		"a peer outside its network": func(p *plan.Plan) {
			p.Nodes[3].Addresses = []netip.Prefix{netip.MustParsePrefix("198.51.100.14/24")}
		},
		"router identifier 0":   func(p *plan.Plan) { p.VIPs[0].RouterID = 0 },
		"router identifier 256": func(p *plan.Plan) { p.VIPs[0].RouterID = 256 },
		"priority 255": func(p *plan.Plan) {
			for i := range p.Nodes {
				p.Nodes[i].VRRPPriority = 255
			}
		},
		"a line in a name": func(p *plan.Plan) { p.VIPs[0].Name = "db {\n" },
	} {
		p, authority := cluster(t, change)
		if _, err := render(belong(t, p, authority, "a-lb1"), func(netip.Addr) (string, error) { return "eth0", nil }); fault.Of(err) != fault.Input {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestANodeThatMayHoldNoAddressHasNothingToDo(t *testing.T) {
	n := nodetest.Start(t)
	p, authority := cluster(t, nil)
	for _, m := range []*member.Member{nil, belong(t, p, authority, "a-db1")} {
		n.Member = m
		for _, step := range []interface {
			Apply(context.Context, *node.Node) error
		}{Configure{}, Start{}} {
			if err := step.Apply(t.Context(), n.Node); err != nil || len(n.Said.Changes) > 0 {
				t.Errorf("%T: %v, %v", step, n.Said.Changes, err)
			}
		}
	}
	n.Put(t, configPath, "from a plan of old\n")
	if err := (Configure{}).Apply(t.Context(), n.Node); err != nil || n.Exists(configPath) {
		t.Errorf("the configuration of a former plan stays: %v", err)
	}
}

// patroni answers with a status under a node's certificate.
func patroni(t *testing.T, authority *pki.Authority, address string, answer *int) string {
	t.Helper()
	pair, err := authority.Issue(pki.Request{Purpose: member.ServiceCert, Node: "a-db1", Names: []string{"a-db1"}, Addresses: []netip.Addr{netip.MustParseAddrPort(address).Addr()}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := pair.TLS("a-db1")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/primary" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		w.WriteHeader(*answer)
	}))
	s.Listener.Close()
	if s.Listener, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	s.Config.ErrorLog = quiet
	s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL + "/primary"
}

func loopback(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestTheCheckSaysYesOnlyToThePrimaryOfThisCluster(t *testing.T) {
	loopback(t)
	n := nodetest.Start(t)
	script, err := os.ReadFile(overlay + "/usr/lib/slipway/vip-check")
	if err != nil {
		t.Fatal(err)
	}
	n.Put(t, "/usr/lib/slipway/vip-check", string(script))
	n.Output(t, "chmod", "755", "/usr/lib/slipway/vip-check")
	p, authority := cluster(t, onDatabases)
	n.Member = belong(t, p, authority, "a-db1")
	if err := (Configure{}).Apply(t.Context(), n.Node); err != nil {
		t.Fatal(err)
	}
	yes := func(url string) bool {
		// As keepalived_script: an ordinary user.
		_, err := n.Command(t.Context(), "setpriv", "--reuid=850", "--regid=850", "--clear-groups", "/usr/lib/slipway/vip-check", url, authorityPath)
		return err == nil
	}
	answer := http.StatusOK
	url := patroni(t, authority, "127.0.0.1:0", &answer)
	if !yes(url) {
		t.Error("no to the primary")
	}
	answer = http.StatusServiceUnavailable
	if yes(url) {
		t.Error("yes to a replica")
	}
	answer = http.StatusOK
	_, other := cluster(t, nil)
	if yes(patroni(t, other, "127.0.0.1:0", &answer)) {
		t.Error("yes to another cluster's primary")
	}
	if yes(strings.Replace(url, "127.0.0.1", "localhost", 1)) {
		t.Error("yes to a certificate for another name")
	}
	if yes("https://127.0.0.1:1/primary") {
		t.Error("yes without an answer")
	}
}

// manager says of keepalived what it is told to.
type manager struct{ active string }

func (m *manager) Units(_ context.Context, names []string) ([]units.Unit, error) {
	return []units.Unit{{Name: names[0], Load: "loaded", Active: m.active}}, nil
}

func (m *manager) Starting(context.Context) bool { return false }

// played answers for systemctl and leaves the rest to the node.
type played struct {
	node.Runner
	keepalived *manager
}

func (p played) Run(ctx context.Context, c node.Command) (string, error) {
	if c.Argv[0] != "systemctl" {
		return p.Runner.Run(ctx, c)
	}
	if slices.Contains(c.Argv, "start") {
		p.keepalived.active = "active"
	}
	return "", nil
}

func TestADatabaseNodeReportsWhyTheAddressIsNotHere(t *testing.T) {
	loopback(t)
	n := nodetest.Start(t)
	p, authority := cluster(t, onDatabases)
	n.Output(t, "useradd", "--system", "--uid", "850", "--user-group", "keepalived_script")
	n.Output(t, "install", "-D", "-m", "755", "/bin/true", "/usr/lib/slipway/vip-check")
	n.Member = belong(t, p, authority, "a-db1")
	keepalived := &manager{active: "inactive"}
	n.Units, n.Run = keepalived, played{n.Run, keepalived}
	observe := func() (status.VIP, error) {
		c := &status.Cluster{}
		err := Start{}.Observe(t.Context(), n.Node, c)
		if len(c.VIPs) != 1 {
			t.Fatalf("%+v, %v", c.VIPs, err)
		}
		return c.VIPs[0], err
	}
	if v, err := observe(); err == nil || v.Held || v.Problem != "keepalived.service does not run" {
		t.Errorf("before the start: %+v, %v", v, err)
	}
	if _, err := findCard(n.Member.Self.Address); !errors.Is(err, errNoCard) {
		t.Errorf("an address that is not there is on a card: %v", err)
	}
	n.Output(t, "ip", "link", "add", "card", "type", "veth", "peer", "name", "far")
	t.Cleanup(func() { exec.Command("ip", "link", "delete", "card").Run() })
	n.Output(t, "ip", "address", "add", n.Member.Self.Addresses[0].String(), "dev", "card")
	n.Output(t, "ip", "link", "set", "card", "up")
	answer := http.StatusServiceUnavailable
	patroni(t, authority, "192.0.2.11:8008", &answer)
	if err := (Start{}).Apply(t.Context(), n.Node); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(n.File(t, configPath), "interface card\n") {
		t.Error("the card with the node's address is not the one in the configuration")
	}
	if v, err := observe(); err != nil || v.Held || v.Problem != "this node is not the primary (Patroni answers HTTP 503)" {
		t.Errorf("on a replica: %+v, %v", v, err)
	}
	answer = http.StatusOK
	n.Output(t, "ip", "address", "add", "192.0.2.10/32", "dev", "card")
	if v, err := observe(); err != nil || !v.Held || v.Problem != "" {
		t.Errorf("on the primary: %+v, %v", v, err)
	}
}
