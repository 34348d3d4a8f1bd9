package topology

import (
	"crypto/rsa"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
)

// checker looks at what only the whole file shows. A field that could not be read
// has its zero value and is passed over: it is a mistake already.
type checker struct {
	*reader
	*Topology
}

func (c *checker) check() {
	for i := range c.Nodes {
		c.site(at("nodes", i)+".site", &c.Nodes[i].Site)
	}
	for i := range c.VIPs {
		c.sitesOf(at("vips", i), &c.VIPs[i])
	}
	c.names()
	c.people()
	c.resolving()
	c.networks()
	c.machines()
	c.addressing()
	c.parts()
	c.votes()
	c.standby()
	c.virtual()
	c.databases()
	c.backup()
	c.mirror()
}

// at is the field of an item of a list.
func at(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }

// name checks a name, unless it could not be read.
func (c *checker) name(field, name string) {
	if wrong, mend := hostLabel(name); name != "" && wrong != "" {
		c.wrong(field, mend, "%s", wrong)
	}
}

// register refuses things that stand twice where each may stand once.
type register struct {
	c    *checker
	seen map[string]string // field, by thing
}

func (c *checker) register() register { return register{c: c, seen: map[string]string{}} }

func (r register) add(field, thing, mend string, format string, args ...any) {
	if thing == "" {
		return
	}
	if first, ok := r.seen[thing]; ok {
		r.c.wrong(field, mend, "%s also stands at %s, line %d", fmt.Sprintf(format, args...), first, r.c.line(first))
		return
	}
	r.seen[thing] = field
}

func (c *checker) names() {
	if len(c.Name) > 32 {
		c.wrong("name", "use 32 characters at most", "the name is %d characters long", len(c.Name))
	} else {
		c.name("name", c.Name)
	}
	if c.Domain != "" && !domainName(c.Domain) {
		c.wrong("domain", "write it as in example.internal, in lower case, without a dot at the end", "%q is no domain", short(c.Domain))
	}
	for _, n := range c.Networks {
		c.name("networks."+n.Name, n.Name)
	}
	for _, s := range c.Sites {
		field := "sites." + s.Name
		c.name(field, s.Name)
		if len(s.Name) > 24 {
			c.wrong(field, "use 24 characters at most", "the site's name is %d characters long", len(s.Name))
		}
		if len(c.nodesOf(s.Name)) == 0 && len(c.Sites) > 1 {
			c.wrong(field, "take it out, or write \"site: "+short(s.Name)+"\" in a node", "no node is in this site")
		}
	}
	// Nodes and virtual addresses share the names of DNS.
	taken := c.register()
	add := func(field, name string) {
		if c.Domain != "" {
			name = strings.TrimSuffix(name, "."+c.Domain)
		}
		taken.add(field, name, "give every node and virtual address a name of its own", "the name %s", short(name))
	}
	for i, n := range c.Nodes {
		field := at("nodes", i) + ".name"
		c.name(field, n.Name)
		if len(n.Name)+1+len(c.Domain) > 253 {
			c.wrong(field, "use a shorter one", "with its domain the name is longer than 253 characters")
		}
		add(field, n.Name)
	}
	for i, v := range c.VIPs {
		field := at("vips", i)
		c.name(field+".name", v.Name)
		add(field+".name", v.Name)
		for j, name := range v.Names {
			field := at(field+".names", j)
			if name != "" && (!domainName(name) || !hostOrAddress(name)) {
				c.wrong(field, "write it as in db.example.internal", "%q is no DNS name", short(name))
				continue
			}
			if name != v.Name && name != v.Name+"."+c.Domain {
				add(field, name)
			}
		}
	}
}

func (c *checker) nodesOf(site string) []Node {
	var found []Node
	for _, n := range c.Nodes {
		if n.Site == site {
			found = append(found, n)
		}
	}
	return found
}

func (c *checker) people() {
	taken := c.register()
	sudo := false
	for i, u := range c.Users {
		field := at("users", i)
		sudo = sudo || u.Sudo
		switch {
		case u.Name == "":
		case !unixName.MatchString(u.Name):
			c.wrong(field+".name", "use letters a to z, digits, - and _, 32 at most, and a letter in front", "%q is no login name", short(u.Name))
		case slices.Contains(systemUsers, u.Name):
			c.wrong(field+".name", "choose another; \"sudo: true\" gives a user root's rights", "%q is a user of the system", u.Name)
		}
		taken.add(field+".name", u.Name, "put all keys into one", "the user %s", short(u.Name))
		if _, given := c.lines[field+".keys"]; given && len(u.Keys) == 0 {
			c.wrong(field+".keys", "list at least one public SSH key", "there is no key, so nobody can log in as %s", short(u.Name))
		}
		for j, key := range u.Keys {
			u.Keys[j] = strings.TrimSpace(key)
			if wrong, mend := authorizedKey(key); key != "" && wrong != "" {
				c.wrong(at(field+".keys", j), mend, "%s", wrong)
			}
		}
	}
	switch {
	case len(c.Users) == 0:
		c.doubt("users", "list users with their public SSH keys", "there are no users: nobody can log in to the nodes")
	case !sudo:
		c.doubt("users", "write \"sudo: true\" for those who administer the nodes", "no user has root's rights on the nodes")
	}
}

func rsaBits(key ssh.PublicKey) int {
	if wrapped, ok := key.(ssh.CryptoPublicKey); ok {
		if k, ok := wrapped.CryptoPublicKey().(*rsa.PublicKey); ok {
			return k.N.BitLen()
		}
	}
	return 0
}

func (c *checker) resolving() {
	for i, a := range c.DNS.Servers {
		if a.IsValid() && !usable(a) {
			c.wrong(at("dns.servers", i), "give the address of a DNS server", "%s is no machine's address", a)
		}
	}
	for i, s := range c.DNS.Search {
		if s != "" && !domainName(s) {
			c.wrong(at("dns.search", i), "write it as in example.internal", "%q is no domain", short(s))
		}
	}
	for i, s := range c.NTP {
		if s != "" && !hostOrAddress(s) {
			c.wrong(at("ntp", i), "give the name or address of a time server", "%q is neither a DNS name nor an address", short(s))
		}
	}
	if len(c.NTP) == 0 {
		c.doubt("ntp", "name a time server that the nodes can reach", "there is no time server: certificates and logs need clocks that agree")
	}
	seen := c.register()
	for i, p := range c.Clients {
		if !p.IsValid() {
			continue
		}
		if p.Bits() == 0 {
			c.doubt(at("clients", i), "name the networks that applications are in", "%s lets every computer try to log in to the databases", p)
		}
		seen.add(at("clients", i), p.String(), "keep one of them", "the network %s", p)
	}
	if len(c.Clients) == 0 && c.lines["clients"] == 0 {
		for _, n := range c.Networks {
			if n.Subnet.IsValid() {
				c.Clients = append(c.Clients, n.Subnet)
			}
		}
		slices.SortFunc(c.Clients, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	}
}
