package topology

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/internal/fault"
)

// base is a topology without a mistake, which the tests spoil.
const base = `slipway: 1
name: orders
domain: example.internal
networks:
  lan: {subnet: 192.0.2.0/24, gateway: 192.0.2.1}
  far: {subnet: 198.51.100.0/24, gateway: 198.51.100.1}
sites:
  a: {}
  b: {standby_of: a}
dns: {servers: [192.0.2.1], search: [example.internal]}
ntp: [time.example.internal]
users:
  - name: ops
    sudo: true
    keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED ops@example.org]
clients: [192.0.2.0/24]
vips:
  - {name: database, site: a, address: 192.0.2.10, on: balancers, router_id: 51}
databases:
  - {name: app, owner: clerk}
roles:
  database: {max_connections: 100, parameters: {work_mem: 8MB}, patroni: {ttl: 30, loop_wait: 10, retry_timeout: 10}}
nodes:
  - {name: db1, role: db-master, site: a, nics: [{network: lan, address: 192.0.2.11}]}
  - {name: db2, role: db-replica, site: a, nics: [{network: lan, address: 192.0.2.12}]}
  - {name: lb1, role: balancer, site: a, nics: [{network: lan, address: 192.0.2.21}]}
  - {name: lb2, role: balancer, site: a, nics: [{network: lan, address: 192.0.2.22}]}
  - {name: far1, role: db-master, site: b, nics: [{network: far, address: 198.51.100.11}]}
`

// spoil replaces texts of base, given in pairs.
func spoil(t *testing.T, pairs ...string) string {
	t.Helper()
	text := base
	for i := 0; i < len(pairs); i += 2 {
		if strings.Count(text, pairs[i]) != 1 {
			t.Fatalf("%q stands %d times in the text, want once", pairs[i], strings.Count(text, pairs[i]))
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

// stretched is base with an address that moves between its sites, on a network of
// both, and further texts replaced.
func stretched(t *testing.T, pairs ...string) string {
	t.Helper()
	text := spoil(t, "site: a, address: 192.0.2.10, on: balancers", "sites: [a, b], address: 192.0.2.10, on: databases",
		"[{network: far, address: 198.51.100.11}]", "[{network: lan, address: 192.0.2.31}]")
	for i := 0; i < len(pairs); i += 2 {
		if strings.Count(text, pairs[i]) != 1 {
			t.Fatalf("%q stands %d times in the text, want once", pairs[i], strings.Count(text, pairs[i]))
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

// dispatchers are lines of as many nodes in site a.
func dispatchers(count int) string {
	var b strings.Builder
	for i := range count {
		fmt.Fprintf(&b, "  - {name: disp%d, role: dispatcher, site: a, nics: [{network: lan, address: 192.0.2.%d}]}\n", i+1, 41+i)
	}
	return b.String()
}

const repositoryNode = "  - {name: bak1, role: repository, site: a, nics: [{network: lan, address: 192.0.2.31}]}\n"

// backedUp is base with backups.
func backedUp(t *testing.T, fields string) string {
	text := spoil(t, "nodes:\n", "backup: {"+fields+"}\nnodes:\n")
	if strings.Contains(fields, "bak1") {
		text += repositoryNode
	}
	return text
}

// withDesktops is base with all that brings people to desktops.
func withDesktops(t *testing.T, pairs ...string) string {
	return spoil(t, pairs...) +
		"  - {name: br1, role: broker, site: a, nics: [{network: lan, address: 192.0.2.31}]}\n" +
		"  - {name: gw1, role: gateway, site: a, nics: [{network: lan, address: 192.0.2.41}]}\n" +
		"  - {name: pc1, role: desktop, site: a, nics: [{network: lan, address: 192.0.2.51}]}\n"
}

// without keeps those lines of base that contain none of the words.
func without(words ...string) string {
	var kept []string
next:
	for _, line := range strings.SplitAfter(base, "\n") {
		for _, w := range words {
			if strings.Contains(line, w) {
				continue next
			}
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "")
}

func TestTheTextThatTheTestsSpoilIsRight(t *testing.T) {
	if got, mistakes := Parse("cluster.yaml", []byte(base)); got == nil || len(mistakes) > 0 {
		t.Fatalf("%v", mistakes)
	}
}

func TestEveryMistakeIsFoundAtItsLineWithAMend(t *testing.T) {
	nodes := strings.Index(base, "nodes:\n")
	for _, c := range []struct {
		name string
		text string
		want string // line: field: beginning of the text
	}{
		// The form of the file.
		{"an empty file", "", "1: : the file is empty"},
		{"no mapping", "- a\n", "1: : this is not a mapping"},
		{"no YAML", "slipway: 1\n\tname: x\n", "2: : this is not YAML"},
		{"two documents", base + "---\nslipway: 1\n", "29: : there is a second document"},
		{"a key twice", base + "name: again\n", "29: name: is given twice, first on line 2"},
		{"an unknown key", spoil(t, "domain:", "domian:"), "3: domian: there is no such field"},
		{"an unknown key far down", spoil(t, "[{network: lan, address: 192.0.2.12}]", "[{network: lan, adress: 192.0.2.12}]"), "25: nodes[1].nics[0].adress: there is no such field"},
		{"an alias", spoil(t, "search: [example.internal]", "search: [&c example.internal]", "[time.example.internal]", "[*c]"), "11: ntp[0]: anchors and aliases"},
		{"a merge key", spoil(t, "{name: app, owner: clerk}", "{<<: {name: app}}"), "20: databases[0]: line 20 has a key that is no plain word"},
		{"a list in place of a text", spoil(t, "name: orders", "name: [orders]"), "2: name: is a list, not text"},
		{"a number in place of a text", spoil(t, "name: orders", "name: 7"), "2: name: is a number, not text"},
		{"a text in place of a list", spoil(t, "[time.example.internal]", "time.example.internal"), "11: ntp: is text, not a list"},
		{"a text in place of a mapping", spoil(t, "{servers: [192.0.2.1], search: [example.internal]}", "192.0.2.1"), "10: dns: is text, not a mapping"},
		{"no truth", spoil(t, "sudo: true", "sudo: maybe"), "14: users[0].sudo: \"maybe\" is neither true nor false"},
		{"a truth in place of a text", spoil(t, "name: orders", "name: true"), "2: name: is true or false, not text"},
		{"a date in place of a text", spoil(t, "name: orders", "name: 2001-01-01"), "2: name: is of type !!timestamp, not text"},
		{"a mapping in place of a text", spoil(t, "name: orders", "name: {a: b}"), "2: name: is a mapping, not text"},
		{"nothing in a list", spoil(t, "[time.example.internal]", "[~]"), "11: ntp[0]: is empty, not text"},
		{"a list in place of a number", spoil(t, "router_id: 51", "router_id: [51]"), "18: vips[0].router_id: is a list, not a number"},
		{"a fraction", spoil(t, "router_id: 51", "router_id: 5.1"), "18: vips[0].router_id: \"5.1\" is no whole number"},
		{"another format", spoil(t, "slipway: 1", "slipway: 2"), "1: slipway: 2 is not between 1 and 1"},
		{"no format", without("slipway: 1"), "1: slipway: is missing"},
		{"no nodes", base[:nodes], "1: nodes: is missing"},
		{"an empty list of nodes", base[:nodes] + "nodes: []\n", "23: nodes: there is no node"},
		{"no name", without("name: orders"), "1: name: is missing"},

		// Names.
		{"a name that is no host name", spoil(t, "name: db2", "name: db_2"), "25: nodes[1].name: \"db_2\" is no host name"},
		{"a name in capitals", spoil(t, "name: db2", "name: DB2"), "25: nodes[1].name: capital letters"},
		{"a name with its domain", spoil(t, "name: db2", "name: db2.example.internal"), "25: nodes[1].name: \"db2.example.internal\" has a dot"},
		{"a name of digits", spoil(t, "name: db2", "name: \"12\""), "25: nodes[1].name: a name of digits"},
		{"localhost", spoil(t, "name: db2", "name: localhost"), "25: nodes[1].name: \"localhost\""},
		{"a long name of the cluster", spoil(t, "name: orders", "name: "+strings.Repeat("o", 33)), "2: name: the name is 33"},
		{"a bad domain", spoil(t, "domain: example.internal", "domain: example.internal."), "3: domain: \"example.internal.\" is no domain"},
		{"two nodes with one name", spoil(t, "name: db2", "name: db1"), "25: nodes[1].name: the name db1 also stands at nodes[0].name, line 24"},
		{"a node named as a virtual address", spoil(t, "name: lb2", "name: database"), "18: vips[0].name: the name database also stands at nodes[3].name, line 27"},
		{"a further name that is a node's", spoil(t, "router_id: 51", "router_id: 51, names: [lb1.example.internal]"), "18: vips[0].names[0]: the name lb1 also stands"},
		{"a further name that is no name", spoil(t, "router_id: 51", "router_id: 51, names: [\"*.example.internal\"]"), "18: vips[0].names[0]: \"*.example.internal\" is no DNS name"},
		{"a bad name of a network", spoil(t, "  far: {", "  far_away: {", "network: far,", "network: far_away,"), "6: networks.far_away: \"far_away\" is no host name"},

		// People, DNS, time.
		{"a user without keys", spoil(t, "keys: [ssh", "keys: [] # [ssh"), "15: users[0].keys: there is no key"},
		{"a key that is none", spoil(t, "ssh-ed25519 AAAA", "ssh-ed25519 BBBB"), "15: users[0].keys[0]: this is no public SSH key"},
		{"a private key", spoil(t, "keys: [ssh-ed25519", "keys: [-----BEGIN OPENSSH PRIVATE KEY-----"), "15: users[0].keys[0]: this is a private key"},
		{"a system's user", spoil(t, "name: ops", "name: postgres"), "13: users[0].name: \"postgres\" is a user of the system"},
		{"a user's bad name", spoil(t, "name: ops", "name: Ops Team"), "13: users[0].name: \"Ops Team\" is no login name"},
		{"a DNS server that is no machine", spoil(t, "servers: [192.0.2.1]", "servers: [0.0.0.0]"), "10: dns.servers[0]: 0.0.0.0 is no machine's"},
		{"a DNS server by name", spoil(t, "servers: [192.0.2.1]", "servers: [ns.example.internal]"), "10: dns.servers[0]: \"ns.example.internal\" is no IP address"},
		{"a bad search domain", spoil(t, "search: [example.internal]", "search: [\"example internal\"]"), "10: dns.search[0]: \"example internal\" is no domain"},
		{"a bad time server", spoil(t, "ntp: [time.example.internal]", "ntp: [192.0.2.300]"), "11: ntp[0]: \"192.0.2.300\" is neither"},
		{"clients that are no network", spoil(t, "clients: [192.0.2.0/24]", "clients: [192.0.2.7]"), "16: clients[0]: \"192.0.2.7\" is no network"},
		{"clients within a network", spoil(t, "clients: [192.0.2.0/24]", "clients: [192.0.2.7/24]"), "16: clients[0]: 192.0.2.7/24 is an address within a network"},
		{"clients twice", spoil(t, "clients: [192.0.2.0/24]", "clients: [192.0.2.0/24, 192.0.2.0/24]"), "16: clients[1]: the network 192.0.2.0/24 also"},

		// Networks and addresses.
		{"no subnet", spoil(t, "subnet: 192.0.2.0/24, ", ""), "5: networks.lan.subnet: is missing"},
		{"a subnet of IPv6", spoil(t, "subnet: 198.51.100.0/24", "subnet: 2001:db8::/64"), "6: networks.far.subnet: 2001:db8::/64: the networks of a cluster are IPv4"},
		{"a subnet with room for nobody", spoil(t, "subnet: 198.51.100.0/24", "subnet: 198.51.100.0/31"), "6: networks.far.subnet: 198.51.100.0/31 is no network for a cluster"},
		{"a multicast subnet", spoil(t, "subnet: 198.51.100.0/24", "subnet: 224.0.0.0/24"), "6: networks.far.subnet: 224.0.0.0/24 is set apart"},
		{"networks that overlap", spoil(t, "subnet: 198.51.100.0/24", "subnet: 192.0.2.128/25"), "6: networks.far.subnet: 192.0.2.128/25 overlaps network lan (192.0.2.0/24, line 5)"},
		{"a gateway outside", spoil(t, "gateway: 192.0.2.1}", "gateway: 192.0.3.1}"), "5: networks.lan.gateway: 192.0.3.1 is outside the subnet"},
		{"a VLAN out of range", spoil(t, "gateway: 192.0.2.1}", "gateway: 192.0.2.1, vlan: 4095}"), "5: networks.lan.vlan: 4095 is not between"},
		{"a tiny MTU", spoil(t, "gateway: 192.0.2.1}", "gateway: 192.0.2.1, mtu: 68}"), "5: networks.lan.mtu: 68 is not between"},
		{"an address outside", spoil(t, "192.0.2.12}", "192.0.3.12}"), "25: nodes[1].nics[0].address: 192.0.3.12 is outside the subnet"},
		{"an address with its prefix length", spoil(t, "192.0.2.12}", "192.0.2.12/24}"), "25: nodes[1].nics[0].address: \"192.0.2.12/24\" is no IP address"},
		{"the network's own address", spoil(t, "192.0.2.12}", "192.0.2.0}"), "25: nodes[1].nics[0].address: 192.0.2.0 is the network's own address"},
		{"the broadcast address", spoil(t, "192.0.2.12}", "192.0.2.255}"), "25: nodes[1].nics[0].address: 192.0.2.255 is the broadcast address"},
		{"two nodes with one address", spoil(t, "192.0.2.12}", "192.0.2.11}"), "25: nodes[1].nics[0].address: the address 192.0.2.11 also stands at nodes[0].nics[0].address, line 24"},
		{"a node with the gateway's address", spoil(t, "192.0.2.12}", "192.0.2.1}"), "25: nodes[1].nics[0].address: the address 192.0.2.1 also stands at networks.lan.gateway, line 5"},
		{"an unknown network", spoil(t, "network: lan, address: 192.0.2.12}", "network: lam, address: 192.0.2.12}"), "25: nodes[1].nics[0].network: there is no network \"lam\""},
		{"no way between networks", spoil(t, ", gateway: 198.51.100.1", ""), "6: networks.far.gateway: is missing: far1 could not reach"},
		{"no card", spoil(t, "nics: [{network: lan, address: 192.0.2.12}]", "nics: []"), "25: nodes[1].nics: the node has no network card"},
		{"a bad MAC", spoil(t, "192.0.2.12}", "192.0.2.12, mac: \"52:54:00:12:34\"}"), "25: nodes[1].nics[0].mac: \"52:54:00:12:34\" is no MAC address"},
		{"a group's MAC", spoil(t, "192.0.2.12}", "192.0.2.12, mac: \"53:54:00:12:34:56\"}"), "25: nodes[1].nics[0].mac: 53:54:00:12:34:56 is a group address"},
		{"no card's MAC", spoil(t, "192.0.2.12}", "192.0.2.12, mac: \"00:00:00:00:00:00\"}"), "25: nodes[1].nics[0].mac: no card has this address"},
		{"one MAC twice", spoil(t, "192.0.2.12}", "192.0.2.12, mac: \"52:54:00:12:34:56\"}", "192.0.2.11}", "192.0.2.11, mac: 5254.0012.3456}"), "25: nodes[1].nics[0].mac: the MAC address 52:54:00:12:34:56 also stands"},
		{"two cards without MAC", spoil(t, "192.0.2.12}", "192.0.2.12, mac: \"52:54:00:12:34:56\"}, {network: far, address: 198.51.100.12}"), "25: nodes[1].nics[1].mac: is missing: with 2 cards"},
		{"two cards on one network", spoil(t, "192.0.2.12}", "192.0.2.12, mac: \"52:54:00:12:34:56\"}, {network: lan, address: 192.0.2.13, mac: \"52:54:00:12:34:57\"}"), "25: nodes[1].nics[1].network: two cards of the node"},

		// Virtual addresses.
		{"a virtual address outside", spoil(t, "address: 192.0.2.10", "address: 203.0.113.10"), "18: vips[0].address: 203.0.113.10 is outside the subnet of every network"},
		{"a virtual address outside its network", spoil(t, "address: 192.0.2.10", "network: lan, address: 198.51.100.10"), "18: vips[0].address: 198.51.100.10 is outside the subnet 192.0.2.0/24 of network lan"},
		{"a virtual address that is the network's", spoil(t, "address: 192.0.2.10", "address: 192.0.2.0"), "18: vips[0].address: 192.0.2.0 is the network's own"},
		{"a virtual address that is broadcast", spoil(t, "address: 192.0.2.10", "address: 192.0.2.255"), "18: vips[0].address: 192.0.2.255 is the broadcast"},
		{"a virtual address that is the gateway's", spoil(t, "address: 192.0.2.10", "address: 192.0.2.1"), "18: vips[0].address: the address 192.0.2.1 also stands at networks.lan.gateway"},
		{"a virtual address that is a node's", spoil(t, "address: 192.0.2.10", "address: 192.0.2.12"), "18: vips[0].address: the address 192.0.2.12 also stands at nodes[1]"},
		{"a virtual address where its holders are not", spoil(t, "address: 192.0.2.10", "address: 198.51.100.10"), "18: vips[0].network: lb1 is to hold the address but has no card on network far"},
		{"VRRP id 0", spoil(t, "router_id: 51", "router_id: 0"), "18: vips[0].router_id: 0 is not between 1 and 255"},
		{"VRRP id 256", spoil(t, "router_id: 51", "router_id: 256"), "18: vips[0].router_id: 256 is not between 1 and 255"},
		{"a VRRP id twice on one network", spoil(t, "router_id: 51}", "router_id: 51}\n  - {name: reports, site: a, address: 192.0.2.9, on: databases, router_id: 51}"), "19: vips[1].router_id: the VRRP id 51 on network lan also stands at vips[0].router_id, line 18"},
		{"priority 255", spoil(t, "name: lb1,", "name: lb1, vrrp_priority: 255,"), "26: nodes[2].vrrp_priority: 255 is for the owner of an address"},
		{"priority 0", spoil(t, "name: lb1,", "name: lb1, vrrp_priority: 0,"), "26: nodes[2].vrrp_priority: 0 is not between 1 and 254"},
		{"a priority of a node that holds nothing", spoil(t, "name: db2,", "name: db2, vrrp_priority: 100,"), "25: nodes[1].vrrp_priority: db2 holds no virtual address"},
		{"one site to move between", stretched(t, "sites: [a, b]", "sites: [a]"), "18: vips[0].sites: an address moves between two sites at least"},
		{"no site to move between", stretched(t, "sites: [a, b]", "sites: []"), "18: vips[0].sites: an address moves between two sites at least"},
		{"a site and sites", stretched(t, "sites: [a, b]", "site: a, sites: [a, b]"), "18: vips[0].sites: site and sites cannot both stand"},
		{"a site twice", stretched(t, "sites: [a, b]", "sites: [a, b, a]"), "18: vips[0].sites[2]: the site a also stands at vips[0].sites[0]"},
		{"a site to move to that is none", stretched(t, "sites: [a, b]", "sites: [a, b, c]"), "18: vips[0].sites[2]: there is no site \"c\""},
		{"a move between networks", stretched(t, "[{network: lan, address: 192.0.2.31}]", "[{network: far, address: 198.51.100.11}]"), "18: vips[0].network: far1 is to hold the address but has no card on network lan"},
		{"a move to a site without balancers", stretched(t, "on: databases", "on: balancers"), "18: vips[0].on: site b has no balancer"},
		{"a priority where promotions decide", stretched(t, "name: db2,", "name: db2, vrrp_priority: 100,"), "25: nodes[1].vrrp_priority: db2 holds no virtual address but such as move"},
		{"a place that is none", spoil(t, "on: balancers", "on: brokers"), "18: vips[0].on: \"brokers\" is no place"},
		{"on balancers without balancers", strings.Replace(without("role: balancer"), "{name: db2", "{name: db3, role: db-replica, site: a, nics: [{network: lan, address: 192.0.2.13}]}\n  - {name: db2", 1), "18: vips[0].on: site a has no balancer"},
		{"a read-only port on databases", spoil(t, "on: balancers", "on: databases, ports: {read_only: 5433}"), "18: vips[0].ports.read_only: on the databases themselves"},
		{"another port on databases", spoil(t, "on: balancers", "on: databases, ports: {read_write: 6432}"), "18: vips[0].ports.read_write: on the databases themselves"},
		{"one port for both", spoil(t, "on: balancers", "on: balancers, ports: {read_only: 5432}"), "18: vips[0].ports: 5432 cannot be the port of both"},
		{"a port that is taken", spoil(t, "on: balancers", "on: balancers, ports: {read_only: 7420}"), "18: vips[0].ports.read_only: port 7420 is taken by the agent"},

		{"a front port on databases", spoil(t, "on: balancers", "on: databases, ports: {https: 8443}"), "18: vips[0].ports.https: on the databases themselves"},
		{"a front port without brokers", spoil(t, "on: balancers", "on: balancers, ports: {https: 8443}"), "18: vips[0].ports.https: site a has no broker"},
		{"a tunnel without gateways", spoil(t, "on: balancers", "on: balancers, ports: {tunnel: 1444}"), "18: vips[0].ports.tunnel: site a has no gateway"},
		{"one port for two services", withDesktops(t, "on: balancers", "on: balancers, ports: {tunnel: 10443}"), "18: vips[0].ports.tunnel: port 10443 is that of gateway"},
		{"a certificate on databases", spoil(t, "on: balancers", "on: databases, certificate: {chain: a, key: b}"), "18: vips[0].certificate: databases show the certificates"},
		{"a certificate for databases alone", spoil(t, "on: balancers", "on: balancers, certificate: {chain: a, key: b}"), "18: vips[0].certificate: site a has neither a broker nor a gateway"},
		{"a certificate without its key", withDesktops(t, "on: balancers", "on: balancers, certificate: {chain: a}"), "18: vips[0].certificate.key: is missing"},
		{"a desktop without a gateway", spoil(t, "name: lb2, role: balancer", "name: lb2, role: desktop"), "27: nodes[3].role: site a has no gateway"},

		// Sites, votes, roles.
		{"an unknown role", spoil(t, "role: db-replica", "role: db-replicas"), "25: nodes[1].role: there is no role \"db-replicas\""},
		{"an unknown site", spoil(t, "db-replica, site: a", "db-replica, site: c"), "25: nodes[1].site: there is no site \"c\""},
		{"no site where there are two", spoil(t, "db-replica, site: a", "db-replica"), "25: nodes[1].site: is missing: there are 2 sites"},
		{"a site without nodes", spoil(t, "  a: {}", "  a: {}\n  c: {}"), "9: sites.c: no node is in this site"},
		{"a standby of nothing", spoil(t, "standby_of: a", "standby_of: c"), "9: sites.b.standby_of: there is no site \"c\""},
		{"a standby of itself", spoil(t, "standby_of: a", "standby_of: b"), "9: sites.b.standby_of: site b cannot replicate itself"},
		{"standbys in a circle", spoil(t, "a: {}", "a: {standby_of: b}"), "8: sites.a.standby_of: the sites replicate each other in a circle"},
		{"a standby without databases", spoil(t, "name: far1, role: db-master", "name: far1, role: balancer"), "9: sites.b.standby_of: site b has no database that could replicate"},
		{"two writable databases", spoil(t, "b: {standby_of: a}", "b:"), "9: sites.b: sites a and b would each have a writable database"},
		{"two db-masters", spoil(t, "role: db-replica", "role: db-master"), "25: nodes[1].role: site a has a db-master already, db1"},
		{"a replica without a master", spoil(t, "name: db1, role: db-master", "name: db1, role: db-replica"), "24: nodes[0].role: site a has no db-master"},
		{"a balancer with nothing behind", spoil(t, "name: far1, role: db-master", "name: far1, role: balancer"), "28: nodes[4].role: site b has no db-master, broker, gateway, dispatcher"},
		{"a gateway without a broker", spoil(t, "name: lb2, role: balancer", "name: lb2, role: gateway"), "27: nodes[3].role: site a has no broker"},
		{"a broker without a database", spoil(t, "name: far1, role: db-master", "name: far1, role: broker"), "28: nodes[4].role: site b has no db-master"},
		{"a database for a role that has none", spoil(t, "owner: clerk", "owner: clerk, used_by: [balancer]"), "20: databases[0].used_by[0]: nodes of the role \"balancer\" use no database"},
		{"two databases for a role", spoil(t, "{name: app, owner: clerk}", "{name: app, owner: clerk, used_by: [broker]}\n  - {name: more, used_by: [broker]}"), "21: databases[1].used_by[0]: the role broker also stands at databases[0].used_by[0]"},
		{"a port of Swarm's own", spoil(t, "roles:\n", "roles:\n  dispatcher: {data_path_port: 7946}\n"), "22: roles.dispatcher.data_path_port: port 7946 is taken by Swarm's gossip"},
		{"nine dispatchers", base + dispatchers(9), "37: nodes[13].role: site a has 9 dispatchers"},
		{"two dispatchers", spoil(t, "name: lb1, role: balancer", "name: lb1, role: dispatcher", "name: lb2, role: balancer", "name: lb2, role: dispatcher"), "27: nodes[3].role: site a has 2 dispatchers"},
		{"backups nowhere", backedUp(t, "schedule: {full: never}"), "23: backup: it does not say where backups are kept"},
		{"backups in two places", backedUp(t, "repository: bak1, s3: {endpoint: s3.example.org, bucket: orders, region: eu-1}"), "23: backup.s3: backups are kept on a repository or on S3, not on both"},
		{"backups on a database", backedUp(t, "repository: db2"), "23: backup.repository: db2 is a db-replica: its loss would take the backups along"},
		{"backups on nobody", backedUp(t, "repository: bak2"), "23: backup.repository: there is no node \"bak2\""},
		{"a repository of nothing", base + repositoryNode, "29: nodes[5].role: nothing is kept on the repository bak1"},
		{"no time", backedUp(t, "repository: bak1, schedule: {diff: noon}"), "23: backup.schedule.diff: \"noon\" is no time"},
		{"no day", backedUp(t, "repository: bak1, schedule: {full: sunday 01:30}"), "23: backup.schedule.full: \"sunday 01:30\" is no time"},
		{"nothing kept", backedUp(t, "repository: bak1, retention: {full: 0}"), "23: backup.retention.full: 0 is not between 1 and 9999"},
		{"an endpoint with a path", backedUp(t, "s3: {endpoint: \"https://s3.example.org\", bucket: orders, region: eu-1}"), "23: backup.s3.endpoint: \"https://s3.example.org\" is no host name"},
		{"an endpoint's port", backedUp(t, "s3: {endpoint: \"s3.example.org:0\", bucket: orders, region: eu-1}"), "23: backup.s3.endpoint: \"s3.example.org:0\" is no host name"},
		{"an address and a bucket in front", backedUp(t, "s3: {endpoint: 192.0.2.99, bucket: orders, region: eu-1}"), "23: backup.s3.style: an address cannot have the bucket's name in front"},
		{"a bucket in capitals", backedUp(t, "s3: {endpoint: s3.example.org, bucket: Orders, region: eu-1}"), "23: backup.s3.bucket: \"Orders\" cannot be used"},
		{"backups of oneself", backedUp(t, "repository: bak1, from: {cluster: orders}"), "23: backup.from: orders is this cluster"},
		{"backups of nobody", backedUp(t, "repository: bak1, from: {}"), "23: backup.from.cluster: is missing"},
		{"another cluster's name", backedUp(t, "repository: bak1, from: {cluster: \"../x\"}"), "23: backup.from.cluster: \"../x\" is no cluster's name"},
		{"another cluster's bucket", backedUp(t, "repository: bak1, from: {cluster: north, s3: {endpoint: s3.example.org, bucket: Orders, region: eu-1}}"), "23: backup.from.s3.bucket: \"Orders\" cannot be used"},
		{"no authority", backedUp(t, "s3: {endpoint: s3.example.org, bucket: orders, region: eu-1, ca: none}"), "23: backup.s3.ca: there is no certificate in it"},
		{"a key for an authority", backedUp(t, "s3: {endpoint: s3.example.org, bucket: orders, region: eu-1, ca: \"-----BEGIN PRIVATE KEY-----\\nAAAA\\n-----END PRIVATE KEY-----\\n\"}"), "23: backup.s3.ca: there is a PEM block in it that is no certificate: \"PRIVATE KEY\""},
		{"a broken authority", backedUp(t, "s3: {endpoint: s3.example.org, bucket: orders, region: eu-1, ca: \"-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n\"}"), "23: backup.s3.ca: certificate 1 in it cannot be read"},
		{"a bucket without a region", backedUp(t, "s3: {endpoint: s3.example.org, bucket: orders}"), "23: backup.s3.region: is missing"},
		{"a queue that fills the disk", strings.Replace(backedUp(t, "repository: bak1, wal_queue: 6GiB"), "name: db2,", "name: db2, size: {disk: 10GiB},", 1), "26: nodes[1].size.disk: 10GiB is too little: WAL that waits for the repository"},
		{"the archive's own setting", spoil(t, "work_mem: 8MB", "archive_timeout: 1min"), "22: roles.database.parameters.archive_timeout: this setting is the cluster's own"},
		{"no witness", without("role: balancer", "vips:", "router_id"), "8: sites.a: there is no witness for the third vote"},
		{"no witness, and no sites", strings.ReplaceAll(without("role: balancer", "vips:", "router_id", "sites:", " a: {}", "standby_of", "far1"), " site: a,", ""), "18: nodes: there is no witness for the third vote"},
		{"a witness that is no node", spoil(t, "a: {}", "a: {witness: lb3}"), "8: sites.a.witness: there is no node \"lb3\""},
		{"a witness elsewhere", spoil(t, "a: {}", "a: {witness: far1}"), "8: sites.a.witness: far1 is not in site a"},
		{"a witness that is a database", spoil(t, "a: {}", "a: {witness: db2}"), "8: sites.a.witness: db2 is a database"},
		{"a witness beside one database", spoil(t, "b: {standby_of: a}", "b: {standby_of: a, witness: far1}"), "9: sites.b.witness: a witness is the third vote beside two databases, and site b has 1"},
		{"a witness without etcd", spoil(t, "a: {}", "a: {witness: br1}") + "  - {name: br1, role: broker, site: a, nics: [{network: lan, address: 192.0.2.31}]}\n", "8: sites.a.witness: br1 is a broker, which has no etcd"},
		{"nine votes", spoil(t, "a: {}", "a: {consensus: [db1, db2, lb1, lb2, x1, x2, x3, x4, x5]}"), "8: sites.a.consensus: 9 consensus members make every write slow"},
		{"a long name of a site", spoil(t, "  b: {standby_of: a}", "  "+strings.Repeat("b", 25)+": {standby_of: a}", "role: db-master, site: b", "role: db-master, site: "+strings.Repeat("b", 25)), "9: sites." + strings.Repeat("b", 25) + ": the site's name is 25"},
		{"a name that is long with its domain", spoil(t, "domain: example.internal", "domain: "+strings.Repeat("d.", 124)+"dd"), "24: nodes[0].name: with its domain"},
		{"a standby of a site without databases", spoil(t, "b: {standby_of: a}", "b: {standby_of: c}\n  c: {}") + "  - {name: br9, role: broker, site: c, nics: [{network: far, address: 198.51.100.12}]}\n", "9: sites.b.standby_of: site c has no database to replicate"},
		{"an even number of votes", spoil(t, "a: {}", "a: {consensus: [db1, db2]}"), "8: sites.a.consensus: 2 consensus members are an even number"},
		{"a vote twice", spoil(t, "a: {}", "a: {consensus: [db1, db2, db1]}"), "8: sites.a.consensus[2]: the node db1 also stands"},
		{"a vote of nobody", spoil(t, "a: {}", "a: {consensus: [db1, db2, db3]}"), "8: sites.a.consensus[2]: there is no node \"db3\""},
		{"a vote from elsewhere", spoil(t, "a: {}", "a: {consensus: [db1, db2, far1]}"), "8: sites.a.consensus[2]: far1 is not in site a"},
		{"votes and a witness", spoil(t, "a: {}", "a: {witness: lb1, consensus: [db1, db2, lb1]}"), "8: sites.a.witness: the votes are given under consensus already"},

		// Sizes, databases, parameters.
		{"a size without a unit", spoil(t, "name: db2,", "name: db2, size: {memory: 4G},"), "25: nodes[1].size.memory: \"4G\" is no size"},
		{"a large memory", spoil(t, "name: db2,", "name: db2, size: {memory: 99TiB},"), "25: nodes[1].size.memory: 99TiB is too much"},
		{"a lag without a unit", spoil(t, "ttl: 30", "maximum_lag: 5"), "22: roles.database.patroni.maximum_lag: is a number, not text"},
		{"little memory", spoil(t, "name: db2,", "name: db2, size: {memory: 512MiB},"), "25: nodes[1].size.memory: 512MiB is too little for a db-replica"},
		{"least memory", spoil(t, "name: lb1,", "name: lb1, size: {memory: 256MiB},"), "26: nodes[2].size.memory: 256MiB is too little"},
		{"no processors", spoil(t, "name: db2,", "name: db2, size: {cpus: 0},"), "25: nodes[1].size.cpus: 0 is not between"},
		{"a small disk", spoil(t, "name: db2,", "name: db2, size: {disk: 1GiB},"), "25: nodes[1].size.disk: 1GiB is too little"},
		{"a disk that kept WAL fills", spoil(t, "name: db2,", "name: db2, size: {disk: 10GiB},", "max_connections: 100", "max_slot_wal_keep: 6GiB"), "25: nodes[1].size.disk: 10GiB is too little: WAL kept"},
		{"a database's bad name", spoil(t, "name: app", "name: App-1"), "20: databases[0].name: \"App-1\" is no plain SQL name"},
		{"PostgreSQL's own database", spoil(t, "name: app", "name: template1"), "20: databases[0].name: \"template1\" is taken"},
		{"the cluster's own role", spoil(t, "owner: clerk", "owner: replicator"), "20: databases[0].owner: \"replicator\" is taken"},
		{"a role of PostgreSQL", spoil(t, "owner: clerk", "owner: pg_monitor"), "20: databases[0].owner: names with pg_ in front"},
		{"a database named as a role", spoil(t, "name: app, owner: clerk", "name: patroni"), "20: databases[0].owner: is missing"},
		{"a database twice", spoil(t, "{name: app, owner: clerk}", "{name: app}\n  - {name: app}"), "21: databases[1].name: the database app also stands"},
		{"few connections", spoil(t, "max_connections: 100", "max_connections: 10"), "22: roles.database.max_connections: 10 is not between"},
		{"an unsafe setting", spoil(t, "work_mem: 8MB", "fsync: off"), "22: roles.database.parameters.fsync: this setting is the cluster's own"},
		{"Patroni's setting", spoil(t, "work_mem: 8MB", "ssl_cert_file: /x"), "22: roles.database.parameters.ssl_cert_file: this setting"},
		{"a setting with a key of its own", spoil(t, "work_mem: 8MB", "max_connections: 8"), "22: roles.database.parameters.max_connections: this setting"},
		{"no setting", spoil(t, "work_mem: 8MB", "Work Mem: 8MB"), "22: roles.database.parameters.Work Mem: this is no name"},
		{"a setting of two lines", spoil(t, "work_mem: 8MB", "work_mem: \"8MB\\nfsync = off\""), "22: roles.database.parameters.work_mem: the value is longer than a line"},
		{"a setting that is a list", spoil(t, "work_mem: 8MB", "work_mem: [8MB]"), "22: roles.database.parameters.work_mem: is a list, not a value"},
		{"the least ttl", spoil(t, "ttl: 30", "ttl: 7"), "22: roles.database.patroni.ttl: 7 is not between 8"},
		{"Patroni's least loop_wait", spoil(t, "loop_wait: 10", "loop_wait: 0"), "22: roles.database.patroni.loop_wait: 0 is not between 1"},
		{"Patroni's least retry_timeout", spoil(t, "retry_timeout: 10", "retry_timeout: 2"), "22: roles.database.patroni.retry_timeout: 2 is not between 3"},
		{"times that do not fit", spoil(t, "retry_timeout: 10", "retry_timeout: 11"), "22: roles.database.patroni: loop_wait + 2 * retry_timeout is 32, more than ttl (30)"},
	} {
		got, mistakes := Parse("cluster.yaml", []byte(c.text))
		found := false
		for _, m := range mistakes.Errors() {
			found = found || strings.HasPrefix(fmt.Sprintf("%d: %s: %s", m.Line, m.Field, m.Text), c.want)
			if m.Mend == "" || m.File != "cluster.yaml" || m.Line < 1 {
				t.Errorf("%s: %+v", c.name, m)
			}
		}
		if !found || got != nil {
			t.Errorf("%s: want %s\n got %v", c.name, c.want, mistakes)
		}
	}
}

func TestAllMistakesAreToldAtOnceAndInOrder(t *testing.T) {
	text := spoil(t, "name: db2", "name: db_2", "router_id: 51", "router_id: 300", "ttl: 30", "ttl: 3", "192.0.2.22}", "192.0.2.21}", "domain:", "domian:")
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(file)
	if fault.Of(err) != fault.Input {
		t.Fatalf("class %v: %v", fault.Of(err), err)
	}
	var mistakes Mistakes
	if !errors.As(err, &mistakes) || len(mistakes) != 5 {
		t.Fatalf("%d mistakes: %v", len(mistakes), err)
	}
	last := 0
	for _, m := range mistakes {
		if m.Line < last {
			t.Errorf("line %d comes after line %d", m.Line, last)
		}
		last = m.Line
		if !strings.Contains(err.Error(), m.String()) {
			t.Errorf("the error does not say %q:\n%v", m, err)
		}
	}
}

func TestOneBadFieldIsOneMistake(t *testing.T) {
	for _, text := range []string{
		spoil(t, "subnet: 192.0.2.0/24", "subnet: 192.0.2.0"),
		spoil(t, "address: 192.0.2.10,", "address: here,"),
		spoil(t, "{name: db1,", "{name: [db1],"),
		spoil(t, "a: {}", "a: {standby_of: []}"),
		spoil(t, "on: balancers", "on: nowhere"),
	} {
		if _, mistakes := Parse("cluster.yaml", []byte(text)); len(mistakes) != 1 {
			t.Errorf("%d mistakes: %v", len(mistakes), mistakes)
		}
	}
}

func TestWhatMayBeMeantIsAWarning(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no users", without("users:", "name: ops", "sudo:", "keys:"), "1: users: there are no users"},
		{"no sudo", spoil(t, "sudo: true", "sudo: false"), "12: users: no user has root's rights"},
		{"no time", without("ntp:"), "1: ntp: there is no time server"},
		{"everybody", spoil(t, "clients: [192.0.2.0/24]", "clients: [0.0.0.0/0]"), "16: clients[0]: 0.0.0.0/0 lets every computer"},
		{"one balancer", without("name: lb2"), "18: vips[0].on: lb1 is the only balancer of site a"},
		{"one database", without("name: db2"), "8: sites.a: db1 is the only database of site a"},
		{"one vote", spoil(t, "a: {}", "a: {consensus: [lb1]}"), "8: sites.a.consensus: the loss of lb1 alone"},
	} {
		got, mistakes := Parse("cluster.yaml", []byte(c.text))
		if got == nil || len(mistakes) != 1 || len(got.Warnings) != 1 {
			t.Errorf("%s: %v", c.name, mistakes)
			continue
		}
		m := mistakes[0]
		if text := fmt.Sprintf("%d: %s: %s", m.Line, m.Field, m.Text); !m.Warning || !strings.HasPrefix(text, c.want) || m.Mend == "" {
			t.Errorf("%s: want %s\n got %+v", c.name, c.want, m)
		}
		if mistakes.Err() != nil {
			t.Errorf("%s: a warning is an error: %v", c.name, mistakes.Err())
		}
	}
}

func TestWhatWasMeantIsOffered(t *testing.T) {
	for text, mend := range map[string]string{
		spoil(t, "domain:", "domian:"):                                                     "did you mean \"domain\"?",
		spoil(t, "role: db-replica", "role: dbreplica"):                                    "did you mean \"db-replica\"?",
		spoil(t, "standby_of: a", "standby_off: a"):                                        "did you mean \"standby_of\"?",
		spoil(t, "clients: [192.0.2.0/24]", "clients: [192.0.2.7/24]"):                     "write 192.0.2.0/24",
		spoil(t, "clients: [192.0.2.0/24]", "clients: [192.0.2.7]"):                        "192.0.2.7/32 is this address alone",
		spoil(t, "192.0.2.12}", "192.0.2.12/24}"):                                          "write 192.0.2.12;",
		spoil(t, "work_mem: 8MB", "max_slot_wal_keep_size: 8MB"):                           "write roles.database.max_slot_wal_keep",
		spoil(t, "{name: db2, role: db-replica", "{name: DB2, role: db-replica"):           "write db2",
		spoil(t, "network: lan, address: 192.0.2.12", "network: lam, address: 192.0.2.12"): "did you mean \"lan\"?",
	} {
		_, mistakes := Parse("cluster.yaml", []byte(text))
		if !strings.Contains(mistakes.Error(), mend) {
			t.Errorf("want %q in\n%v", mend, mistakes)
		}
	}
}

func TestAFileThatIsNotThereIsWrongInput(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "cluster.yaml")); fault.Of(err) != fault.Input || fault.Mend(err) == "" {
		t.Errorf("class %v: %v", fault.Of(err), err)
	}
}
