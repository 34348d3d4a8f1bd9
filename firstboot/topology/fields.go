package topology

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// keys are the fields of every kind of mapping; a kind has the same name among
// the schema's definitions.
var keys = map[string][]string{
	"cluster":         {"slipway", "name", "domain", "networks", "sites", "dns", "ntp", "users", "clients", "vips", "databases", "backup", "mirror", "roles", "nodes"},
	"network":         {"subnet", "gateway", "vlan", "mtu"},
	"site":            {"standby_of", "witness", "consensus"},
	"dns":             {"servers", "search"},
	"user":            {"name", "keys", "sudo"},
	"vip":             {"name", "site", "sites", "address", "network", "on", "router_id", "names", "ports", "certificate"},
	"ports":           {"read_write", "read_only", "http", "https", "gateway", "tunnel"},
	"certificate":     {"chain", "key"},
	"database":        {"name", "owner", "used_by"},
	"backup":          {"repository", "s3", "schedule", "retention", "archive_timeout", "wal_queue", "from"},
	"s3":              {"endpoint", "bucket", "region", "path", "style", "ca"},
	"from":            {"cluster", "s3"},
	"schedule":        {"full", "diff"},
	"retention":       {"full", "diff"},
	"mirror":          {"node", "url", "registry", "key", "ca"},
	"roles":           {"database", "dispatcher"},
	"database_role":   {"max_connections", "max_slot_wal_keep", "parameters", "patroni"},
	"dispatcher_role": {"autolock", "data_path_port"},
	"patroni":         {"ttl", "loop_wait", "retry_timeout", "primary_start_timeout", "maximum_lag"},
	"node":            {"name", "role", "site", "nics", "size", "vrrp_priority"},
	"nic":             {"network", "address", "mac"},
	"size":            {"cpus", "memory", "disk"},
}

// Ports of services. postgresPort is PostgreSQL's on a database node, as the
// profiles' firewall has it; a balancer's read-only port is next to it.
const (
	postgresPort = 5432
	readOnlyPort = 5433
	dataPathPort = 4789 // of overlay networks (RFC 7348, 8: VXLAN's port)
	httpPort     = 80
	httpsPort    = 443
	gatewayPort  = 10443
	tunnelPort   = 1443
)

// defaultDatabase are the parameters of databases that the file leaves out.
// Patroni's times let the loss of a node be over within half a minute: a lock that
// nobody holds is taken after at most ttl + loop_wait seconds.
func defaultDatabase() DatabaseRole {
	return DatabaseRole{
		MaxConnections: 200,
		MaxSlotWALKeep: 4 * profile.GiB,
		Parameters:     map[string]string{},
		Patroni:        plan.Patroni{TTL: 20, LoopWait: 5, RetryTimeout: 5, PrimaryStartTimeout: 15, MaximumLag: int64(profile.MiB)},
	}
}

func (r *reader) topology(root value) *Topology {
	t := &Topology{Roles: Roles{Database: defaultDatabase(), Dispatcher: plan.Swarm{DataPathPort: dataPathPort}}}
	o := root.object("cluster")
	if v, ok := o.need("slipway", "write \"slipway: 1\" at the top"); ok {
		v.number(Format, Format, "write \"slipway: 1\", the only format so far")
	}
	if v, ok := o.need("name", "give the cluster a name, such as \"name: orders\""); ok {
		t.Name, _ = v.text()
	}
	if v, ok := o.get("domain"); ok {
		t.Domain, _ = v.text()
	}
	if v, ok := o.need("networks", "describe at least one, such as \"networks: {lan: {subnet: 192.0.2.0/24, gateway: 192.0.2.1}}\""); ok {
		for _, m := range v.members("write \"NAME: {subnet: …}\" for every network") {
			t.Networks = append(t.Networks, m.network())
		}
	}
	if v, ok := o.get("sites"); ok {
		for _, m := range v.members("write \"NAME: {}\" for every site") {
			t.Sites = append(t.Sites, m.site())
		}
	}
	if len(t.Sites) == 0 {
		t.Sites = []Site{{Name: DefaultSite}}
	}
	if v, ok := o.get("dns"); ok {
		d := v.object("dns")
		t.DNS = DNS{Servers: addresses(d, "servers"), Search: texts(d, "search")}
	}
	t.NTP = texts(o, "ntp")
	for _, v := range items(o, "users") {
		t.Users = append(t.Users, v.user())
	}
	for _, v := range items(o, "clients") {
		t.Clients = append(t.Clients, v.prefix())
	}
	for _, v := range items(o, "vips") {
		t.VIPs = append(t.VIPs, v.vip())
	}
	for _, v := range items(o, "databases") {
		t.Databases = append(t.Databases, v.database())
	}
	if v, ok := o.get("backup"); ok {
		t.Backup = v.backup()
	}
	if v, ok := o.get("mirror"); ok {
		t.Mirror = v.mirror()
	}
	if v, ok := o.get("roles"); ok {
		roles := v.object("roles")
		if v, ok := roles.get("database"); ok {
			v.databaseRole(&t.Roles.Database)
		}
		if v, ok := roles.get("dispatcher"); ok {
			v.dispatcherRole(&t.Roles.Dispatcher)
		}
	}
	if _, ok := o.need("nodes", "list the machines of the cluster"); ok {
		for _, v := range items(o, "nodes") {
			t.Nodes = append(t.Nodes, v.machine())
		}
	}
	return t
}

// items are the items of a list that may be missing.
func items(o object, key string) []value {
	if v, ok := o.get(key); ok {
		return v.list()
	}
	return nil
}

// texts reads a list of texts; an item that is none is kept as "".
func texts(o object, key string) []string {
	var out []string
	for _, v := range items(o, key) {
		text, _ := v.text()
		out = append(out, text)
	}
	return out
}

func addresses(o object, key string) []netip.Addr {
	var out []netip.Addr
	for _, v := range items(o, key) {
		out = append(out, v.address())
	}
	return out
}

// address reads an IP address; the zero value if it is none.
func (v value) address() netip.Addr {
	text, ok := v.text()
	if !ok {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(text)
	if err == nil && a.Zone() == "" {
		return a.Unmap()
	}
	mend := "write it as in 192.0.2.10"
	if p, err := netip.ParsePrefix(text); err == nil {
		mend = "write " + p.Addr().String() + "; the prefix length is the network's"
	}
	v.fail(mend, "%q is no IP address", short(text))
	return netip.Addr{}
}

// prefix reads a network in CIDR notation; the zero value if it is none.
func (v value) prefix() netip.Prefix {
	text, ok := v.text()
	if !ok {
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		mend := "write it as in 192.0.2.0/24"
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
			mend = "add a prefix length: " + netip.PrefixFrom(a, a.BitLen()).String() + " is this address alone"
		}
		v.fail(mend, "%q is no network", short(text))
		return netip.Prefix{}
	}
	if p != p.Masked() {
		v.fail("write "+p.Masked().String(), "%s is an address within a network, not a network", p)
		return netip.Prefix{}
	}
	return p
}

func (m member) network() Network {
	o := m.object("network")
	n := Network{Name: m.name}
	if v, ok := o.need("subnet", "write its addresses, such as \"subnet: 192.0.2.0/24\""); ok {
		n.Subnet = v.prefix()
	}
	if v, ok := o.get("gateway"); ok {
		n.Gateway = v.address()
	}
	if v, ok := o.get("vlan"); ok {
		n.VLAN, _ = v.number(1, 4094, "VLAN tags are 1 to 4094 (IEEE 802.1Q); leave it out for untagged frames")
	}
	if v, ok := o.get("mtu"); ok {
		n.MTU, _ = v.number(1280, 9216, "the usual values are 1500 and 9000; leave it out for the card's default")
	}
	return n
}

func (m member) site() Site {
	o := m.object("site")
	s := Site{Name: m.name}
	if v, ok := o.get("standby_of"); ok {
		s.StandbyOf, _ = v.text()
	}
	if v, ok := o.get("witness"); ok {
		s.Witness, _ = v.text()
	}
	s.Consensus = texts(o, "consensus")
	return s
}

func (v value) user() User {
	o := v.object("user")
	var u User
	if v, ok := o.need("name", "give the user's login name"); ok {
		u.Name, _ = v.text()
	}
	if _, ok := o.need("keys", "list the user's public SSH keys: there are no passwords"); ok {
		u.Keys = texts(o, "keys")
	}
	if v, ok := o.get("sudo"); ok {
		u.Sudo = v.truth()
	}
	return u
}

func (v value) vip() VIP {
	o := v.object("vip")
	var p VIP
	if v, ok := o.need("name", "give it a name, such as \"name: database\""); ok {
		p.Name, _ = v.text()
	}
	if v, ok := o.get("site"); ok {
		p.Site, _ = v.text()
	}
	p.Sites = texts(o, "sites")
	if v, ok := o.need("address", "give it a free address of its network"); ok {
		p.Address = v.address()
	}
	if v, ok := o.get("network"); ok {
		p.Network, _ = v.text()
	}
	if v, ok := o.need("on", "write balancers or databases"); ok {
		text, _ := v.text()
		switch p.On = plan.Holder(text); p.On {
		case plan.OnBalancers, plan.OnDatabases:
		default:
			v.fail("write balancers, or databases for the writable primary itself", "%q is no place for a virtual address", short(text))
			p.On = ""
		}
	}
	if v, ok := o.need("router_id", "choose a VRRP id of 1 to 255 that nothing else on the network uses"); ok {
		p.RouterID, _ = v.number(1, 255, "VRRP ids are 1 to 255 (RFC 9568, 5.2.3)")
	}
	p.Names = texts(o, "names")
	p.ReadWrite = postgresPort
	if p.On == plan.OnBalancers {
		p.ReadOnly, p.HTTP, p.HTTPS, p.Gateway, p.Tunnel = readOnlyPort, httpPort, httpsPort, gatewayPort, tunnelPort
	}
	if v, ok := o.get("ports"); ok {
		ports := v.object("ports")
		for key, into := range p.ports() {
			if v, ok := ports.get(key); ok {
				*into, _ = v.number(1, 65535, "ports are 1 to 65535")
			}
		}
	}
	if v, ok := o.get("certificate"); ok {
		p.Certificate = v.certificate()
	}
	return p
}

// ports are the ports of a virtual address by their fields.
func (v *VIP) ports() map[string]*int {
	return map[string]*int{"read_write": &v.ReadWrite, "read_only": &v.ReadOnly,
		"http": &v.HTTP, "https": &v.HTTPS, "gateway": &v.Gateway, "tunnel": &v.Tunnel}
}

func (v value) certificate() *Certificate {
	o := v.object("certificate")
	var c Certificate
	if v, ok := o.need("chain", "name the file with the certificate and those above it, PEM"); ok {
		c.Chain, _ = v.text()
	}
	if v, ok := o.need("key", "name the file with the certificate's private key, PEM"); ok {
		c.Key, _ = v.text()
	}
	return &c
}

func (v value) database() plan.Database {
	o := v.object("database")
	var d plan.Database
	if v, ok := o.need("name", "give the database's name"); ok {
		d.Name, _ = v.text()
	}
	d.Owner = d.Name
	if v, ok := o.get("owner"); ok {
		d.Owner, _ = v.text()
	}
	d.UsedBy = texts(o, "used_by")
	return d
}

func (v value) dispatcherRole(d *plan.Swarm) {
	o := v.object("dispatcher_role")
	if v, ok := o.get("autolock"); ok {
		d.Autolock = v.truth()
	}
	if v, ok := o.get("data_path_port"); ok {
		d.DataPathPort, _ = v.number(1024, 49151, "Docker takes 1024 to 49151; 4789 is VXLAN's own, which VMware NSX uses as well")
	}
}

func (v value) databaseRole(d *DatabaseRole) {
	o := v.object("database_role")
	if v, ok := o.get("max_connections"); ok {
		d.MaxConnections, _ = v.number(25, 10000, "Patroni takes 25 and more; some hundreds are usual")
	}
	if v, ok := o.get("max_slot_wal_keep"); ok {
		d.MaxSlotWALKeep, _ = v.size(64*profile.MiB, 64*profile.TiB)
	}
	if v, ok := o.get("parameters"); ok {
		for _, m := range v.members("write \"setting: value\" lines") {
			if m.node.Kind == yaml.ScalarNode && !m.empty() {
				d.Parameters[m.name] = m.node.Value
			} else {
				m.fail("write one value", "is %s, not a value", m.kind())
			}
		}
	}
	if v, ok := o.get("patroni"); ok {
		v.patroni(&d.Patroni)
	}
}

// patroni reads the times of failover. The lower bounds are Patroni's own, but for
// ttl, which its launcher takes shorter (overlays/database/usr/lib/slipway/patroni).
func (v value) patroni(p *plan.Patroni) {
	o := v.object("patroni")
	for _, f := range []struct {
		key       string
		into      *int
		low, high int
	}{
		{"ttl", &p.TTL, 8, 3600},
		{"loop_wait", &p.LoopWait, 1, 600},
		{"retry_timeout", &p.RetryTimeout, 3, 600},
		{"primary_start_timeout", &p.PrimaryStartTimeout, 0, 3600},
	} {
		if v, ok := o.get(f.key); ok {
			*f.into, _ = v.number(f.low, f.high, "give seconds, at least "+strconv.Itoa(f.low))
		}
	}
	if v, ok := o.get("maximum_lag"); ok {
		lag, _ := v.size(0, profile.TiB)
		p.MaximumLag = int64(lag)
	}
}

func (v value) machine() Node {
	o := v.object("node")
	var n Node
	if v, ok := o.need("name", "give the node a host name"); ok {
		n.Name, _ = v.text()
	}
	if v, ok := o.need("role", "write one of "+strings.Join(roles, ", ")); ok {
		n.Role, _ = v.text()
	}
	if v, ok := o.get("site"); ok {
		n.Site, _ = v.text()
	}
	if _, ok := o.need("nics", "write \"nics: [{network: …, address: …}]\""); ok {
		for _, v := range items(o, "nics") {
			n.NICs = append(n.NICs, v.nic())
		}
	}
	if v, ok := o.get("size"); ok {
		n.Size = v.machineSize()
	}
	if v, ok := o.get("vrrp_priority"); ok {
		n.VRRPPriority = v.priority()
	}
	return n
}

// priority reads a VRRP priority. 255 gets a word of its own, since keepalived
// takes it and then ignores what its checks say.
func (v value) priority() int {
	const mend = "give 1 to 254; the higher one is preferred when the address is free"
	if v.node.Kind == yaml.ScalarNode && v.node.Value == "255" {
		v.fail(mend, "255 is for the owner of an address, which keeps it whatever its health checks say (RFC 9568, 5.2.4)")
		return 0
	}
	n, _ := v.number(1, 254, mend)
	return n
}

func (v value) nic() NIC {
	o := v.object("nic")
	var n NIC
	if v, ok := o.need("network", "name one of the networks"); ok {
		n.Network, _ = v.text()
	}
	if v, ok := o.need("address", "give it an address of its network"); ok {
		n.Address = v.address()
	}
	if v, ok := o.get("mac"); ok {
		n.MAC = v.mac()
	}
	return n
}

func (v value) mac() string {
	text, ok := v.text()
	if !ok {
		return ""
	}
	a, err := net.ParseMAC(text)
	switch {
	case err != nil || len(a) != 6:
		v.fail("write six bytes, as in 52:54:00:12:34:56", "%q is no MAC address", short(text))
	case a[0]&1 != 0:
		v.fail("the first byte of a card's own address is even", "%s is a group address, no card has it", text)
	case a.String() == "00:00:00:00:00:00":
		v.fail("write the card's address, as the hypervisor shows it", "no card has this address")
	default:
		return a.String()
	}
	return ""
}

func (v value) machineSize() Size {
	o := v.object("size")
	var s Size
	if v, ok := o.get("cpus"); ok {
		s.CPUs, _ = v.number(1, 512, "give the number of virtual processors")
	}
	if v, ok := o.get("memory"); ok {
		s.Memory, _ = v.size(512*profile.MiB, 24*profile.TiB)
	}
	if v, ok := o.get("disk"); ok {
		s.Disk, _ = v.size(8*profile.GiB, 256*profile.TiB)
	}
	return s
}
