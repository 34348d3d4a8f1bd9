// Package plan models what every node of a cluster knows of the whole: which
// nodes there are, who votes, who may start a database, which virtual addresses
// there are and where they sit, and the parameters of the roles.
//
// A plan is worked out from the topology, once, where the administrator sits
// (package topology), and signed with the key of the cluster's authority. A node
// gets it in its seed, and a newer one from any peer: nothing but the signature
// and the generation decides whether it counts. It holds no secret.
package plan

import (
	"net/netip"
	"slices"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Format is the version of a plan's layout.
const Format = 1

// Ports that nodes of a cluster reach each other on, each over TLS.
const (
	APIPort      = 7420 // agents
	PatroniPort  = 8008 // Patroni's REST API
	EtcdPort     = 2379 // etcd, for clients
	EtcdPeerPort = 2380 // etcd, for its other members
	FrontPort    = 8405 // balancers, for each other
	DesktopPort  = 5900 // desktops, for gateways
)

// HealthPort is where HAProxy says on a balancer's loopback whether it serves.
const HealthPort = 8404

// Plan is a cluster, worked out.
type Plan struct {
	Format     int        `json:"format"`
	Cluster    string     `json:"cluster"`          // name, for people
	ID         string     `json:"id"`               // SHA-256 of the authority's certificate (DER), hexadecimal
	Generation int64      `json:"generation"`       // grows with every change; the highest counts
	Domain     string     `json:"domain,omitempty"` // host names are NODE.DOMAIN
	Sites      []Site     `json:"sites"`            // sorted by name
	Nodes      []Node     `json:"nodes"`            // sorted by name
	VIPs       []VIP      `json:"vips"`             // sorted by name
	Databases  []Database `json:"databases"`        // sorted by name
	// Writable is the site whose database takes writes, once an administrator has
	// decided that against what the topology began with; else "". See Promote.
	Writable string `json:"writable,omitempty"`
	// Turn is the generation in which Writable came to be what it is.
	Turn int64 `json:"turn,omitempty"`
	// Apart counts the promotions of a site, in a row, of which the other one may not
	// have heard: 0 after one that both took part in.
	Apart int `json:"apart,omitempty"`
	// Clients are the networks whose computers may use the services on the VIPs.
	Clients []netip.Prefix `json:"clients"`
	// Backup is nil where no backups are made.
	Backup *Backup `json:"backup,omitempty"`
	// Mirror is nil where nodes install from nowhere.
	Mirror *Mirror `json:"mirror,omitempty"`
	// Revoked are the serial numbers, hexadecimal, of agents' certificates that count
	// no more: of machines that were replaced or taken out, as long as they are valid.
	Revoked []string `json:"revoked,omitempty"`
	// Swarm is nil where there are no dispatchers.
	Swarm *Swarm `json:"swarm,omitempty"`
}

// Site is a place with a database cluster of its own.
type Site struct {
	Name string `json:"name"`
	// Scope names the site's database cluster in etcd (Patroni's "scope").
	Scope string `json:"scope"`
	// Consensus are the names of the nodes that run an etcd member: an odd number.
	Consensus []string `json:"consensus"`
	// Formed says that these were seen to be a quorum once: a member without data joins
	// them, and never begins another etcd beside theirs.
	Formed bool `json:"formed,omitempty"`
	// Bootstrap is the node that makes the database, or clones the other site's.
	Bootstrap string `json:"bootstrap,omitempty"`
	// StandbyOf names the site whose database this one replicates, or is "".
	StandbyOf string   `json:"standby_of,omitempty"`
	Postgres  Postgres `json:"postgres"`
	Patroni   Patroni  `json:"patroni"`
}

// Postgres are the parameters of a site's databases.
type Postgres struct {
	Port           int `json:"port"` // of PostgreSQL on a database node, 5432
	MaxConnections int `json:"max_connections"`
	// MaxSlotWALKeep bounds what a replica that stays away may hold back, MiB
	// (max_slot_wal_keep_size).
	MaxSlotWALKeep int `json:"max_slot_wal_keep"`
	// Parameters are settings of postgresql.conf that the topology adds.
	Parameters map[string]string `json:"parameters,omitempty"`
}

// Patroni are the times of failover, in seconds (Patroni documentation,
// "Dynamic Configuration Settings"): loop_wait + 2 * retry_timeout <= ttl.
type Patroni struct {
	TTL                 int `json:"ttl"`
	LoopWait            int `json:"loop_wait"`
	RetryTimeout        int `json:"retry_timeout"`
	PrimaryStartTimeout int `json:"primary_start_timeout"`
	// MaximumLag is how many bytes of WAL a replica may lack to be promoted, and to be read from.
	MaximumLag int64 `json:"maximum_lag"`
}

// Interval is how often to ask a node whether it is the primary, in seconds: what a
// failover costs beside Patroni's own part in it. A question is a TLS handshake. Whoever
// gives Patroni a longer loop_wait than its default of 5 has nodes that are slow, and wants
// them asked less often: once in 6 s with 10 or more.
func (p Patroni) Interval() int { return min(max(1, p.LoopWait-4), 6) }

// SafetyMargin is how many seconds before its leader key runs out a primary that no
// longer renews it is reset by the watchdog. Patroni's own 5 are a quarter of the
// usual key; a shorter one has a quarter too, or nothing would be left to be late in.
func (p Patroni) SafetyMargin() int { return min(5, p.TTL/4) }

// Node is a machine of the cluster.
type Node struct {
	Name    string     `json:"name"`
	Role    string     `json:"role"` // a profile's name
	Site    string     `json:"site"`
	Address netip.Addr `json:"address"` // where its peers reach it: the address on its first NIC
	// Addresses are those of all its NICs, in their order, with prefix lengths.
	Addresses []netip.Prefix `json:"addresses"`
	// VRRPPriority is the node's on every virtual address that it may hold, 1..254
	// (RFC 9568, 5.2.4: 255 is for an owner of the address, which heeds no check).
	// 0: the topology has no wish.
	VRRPPriority int `json:"vrrp_priority,omitempty"`
}

// Holder says on which nodes a virtual address sits.
type Holder string

const (
	// OnBalancers: on the balancers of the site, whose HAProxy finds the primary.
	OnBalancers Holder = "balancers"
	// OnDatabases: on the database node that is the writable primary.
	OnDatabases Holder = "databases"
)

// VIP is a virtual address, kept by keepalived.
type VIP struct {
	Name string `json:"name"`
	// Site is whose nodes hold it; where it moves between sites, the first of Sites.
	Site string `json:"site"`
	// Sites are those that it moves between, with the right to write: their nodes are
	// on one network. Empty where it stays.
	Sites    []string     `json:"sites,omitempty"`
	Address  netip.Prefix `json:"address"` // with the prefix length of its network
	On       Holder       `json:"on"`
	RouterID int          `json:"router_id"` // VRRP's virtual router identifier, 1..255 (RFC 9568, 5.2.3)
	// Names are DNS names that certificates for this address carry.
	Names []string `json:"names,omitempty"`
	// ReadWrite and ReadOnly are the ports for the primary and for replicas. On
	// database nodes there is no ReadOnly (0).
	ReadWrite int `json:"read_write"`
	ReadOnly  int `json:"read_only,omitempty"`
	// HTTP and HTTPS are the ports that lead to the site's brokers, Gateway and
	// Tunnel those that lead to its gateways, for browsers and for other programs. 0
	// where the site has none of them.
	HTTP    int `json:"http,omitempty"`
	HTTPS   int `json:"https,omitempty"`
	Gateway int `json:"gateway,omitempty"`
	Tunnel  int `json:"tunnel,omitempty"`
	// Certificate says that the administrator has a certificate for the address: the
	// balancers have it among their secrets, under CertificateKey.
	Certificate bool `json:"certificate,omitempty"`
}

// CertificateKey is the name of the administrator's certificate for the address
// among the secrets: the chain and its private key, PEM.
func (v VIP) CertificateKey() string { return "certificate-" + v.Name }

// Database is a database that the cluster makes for an application. The
// owner's password is among the cluster's secrets, under PasswordKey.
type Database struct {
	Name  string `json:"name"`
	Owner string `json:"owner"`
	// UsedBy are the roles whose products keep their data in it.
	UsedBy []string `json:"used_by,omitempty"`
}

// PasswordKey is the name of the owner's password among the secrets.
func (d Database) PasswordKey() string { return "database-" + d.Owner }

// Names of the secrets of a database cluster.
const (
	SuperuserPassword   = "postgres-superuser"
	ReplicationPassword = "postgres-replication"
	RewindPassword      = "postgres-rewind"
)

// Roles of a cluster that brings people to their desktops.
const (
	BrokerRole  = "broker"
	GatewayRole = "gateway"
	DesktopRole = "desktop"
)

// Names of the secrets of such a cluster.
const (
	BrokerAdmin = "broker-admin" // password of the first administrator
	GatewayKey  = "gateway-key"  // by which brokers know gateways
)

// BrokersName is a DNS name that the certificates of balancers carry for those who ask
// the brokers through a virtual address from within the cluster, whatever
// certificate others are shown there.
const BrokersName = "brokers.slipway.internal"

// Node finds a node by name.
func (p *Plan) Node(name string) (Node, error) {
	for _, n := range p.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fault.New(fault.Input, "the plan of cluster %s has no node %q", p.Cluster, name)
}

// Site finds a site by name.
func (p *Plan) Site(name string) (Site, error) {
	for _, s := range p.Sites {
		if s.Name == name {
			return s, nil
		}
	}
	return Site{}, fault.New(fault.Input, "the plan of cluster %s has no site %q", p.Cluster, name)
}

// DatabaseRole reports whether a role runs PostgreSQL.
func DatabaseRole(role string) bool { return role == "db-master" || role == "db-replica" }

// Swarm are the parameters of the Docker Swarm of each site's dispatchers.
type Swarm struct {
	// Autolock has the managers' state encrypted with a key that is on none of their
	// disks.
	Autolock bool `json:"autolock,omitempty"`
	// DataPathPort is the UDP port of its overlay networks (VXLAN, RFC 7348).
	DataPathPort int `json:"data_path_port"`
}

// DispatcherRole is the role whose nodes are the managers of a swarm.
const DispatcherRole = "dispatcher"

// ProductRole reports whether nodes of a role run a product, and so have a
// certificate for its services.
func ProductRole(role string) bool {
	return role == BrokerRole || role == GatewayRole || role == DesktopRole || role == DispatcherRole
}

// DatabaseFor is the database that the products of a role keep their data in.
func (p *Plan) DatabaseFor(role string) (Database, bool) {
	for _, d := range p.Databases {
		if slices.Contains(d.UsedBy, role) {
			return d, true
		}
	}
	return Database{}, false
}

// DatabaseNodes are the nodes of a site that run PostgreSQL, by name.
func (p *Plan) DatabaseNodes(site string) []Node {
	return p.nodes(func(n Node) bool { return n.Site == site && DatabaseRole(n.Role) })
}

// Balancers are the balancers of a site, by name.
func (p *Plan) Balancers(site string) []Node { return p.With(site, "balancer") }

// With are the nodes of a site that have a role, by name.
func (p *Plan) With(site, role string) []Node {
	return p.nodes(func(n Node) bool { return n.Site == site && n.Role == role })
}

// ConsensusNodes are the nodes of a site that run an etcd member, by name.
func (p *Plan) ConsensusNodes(site string) []Node {
	s, err := p.Site(site)
	if err != nil {
		return nil
	}
	return p.nodes(func(n Node) bool { return slices.Contains(s.Consensus, n.Name) })
}

// Votes reports whether a node runs an etcd member.
func (p *Plan) Votes(name string) bool {
	return slices.ContainsFunc(p.Sites, func(s Site) bool { return slices.Contains(s.Consensus, name) })
}

// Moves reports whether the address moves between sites.
func (v VIP) Moves() bool { return len(v.Sites) > 0 }

// At reports whether the address is that of a site, alone or with others.
func (v VIP) At(site string) bool { return v.Site == site || slices.Contains(v.Sites, site) }

// Holders are the nodes that a virtual address may sit on, by name.
func (p *Plan) Holders(v VIP) []Node {
	return p.nodes(func(n Node) bool {
		if !v.At(n.Site) {
			return false
		}
		if v.On == OnDatabases {
			return DatabaseRole(n.Role)
		}
		return n.Role == "balancer"
	})
}

// SiteOf is the site that a virtual address belongs at: of those that it moves between,
// the one that takes the writes.
func (p *Plan) SiteOf(v VIP) string {
	if w := p.WritableSite(); slices.Contains(v.Sites, w) {
		return w
	}
	return v.Site
}

// HeldBy are the virtual addresses that may sit on a node.
func (p *Plan) HeldBy(name string) []VIP {
	var held []VIP
	for _, v := range p.VIPs {
		if slices.ContainsFunc(p.Holders(v), func(n Node) bool { return n.Name == name }) {
			held = append(held, v)
		}
	}
	return held
}

// Answers are the virtual addresses behind which clients meet a service of a
// node, whoever holds them: a balancer hands TLS through, and after a promotion
// a site's databases may answer at any address of the cluster.
func (p *Plan) Answers(name string) []VIP {
	if n, err := p.Node(name); err == nil && DatabaseRole(n.Role) {
		return p.VIPs
	}
	return p.HeldBy(name)
}

// Peers are all nodes but one, by name.
func (p *Plan) Peers(name string) []Node {
	return p.nodes(func(n Node) bool { return n.Name != name })
}

func (p *Plan) nodes(want func(Node) bool) []Node {
	var found []Node
	for _, n := range p.Nodes {
		if want(n) {
			found = append(found, n)
		}
	}
	return found
}
