package netconf

// Parse reads network-config of version 1 or 2, bare or under a key network:.
// file names the document in messages. An empty document gives nil: nothing
// was said about the network.
func Parse(file string, data []byte) (*Config, []Warning, error) {
	r := &report{file: file}
	root, ok := load(r, data)
	if !ok || root.null() {
		return nil, r.warnings, r.err()
	}
	if inner, ok := root.get("network"); ok {
		for _, e := range root.entries() {
			if e.key != "network" {
				r.warn(e.line, "key %q beside network: has no effect", e.key)
			}
		}
		root = inner
	}
	if root.null() {
		return nil, r.warnings, r.err()
	}
	cfg := &Config{Source: file}
	version := 0
	if v, ok := root.get("version"); ok {
		version = v.integer(1, 2)
	} else if _, ok := root.get("ethernets"); ok {
		version = 2
	} else if c, ok := root.get("config"); ok {
		if c.str2() == "disabled" {
			return nil, append(r.warnings, Warning{file, c.node.Line, "the network is disabled here; the node uses DHCP on every network card all the same"}), r.err()
		}
		version = 1
	}
	switch version {
	case 1:
		cfg.Source = file + ", version 1"
		readV1(root, cfg)
	case 2:
		cfg.Source = file + ", version 2"
		readV2(root, cfg)
	default:
		if len(r.problems) == 0 {
			r.fail(root.node, "no key version: (1 or 2) in the network configuration")
		}
	}
	if len(r.problems) == 0 {
		check(r, cfg)
	}
	if err := r.err(); err != nil {
		return nil, r.warnings, err
	}
	return cfg, r.warnings, nil
}

// str2 is str for a value that need not be scalar.
func (v value) str2() string {
	if v.null() || len(v.node.Content) > 0 {
		return ""
	}
	return v.node.Value
}

// ParseOpenStack reads network_data.json. An empty document, which Proxmox
// writes, gives nil.
func ParseOpenStack(file string, data []byte) (*Config, []Warning, error) {
	r := &report{file: file}
	root, ok := load(r, data)
	if !ok || root.null() {
		return nil, r.warnings, r.err()
	}
	cfg := &Config{Source: file}
	readOpenStack(root, cfg)
	if len(r.problems) == 0 {
		check(r, cfg)
	}
	if err := r.err(); err != nil {
		return nil, r.warnings, err
	}
	if len(cfg.Links) == 0 {
		return nil, r.warnings, nil
	}
	return cfg, r.warnings, nil
}

// check holds what no single key can know.
func check(r *report, cfg *Config) {
	byID, byMAC, byName := map[string]*Link{}, map[string]*Link{}, map[string]*Link{}
	for i := range cfg.Links {
		l := &cfg.Links[i]
		if other := byID[l.ID]; other != nil {
			r.failAt(l.line, "interface %s is given twice, first in line %d", l.ID, other.line)
			continue
		}
		byID[l.ID] = l
		if mac := l.Match.MAC; mac != "" {
			if other := byMAC[mac]; other != nil {
				r.failAt(l.line, "interfaces %s and %s have one MAC address, %s", other.ID, l.ID, mac)
			}
			byMAC[mac] = l
		}
		if name := l.Name(); name != "" {
			if other := byName[name]; other != nil {
				r.failAt(l.line, "interfaces %s and %s have one name, %s", other.ID, l.ID, name)
			}
			byName[name] = l
		}
	}
	master := map[string]string{}
	for i := range cfg.Links {
		l := &cfg.Links[i]
		for _, m := range l.Members {
			switch other := byID[m]; {
			case other == nil:
				r.failAt(l.line, "%s has a member %s, which is not in the configuration", l.ID, m)
			case m == l.ID:
				r.failAt(l.line, "%s is a member of itself", l.ID)
			case master[m] != "":
				r.failAt(l.line, "%s is a member of %s and of %s", m, master[m], l.ID)
			}
			master[m] = l.ID
		}
		if l.Kind == VLAN && byID[l.Parent] == nil {
			r.failAt(l.line, "VLAN %s stands on %q, which is not in the configuration", l.ID, l.Parent)
		}
		if l.Kind == Bond && l.Bond.Primary != "" && !contains(l.Members, l.Bond.Primary) {
			r.failAt(l.line, "the primary of bond %s, %s, is not one of its members", l.ID, l.Bond.Primary)
		}
	}
	checkLoops(r, cfg, byID, master)
	checkAddresses(r, cfg, master)
}

// checkLoops refuses interfaces that stand on themselves by way of others.
func checkLoops(r *report, cfg *Config, byID map[string]*Link, master map[string]string) {
	for i := range cfg.Links {
		// Up from each link: to its bond or bridge, and from a VLAN down to its
		// parent. Either way must end within as many steps as there are links.
		for _, up := range []func(string) string{
			func(id string) string { return master[id] },
			func(id string) string {
				if l := byID[id]; l != nil && l.Kind == VLAN {
					return l.Parent
				}
				return ""
			},
		} {
			id := cfg.Links[i].ID
			for steps := 0; id != ""; steps++ {
				if steps > len(cfg.Links) {
					r.failAt(cfg.Links[i].line, "%s stands on itself by way of other interfaces", cfg.Links[i].ID)
					return
				}
				id = up(id)
			}
		}
	}
}

func checkAddresses(r *report, cfg *Config, master map[string]string) {
	owner := map[string]string{}
	for i := range cfg.Links {
		l := &cfg.Links[i]
		for _, a := range l.Addresses {
			ip := a.Prefix.Addr().String()
			if other := owner[ip]; other != "" && other != l.ID {
				r.warn(l.line, "%s and %s both have the address %s", other, l.ID, ip)
			}
			owner[ip] = l.ID
		}
		if m := master[l.ID]; m != "" && (l.DHCP4 || l.DHCP6 || len(l.Addresses) > 0) {
			r.warn(l.line, "%s is a member of %s: its own addresses and DHCP have no effect, give them to %s", l.ID, m, m)
		}
		for j := range l.Routes {
			rt := &l.Routes[j]
			if !rt.Via.IsValid() || rt.OnLink || rt.Via.IsLinkLocalUnicast() || reaches(l, rt) {
				continue
			}
			// Hosters that give single addresses (/32) mean just this.
			rt.OnLink = true
			r.warn(l.line, "%s: the gateway %s is in none of its networks; it is taken to be on the link", l.ID, rt.Via)
		}
	}
}

// reaches says whether the gateway is in a network of the link, or may be for
// all that can be known before DHCP has answered.
func reaches(l *Link, rt *Route) bool {
	if rt.Via.Is4() && l.DHCP4 || rt.Via.Is6() && (l.DHCP6 || l.AcceptRA == nil || *l.AcceptRA) {
		return true
	}
	for _, a := range l.Addresses {
		if a.Prefix.Masked().Contains(rt.Via) {
			return true
		}
	}
	for _, other := range l.Routes {
		if !other.Via.IsValid() && other.To.IsValid() && other.To.Contains(rt.Via) {
			return true
		}
	}
	return false
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
