package topology

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"text/template"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Starter is what a new cluster.yaml is written from. Of the addresses, only the
// subnet must be given.
type Starter struct {
	File      string // its name, for the comments in it
	Name      string
	Domain    string
	Subnet    netip.Prefix
	Gateway   netip.Addr // default: the first address
	Databases int
	Balancers int
	VIP       netip.Addr // default: the tenth address, or another that is free
	NoVIP     bool
	On        plan.Holder // default: balancers where there are any
	RouterID  int
	// Standby is the subnet of a second site, or the zero value without one.
	Standby          netip.Prefix
	StandbyDatabases int
	User             string
	Keys             []string
	DNS              []netip.Addr
	NTP              []string
	Clients          []netip.Prefix // default: the networks
	Database         string
}

//go:embed starter.yaml.tmpl
var starterText string

// Text is a commented cluster.yaml without a mistake, though perhaps with warnings.
// Its error is of class Usage and lists what the answers lack.
func (s Starter) Text() ([]byte, error) {
	s.File = short(s.File)
	if err := s.fits(); err != nil {
		return nil, err
	}
	networks, nodes := s.layout()
	s.Gateway = networks[0].Gateway
	if len(s.Clients) == 0 {
		for _, n := range networks {
			s.Clients = append(s.Clients, n.Subnet)
		}
	}
	data := struct {
		Starter
		Networks []Network
		Nodes    []Node
		Standby  bool
		VIP      string
		Clients  string
		DNS      string
		NTP      string
	}{Starter: s, Networks: networks, Nodes: nodes, Standby: s.Standby.IsValid(),
		Clients: joined(s.Clients), DNS: joined(s.DNS), NTP: joined(s.NTP)}
	if !s.NoVIP {
		data.VIP = s.VIP.String()
	}
	parsed, err := template.New("cluster.yaml").Funcs(template.FuncMap{"word": word, "quote": quote}).Parse(starterText)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := parsed.Execute(&b, data); err != nil {
		return nil, err
	}
	if _, mistakes := Parse(s.File, b.Bytes()); mistakes.Err() != nil {
		// The lines are of a file that nobody has seen.
		var lines []string
		for _, m := range mistakes.Errors() {
			lines = append(lines, fmt.Sprintf("%s: %s; %s", m.Field, m.Text, m.Mend))
		}
		return nil, fault.New(fault.Usage, "this makes no cluster:\n%s", strings.Join(lines, "\n"))
	}
	return b.Bytes(), nil
}

// fits refuses what could not even be written, and fills in defaults.
func (s *Starter) fits() error {
	for _, p := range []netip.Prefix{s.Subnet, s.Standby} {
		if p.IsValid() && (!p.Addr().Is4() || p != p.Masked() || p.Bits() < 8 || p.Bits() > 30) {
			return fault.New(fault.Usage, "%s is no network for a cluster", p).WithMend("give an IPv4 network such as 192.0.2.0/24")
		}
	}
	if !s.Subnet.IsValid() {
		return fault.New(fault.Usage, "the cluster needs a subnet").WithMend("give the network that the nodes are on, such as 192.0.2.0/24")
	}
	room := 1<<(32-s.Subnet.Bits()) - 4 // the network, broadcast, the gateway, the virtual address
	if s.Databases < 1 || s.Balancers < 0 || s.Databases+s.Balancers > min(room, maxItems) {
		return fault.New(fault.Usage, "%d databases and %d balancers do not fit into %s", s.Databases, s.Balancers, s.Subnet).
			WithMend("have one database or more, and a subnet with room for all nodes")
	}
	if s.Standby.IsValid() && (s.StandbyDatabases < 1 || s.StandbyDatabases > min(1<<(32-s.Standby.Bits())-3, maxItems)) {
		return fault.New(fault.Usage, "%d databases do not fit into %s", s.StandbyDatabases, s.Standby).
			WithMend("have one database or more, and a subnet with room for all nodes")
	}
	if s.On == "" {
		if s.On = plan.OnBalancers; s.Balancers == 0 {
			s.On = plan.OnDatabases
		}
	}
	return nil
}

// layout gives every node an address: the virtual address has the tenth of its
// network, databases those from the eleventh, balancers from the twenty-first;
// in a small network, whatever is free.
func (s *Starter) layout() ([]Network, []Node) {
	main := newPool(s.Subnet)
	if !s.Gateway.IsValid() {
		s.Gateway = main.take(1)
	}
	main.used[s.Gateway] = true
	if !s.NoVIP {
		if !s.VIP.IsValid() {
			s.VIP = main.take(10)
		}
		main.used[s.VIP] = true
	}
	networks := []Network{{Name: "lan", Subnet: s.Subnet, Gateway: s.Gateway}}
	site, prefix := "", ""
	if s.Standby.IsValid() {
		networks[0].Name, site, prefix = "site-a", "a", "a-"
	}
	nodes := main.databases(networks[0].Name, site, prefix, s.Databases)
	for i := range s.Balancers {
		nodes = append(nodes, main.node(prefix+"lb"+strconv.Itoa(i+1), balancer, site, networks[0].Name, 21+i))
	}
	if s.Standby.IsValid() {
		far := newPool(s.Standby)
		networks = append(networks, Network{Name: "site-b", Subnet: s.Standby, Gateway: far.take(1)})
		nodes = append(nodes, far.databases("site-b", "b", "b-", s.StandbyDatabases)...)
		// Beside two databases the standby needs a third vote of its own.
		if s.StandbyDatabases == 2 && 1<<(32-s.Standby.Bits())-3 > 2 {
			nodes = append(nodes, far.node("b-lb1", balancer, "b", "site-b", 21))
		}
	}
	return networks, nodes
}

// pool hands out the addresses of a network.
type pool struct {
	subnet netip.Prefix
	used   map[netip.Addr]bool
}

func newPool(subnet netip.Prefix) pool {
	first, last := edges(subnet)
	return pool{subnet: subnet, used: map[netip.Addr]bool{first: true, last: true}}
}

// take returns the address at an offset, or the next that is free.
func (p pool) take(offset int) netip.Addr {
	size := 1 << (32 - p.subnet.Bits())
	base := p.subnet.Addr().As4()
	start := int(base[0])<<24 | int(base[1])<<16 | int(base[2])<<8 | int(base[3])
	for i := range size {
		n := start + (offset+i)%size
		a := netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		if !p.used[a] {
			p.used[a] = true
			return a
		}
	}
	return netip.Addr{}
}

func (p pool) databases(network, site, prefix string, count int) []Node {
	var nodes []Node
	for i := range count {
		role := dbReplica
		if i == 0 {
			role = dbMaster
		}
		nodes = append(nodes, p.node(prefix+"db"+strconv.Itoa(i+1), role, site, network, 11+i))
	}
	return nodes
}

func (p pool) node(name, role, site, network string, offset int) Node {
	return Node{Name: name, Role: role, Site: site, NICs: []NIC{{Network: network, Address: p.take(offset)}}}
}

// joined writes the items of a YAML list.
func joined[T any](items []T) string {
	quoted := make([]string, len(items))
	for i, item := range items {
		quoted[i] = word(fmt.Sprint(item))
	}
	return strings.Join(quoted, ", ")
}

// quote writes a text as JSON does, which is YAML too.
func quote(text string) string {
	data, _ := json.Marshal(text)
	return string(data)
}

// plain are texts that need no quotes in YAML, unless they read as something else.
var plain = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_./:-]*[A-Za-z0-9_]$`)

// word writes a text without quotes where that is the same.
func word(text string) string {
	var n yaml.Node
	if plain.MatchString(text) && yaml.Unmarshal([]byte(text), &n) == nil && len(n.Content) == 1 && n.Content[0].ShortTag() == "!!str" {
		return text
	}
	return quote(text)
}
