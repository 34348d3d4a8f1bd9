// Package topology models a cluster as its administrator describes it: the file
// cluster.yaml, and the plan that follows from it.
//
// In: the text of cluster.yaml (YAML 1.2; the format is docs/topology.md, and as
// JSON Schema draft 2020-12 it is Schema). Out: a Topology, or all of its mistakes
// at once, each with its line, its field, what is wrong and how to mend it
// (Parse, Load); and of a Topology the plan that its nodes get (Plan), without the
// cluster's identity and generation, which are known where the plan is signed.
package topology

import (
	"net/netip"

	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// Format is the version of cluster.yaml, under the key "slipway".
const Format = 1

// DefaultSite is the name of the only site where the file names none.
const DefaultSite = "main"

// Topology is a checked cluster.yaml. Everything that the file may leave out and
// that has a default is filled in, but sizes, which are the profile's then.
type Topology struct {
	Name   string
	Domain string
	// Networks, Sites, VIPs, Databases and Nodes stand in the file's order.
	Networks []Network
	Sites    []Site
	DNS      DNS
	NTP      []string // addresses or names
	Users    []User
	// Clients are the networks whose computers may use the services.
	Clients   []netip.Prefix
	VIPs      []VIP
	Databases []plan.Database
	Backup    *plan.Backup // nil where no backups are made
	Mirror    *plan.Mirror // nil where there is none; of a node's, the planner knows the rest
	Roles     Roles
	Nodes     []Node
	// Warnings are what the file may say and its author may not have meant.
	Warnings Mistakes

	path string
}

// Path is the file that the topology was read from.
func (t *Topology) Path() string { return t.path }

// Network is a layer-2 segment.
type Network struct {
	Name    string
	Subnet  netip.Prefix // masked
	Gateway netip.Addr   // the zero value without one
	VLAN    int          // 0 without a tag
	MTU     int          // 0 for the default of the interface
}

// Site is a place with a database cluster of its own.
type Site struct {
	Name string
	// StandbyOf names the site whose database this one replicates, or is "".
	StandbyOf string
	// Witness names the node that carries the third vote beside two databases, or
	// is "" for the planner's choice.
	Witness string
	// Consensus names the nodes with a vote, in place of the planner's choice.
	Consensus []string
}

// DNS is where nodes resolve names.
type DNS struct {
	Servers []netip.Addr
	Search  []string
}

// User is a person who may log in to the nodes.
type User struct {
	Name string
	Keys []string // lines of authorized_keys
	Sudo bool
}

// VIP is a virtual address.
type VIP struct {
	Name string
	Site string
	// Sites are those that it moves between; Site is the first of them then.
	Sites    []string
	Network  string
	Address  netip.Addr
	On       plan.Holder
	RouterID int
	Names    []string
	// ReadWrite and ReadOnly are ports; ReadOnly is 0 on database nodes.
	ReadWrite int
	ReadOnly  int
	// HTTP and HTTPS lead to brokers, Gateway and Tunnel to gateways. They are 0 on
	// database nodes, and of no use where the site has no such nodes.
	HTTP, HTTPS, Gateway, Tunnel int
	// Certificate is nil where the cluster's own authority vouches for the address.
	Certificate *Certificate
}

// Certificate is one that the administrator has for a virtual address.
type Certificate struct {
	Chain string // file: the certificate and those that its authority signed it through, PEM
	Key   string // file: its private key, PEM
}

// Roles are parameters, by kind of node.
type Roles struct {
	Database   DatabaseRole
	Dispatcher plan.Swarm
}

// DatabaseRole are the parameters of db-master and db-replica.
type DatabaseRole struct {
	MaxConnections int
	MaxSlotWALKeep profile.Size
	Parameters     map[string]string
	Patroni        plan.Patroni
}

// Node is a machine.
type Node struct {
	Name string
	Role string // a profile's name
	Site string
	NICs []NIC // the first carries the cluster's traffic
	Size Size
	// VRRPPriority is 1..254, or 0 where the file gives none.
	VRRPPriority int
}

// Address is where peers reach the node: the address on its first NIC.
func (n Node) Address() netip.Addr { return n.NICs[0].Address }

// NIC is a network card.
type NIC struct {
	Network string
	Address netip.Addr
	MAC     string // lower case with colons; "" where a node has but one NIC and the file gives none
}

// Size is what a machine is given; a zero field is the profile's value.
type Size struct {
	CPUs   int
	Memory profile.Size
	Disk   profile.Size
}

// Network finds a network by name.
func (t *Topology) Network(name string) (Network, bool) {
	for _, n := range t.Networks {
		if n.Name == name {
			return n, true
		}
	}
	return Network{}, false
}

// Node finds a node by name.
func (t *Topology) Node(name string) (Node, bool) {
	for _, n := range t.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// in are the nodes of a site with one of the roles, in the file's order.
func (t *Topology) in(site string, roles ...string) []Node {
	var found []Node
	for _, n := range t.Nodes {
		if n.Site != site {
			continue
		}
		for _, role := range roles {
			if n.Role == role {
				found = append(found, n)
			}
		}
	}
	return found
}
