package balancer

import (
	_ "embed"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

//go:embed haproxy.cfg.tmpl
var configTemplate string

// settings are what differs from balancer to balancer.
type settings struct {
	Cluster, Site string
	// ReadWrite and ReadOnly are the addresses that HAProxy listens on.
	ReadWrite, ReadOnly []netip.AddrPort
	Servers             []server
	PatroniPort         int // where their health is asked for
	Quick               int // interval of the checks of the primary, milliseconds
	Found               int // and of those that find the next one
	Calm                int // of all other checks, seconds
	// Standby is a site whose leader is no primary before it is promoted; StandbyOf
	// names the site that has the primary.
	Standby   bool
	StandbyOf string
	Lag       int64 // bytes that a replica may lack and still be read from; 0: any
	// Sessions that each of the two ports takes, and all together.
	WriteSessions, ReadSessions, Sessions int
	// Front is what stands before brokers and gateways; nil where there are none.
	Front *front
}

// server is a database node.
type server struct {
	Name    string
	Address netip.AddrPort
}

const (
	defaultPort        = 5432 // PostgreSQL's
	defaultConnections = 100  // PostgreSQL's
	otherSessions      = 100  // health checks by keepalived and people
)

// word is what may stand as a name in the configuration.
var word = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62})$`)

// render is HAProxy's configuration for a balancer.
func render(m *member.Member) (string, error) {
	s, err := settle(m)
	if err != nil {
		return "", err
	}
	t, err := template.New("haproxy.cfg").Funcs(template.FuncMap{
		"tunnel": func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), tunnelPort) },
	}).Parse(configTemplate)
	if err == nil {
		_, err = t.Parse(frontTemplate)
	}
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = t.Execute(&b, s)
	return b.String(), err
}

// settle reads the settings out of the plan.
func settle(m *member.Member) (*settings, error) {
	interval := m.Site.Patroni.Interval()
	s := &settings{
		Cluster: m.Plan.Cluster, Site: m.Site.Name, PatroniPort: plan.PatroniPort,
		Quick: max(quick, 1000*interval), Found: 1000 * interval, Calm: max(calm, interval),
		Standby: m.Site.StandbyOf != "", StandbyOf: m.Site.StandbyOf, Lag: m.Site.Patroni.MaximumLag, Front: settleFront(m),
	}
	port, connections := m.Site.Postgres.Port, m.Site.Postgres.MaxConnections
	if port == 0 {
		port = defaultPort
	}
	if connections == 0 {
		connections = defaultConnections
	}
	for _, d := range m.Plan.DatabaseNodes(m.Site.Name) {
		s.Servers = append(s.Servers, server{d.Name, netip.AddrPortFrom(d.Address, uint16(port))})
	}
	if len(s.Servers) > 0 {
		for _, v := range m.Plan.HeldBy(m.Self.Name) {
			s.ReadWrite = listen(s.ReadWrite, v.ReadWrite, v.Address.Addr(), m.Self.Address)
			s.ReadOnly = listen(s.ReadOnly, v.ReadOnly, v.Address.Addr(), m.Self.Address)
		}
	}
	for _, a := range s.ReadWrite {
		if slices.Contains(s.ReadOnly, a) {
			return nil, fault.New(fault.Input, "%s is to be the port for writing and the one for reading at the same time", a).
				WithMend("give the virtual addresses of site %s ports that differ", m.Site.Name)
		}
	}
	// Twice as many as PostgreSQL takes: what is too much then hears so from
	// PostgreSQL, in words, and does not hang in a queue here.
	s.WriteSessions = 2 * connections
	s.ReadSessions = 2 * connections * max(1, len(s.Servers))
	s.Sessions = s.WriteSessions + s.ReadSessions + otherSessions
	names := []string{s.Cluster, s.Site}
	if s.Standby {
		names = append(names, s.StandbyOf)
	}
	servers := s.Servers
	if s.Front != nil {
		s.Sessions += s.Front.Sessions
		servers = slices.Concat(servers, s.Front.Brokers, s.Front.Gateways, s.Front.Others)
		for _, v := range m.Plan.HeldBy(m.Self.Name) {
			names = append(names, v.Name)
		}
	}
	for _, server := range servers {
		names = append(names, server.Name)
	}
	for _, name := range names {
		if !word.MatchString(name) {
			return nil, fault.New(fault.Input, "the plan has %q for a name", name)
		}
	}
	return s, nil
}

const (
	// calm is how often a node is asked that is not waited for, in seconds.
	calm = 3
	// quick is how often, in milliseconds, the primary is at most asked whether it is still.
	// A check of whatever node has this long to connect, TLS included: with one second, nodes
	// whose answers take 400 ms on the way would be down.
	quick = 1500
)

// listen adds a port on the virtual address, and on the node's own, to a list.
func listen(list []netip.AddrPort, port int, addresses ...netip.Addr) []netip.AddrPort {
	for _, a := range addresses {
		if to := netip.AddrPortFrom(a, uint16(port)); port != 0 && !slices.Contains(list, to) {
			list = append(list, to)
		}
	}
	return list
}
