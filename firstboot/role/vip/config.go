package vip

import (
	_ "embed"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

//go:embed keepalived.conf.tmpl
var configTemplate string

// settings are what differs from node to node.
type settings struct {
	Cluster, Node string
	Checks        []check
	Instances     []instance
}

// check is a question whose answer decides whether the node may hold an address.
type check struct {
	Name string
	URL  string
	CA   string // file; empty where the question stays on the node
	Rise int
	// Interval is the seconds between two questions. Each starts a shell and curl.
	Interval int
}

// often is how often a check is made at most, in seconds.
const often = 2

// instance is a virtual address.
type instance struct {
	Name      string
	Interface string
	RouterID  int
	Priority  int
	Advert    string // seconds
	Check     string
	Source    netip.Addr
	Peers     []netip.Addr
	Address   netip.Prefix
}

// healthURL and writesURL are HAProxy's, see package balancer. The second says yes
// only at the site that takes the writes by the plan.
const (
	healthURL = "http://127.0.0.1:8404/healthz"
	writesURL = "http://127.0.0.1:8404/writes"
)

// word is what may stand as a name in the configuration.
var word = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62})$`)

// card finds the network card that has an address.
type card func(netip.Addr) (string, error)

// render is keepalived's configuration for a node.
func render(m *member.Member, find card) (string, error) {
	s, err := settle(m, find)
	if err != nil {
		return "", err
	}
	t, err := template.New("keepalived.conf").Parse(configTemplate)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = t.Execute(&b, s)
	return b.String(), err
}

// settle reads the settings out of the plan.
func settle(m *member.Member, find card) (*settings, error) {
	s := &settings{Cluster: m.Plan.Cluster, Node: m.Self.Name}
	for _, v := range m.Plan.HeldBy(m.Self.Name) {
		i, err := one(m, v, find)
		if err != nil {
			return nil, fmt.Errorf("virtual address %s: %w", v.Name, err)
		}
		s.Instances = append(s.Instances, i)
		c := question(m, v)
		c.Interval = max(often, m.Site.Patroni.Interval())
		if !slices.Contains(s.Checks, c) {
			s.Checks = append(s.Checks, c)
		}
	}
	for _, name := range []string{s.Cluster, s.Node} {
		if !word.MatchString(name) {
			return nil, fault.New(fault.Input, "the plan has %q for a name", name)
		}
	}
	return s, nil
}

// question is the check of a virtual address.
func question(m *member.Member, v plan.VIP) check {
	if v.On == plan.OnDatabases {
		url := fmt.Sprintf("https://%s/primary", netip.AddrPortFrom(m.Self.Address, plan.PatroniPort))
		// The first word of a new primary counts: nobody else can hold the address.
		return check{Name: "primary", URL: url, CA: authorityPath, Rise: 1}
	}
	if v.Moves() {
		return check{Name: "writes", URL: writesURL, Rise: 2}
	}
	return check{Name: "balancer", URL: healthURL, Rise: 2}
}

func one(m *member.Member, v plan.VIP, find card) (instance, error) {
	holders := m.Plan.Holders(v)
	rank := slices.IndexFunc(holders, func(n plan.Node) bool { return n.Name == m.Self.Name })
	i := instance{
		Name: v.Name, RouterID: v.RouterID, Priority: priority(rank, len(holders)),
		Advert: "1", Check: question(m, v).Name, Address: alone(v),
	}
	if v.Moves() {
		i.Priority = priorityApart(rank, m.Plan.Apart)
	}
	if v.On == plan.OnDatabases {
		// The others are no primary and cannot take the address however late an
		// advertisement comes, so it may be missed soon.
		i.Advert = "0.5"
	}
	if !word.MatchString(v.Name) {
		return i, fault.New(fault.Input, "the plan has %q for a name", v.Name)
	}
	if v.RouterID < 1 || v.RouterID > 255 {
		return i, fault.New(fault.Input, "%d is no virtual router identifier: these are 1 to 255 (RFC 9568, section 5.2.3)", v.RouterID)
	}
	if wish := m.Self.VRRPPriority; wish != 0 && !v.Moves() {
		if wish < 1 || wish > 254 {
			return i, fault.New(fault.Input, "%d is no VRRP priority that heeds its checks: these are 1 to 254 (RFC 9568, section 5.2.4)", wish)
		}
		i.Priority = wish
	}
	var err error
	if i.Source, err = inNetwork(m.Self, v); err != nil {
		return i, err
	}
	for _, h := range holders {
		if h.Name == m.Self.Name {
			continue
		}
		peer, err := inNetwork(h, v)
		if err != nil {
			return i, err
		}
		i.Peers = append(i.Peers, peer)
	}
	i.Interface, err = find(i.Source)
	return i, err
}

// priority is 150 for the first of an address's holders and less for each that
// follows. 255 is never among them: it means the owner of the address, who
// takes it whatever its checks say (RFC 9568, section 5.2.4).
func priority(rank, holders int) int {
	return 150 - rank*max(1, min(10, 140/max(1, holders)))
}

// priorityApart is the priority on an address that moves between sites. Where a site
// was promoted that the other one did not see, both hold the address until they see
// each other. Then the higher priority keeps it, and that shall be the site that was
// promoted: it has the newer plan, with one promotion more.
func priorityApart(rank, apart int) int {
	const band, bands = 15, 10
	return 100 + band*min(apart, bands) - min(rank, band-1)
}

// inNetwork is a node's address in the network of a virtual address: from there
// and to there go the advertisements, and on that card the address sits.
func inNetwork(n plan.Node, v plan.VIP) (netip.Addr, error) {
	for _, a := range n.Addresses {
		if a.Contains(v.Address.Addr()) {
			return a.Addr(), nil
		}
	}
	return netip.Addr{}, fault.New(fault.Input, "node %s has no address in the network of %s", n.Name, v.Address).
		WithMend("give the node a network card there, or the virtual address another network")
}

// alone is a virtual address as it sits on the card: without its network. The
// node's own address has the route to the network already, and an address with
// a prefix of its own is never chosen as the source of a connection, nor
// promoted when the node's own address is set anew.
func alone(v plan.VIP) netip.Prefix {
	return netip.PrefixFrom(v.Address.Addr(), v.Address.Addr().BitLen())
}
