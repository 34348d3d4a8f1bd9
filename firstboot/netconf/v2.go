package netconf

import (
	"net/netip"
	"strings"
	"time"
)

// readV2 reads network-config version 2.
func readV2(root value, cfg *Config) {
	for _, e := range root.entries() {
		switch e.key {
		case "version":
		case "renderer":
			root.warn(e.line, "renderer has no effect: the node always uses systemd-networkd")
		case "ethernets":
			readV2Links(e.value, cfg, Ethernet)
		case "bonds":
			readV2Links(e.value, cfg, Bond)
		case "bridges":
			readV2Links(e.value, cfg, Bridge)
		case "vlans":
			readV2Links(e.value, cfg, VLAN)
		default:
			root.warn(e.line, "%s is not known here (ethernets, bonds, bridges and vlans are)", e.key)
		}
	}
}

func readV2Links(section value, cfg *Config, kind Kind) {
	for _, e := range section.entries() {
		l := Link{ID: e.key, Kind: kind, line: e.line}
		if !ifname.MatchString(e.key) {
			section.failAt(e.line, "%q cannot name an interface: at most 15 letters, digits, dots, hyphens and underscores", e.key)
			continue
		}
		if e.key == "lo" && kind == Ethernet {
			l.Kind = Loopback
		}
		for _, k := range e.entries() {
			if !readV2Key(k, &l) {
				section.warn(k.line, "%s: key %q is not known here and has no effect", e.key, k.key)
			}
		}
		if l.SetName != "" && (l.Match.empty() || len(l.Match.Names) > 0 && isGlob(l.Match.Names[0])) && l.Match.MAC == "" {
			section.failAt(e.line, "%s: set-name needs a match: by macaddress, so that it is clear which interface is meant", e.key)
		}
		if kind == VLAN && l.Parent == "" {
			section.failAt(e.line, "%s: a VLAN needs link:, the interface that it stands on", e.key)
		}
		if _, ok := e.get("id"); kind == VLAN && !ok {
			section.failAt(e.line, "%s: a VLAN needs id:, its number", e.key)
		}
		cfg.Links = append(cfg.Links, l)
	}
}

// readV2Key reads one key of a link and says whether it is known for its kind.
func readV2Key(k entry, l *Link) bool {
	switch l.Kind {
	case Ethernet:
		switch k.key {
		case "match":
			readMatch(k.value, l)
			return true
		case "set-name":
			l.SetName = k.interfaceName()
			return true
		case "wakeonlan":
			l.WakeOnLAN = k.boolean()
			return true
		}
	case Bond, Bridge:
		switch k.key {
		case "interfaces":
			l.Members = k.strings()
			return true
		case "parameters":
			if l.Kind == Bond {
				readV2Bond(k.value, &l.Bond)
			} else {
				readV2Bridge(k.value, &l.Bridge)
			}
			return true
		}
	case VLAN:
		switch k.key {
		case "id":
			l.VLANID = k.integer(0, 4094)
			return true
		case "link":
			l.Parent = k.str()
			return true
		}
	}
	return readV2Common(k, l)
}

func readV2Common(k entry, l *Link) bool {
	switch k.key {
	case "renderer":
		k.warn(k.line, "renderer has no effect: the node always uses systemd-networkd")
	case "dhcp4":
		l.DHCP4 = k.boolean()
	case "dhcp6":
		l.DHCP6 = k.boolean()
	case "dhcp4-overrides":
		readOverrides(k.value, &l.DHCP4Overrides)
	case "dhcp6-overrides":
		readOverrides(k.value, &l.DHCP6Overrides)
	case "dhcp-identifier":
		if k.one("mac", "duid") == "mac" {
			l.DHCPIdentifier = "mac"
		}
	case "accept-ra":
		l.AcceptRA = k.booleanPtr()
	case "ipv6-privacy":
		l.IPv6Privacy = k.boolean()
	case "link-local":
		l.LinkLocalSet = true
		for _, item := range k.items() {
			l.LinkLocal = append(l.LinkLocal, item.one("ipv4", "ipv6"))
		}
	case "addresses":
		for _, item := range k.items() {
			readV2Address(item, l)
		}
	case "gateway4", "gateway6":
		if gw := k.addr(); gw.IsValid() {
			if gw.Is4() != (k.key == "gateway4") {
				k.fail(k.node, "%s: %s is of the other IP version", k.key, gw)
			}
			l.Routes = append(l.Routes, Route{Via: gw, Metric: -1})
		}
	case "nameservers":
		for _, n := range k.entries() {
			switch n.key {
			case "addresses":
				l.DNS = append(l.DNS, n.addrs()...)
			case "search":
				l.Search = append(l.Search, n.words()...)
			default:
				k.warn(n.line, "nameservers: key %q is not known here and has no effect", n.key)
			}
		}
	case "routes":
		for _, item := range k.items() {
			readV2Route(item, l)
		}
	case "routing-policy":
		for _, item := range k.items() {
			readRule(item, l)
		}
	case "macaddress":
		l.MAC = k.mac()
	case "mtu":
		l.MTU = k.integer(68, 65535)
	case "optional":
		l.Optional = k.boolean()
	case "activation-mode":
		switch k.one("manual", "off") {
		case "manual":
			l.Manual = true
		case "off":
			l.Off = true
		}
	default:
		return false
	}
	return true
}

func readMatch(v value, l *Link) {
	for _, k := range v.entries() {
		switch k.key {
		case "name":
			l.Match.Names = k.strings()
		case "macaddress":
			l.Match.MAC = k.mac()
		case "driver":
			l.Match.Drivers = k.strings()
		default:
			v.warn(k.line, "match: key %q is not known here and has no effect", k.key)
		}
	}
	for _, s := range append(append([]string{}, l.Match.Names...), l.Match.Drivers...) {
		if strings.ContainsAny(s, " \t!") {
			v.fail(v.node, "match: %q holds a character that no interface or driver has", s)
		}
	}
}

func readV2Address(v value, l *Link) {
	if v.node.Kind == 0 || len(v.node.Content) == 0 {
		if p := v.prefix(false); p.IsValid() {
			l.Addresses = append(l.Addresses, Address{Prefix: p})
		}
		return
	}
	for _, e := range v.entries() {
		p, err := netip.ParsePrefix(e.key)
		if err != nil {
			v.failAt(e.line, "addresses: %q is not an address with the length of its network, such as 192.0.2.10/24", e.key)
			continue
		}
		a := Address{Prefix: p}
		for _, k := range e.entries() {
			switch k.key {
			case "label":
				a.Label = k.interfaceName()
			case "lifetime":
				a.Lifetime = k.one("0", "forever")
			default:
				v.warn(k.line, "addresses: key %q is not known here and has no effect", k.key)
			}
		}
		l.Addresses = append(l.Addresses, a)
	}
}

func readV2Route(v value, l *Link) {
	rt := Route{Metric: -1}
	var isDefault bool
	for _, k := range v.entries() {
		switch k.key {
		case "to":
			if s := k.str(); s == "default" {
				isDefault = true
			} else {
				rt.To = k.prefix(true)
			}
		case "via":
			rt.Via = k.addr()
		case "from":
			rt.From = k.addr()
		case "metric":
			rt.Metric = k.integer(0, 1<<31-1)
		case "table":
			rt.Table = k.integer(1, 1<<31-1)
		case "on-link":
			rt.OnLink = k.boolean()
		case "type":
			rt.Type = k.one("unicast", "blackhole", "unreachable", "prohibit", "throw", "local", "broadcast", "anycast", "multicast")
		case "scope":
			rt.Scope = k.one("global", "link", "host")
		case "mtu":
			rt.MTU = k.integer(68, 65535)
		default:
			v.warn(k.line, "routes: key %q is not known here and has no effect", k.key)
		}
	}
	finishRoute(v, l, rt, isDefault)
}

// finishRoute checks a route as a whole and adds it to the link.
func finishRoute(v value, l *Link, rt Route, isDefault bool) {
	switch {
	case !isDefault && !rt.To.IsValid():
		v.fail(v.node, "a route needs its destination: a network, or default")
		return
	case isDefault && !rt.Via.IsValid():
		v.fail(v.node, "a default route needs its gateway")
		return
	}
	if rt.To.IsValid() {
		if m := rt.To.Masked(); m != rt.To {
			v.warn(v.node.Line, "the route to %s is taken to be to %s", rt.To, m)
			rt.To = m
		}
		if rt.Via.IsValid() && rt.Via.Is4() != rt.To.Addr().Is4() {
			v.fail(v.node, "the route to %s has a gateway of the other IP version, %s", rt.To, rt.Via)
			return
		}
		if rt.To.Bits() == 0 && rt.Via.IsValid() {
			rt.To = netip.Prefix{} // the default route of Via's family
		}
	}
	l.Routes = append(l.Routes, rt)
}

func readRule(v value, l *Link) {
	rule := Rule{Priority: -1}
	for _, k := range v.entries() {
		switch k.key {
		case "from":
			rule.From = k.prefix(true)
		case "to":
			rule.To = k.prefix(true)
		case "table":
			rule.Table = k.integer(1, 1<<31-1)
		case "priority":
			rule.Priority = k.integer(0, 1<<31-1)
		case "mark":
			rule.Mark = k.integer(1, 1<<31-1)
		case "type-of-service":
			rule.TOS = k.integer(1, 255)
		default:
			v.warn(k.line, "routing-policy: key %q is not known here and has no effect", k.key)
		}
	}
	if !rule.From.IsValid() && !rule.To.IsValid() && rule.Mark == 0 && rule.TOS == 0 {
		v.fail(v.node, "a routing policy needs from, to, mark or type-of-service")
		return
	}
	l.Rules = append(l.Rules, rule)
}

func readOverrides(v value, o *DHCPOverrides) {
	for _, k := range v.entries() {
		switch k.key {
		case "use-dns":
			o.UseDNS = k.booleanPtr()
		case "use-ntp":
			o.UseNTP = k.booleanPtr()
		case "use-hostname":
			o.UseHostname = k.booleanPtr()
		case "use-mtu":
			o.UseMTU = k.booleanPtr()
		case "use-routes":
			o.UseRoutes = k.booleanPtr()
		case "send-hostname":
			o.SendHostname = k.booleanPtr()
		case "use-domains":
			switch s := strings.ToLower(k.str()); s {
			case "route":
				o.UseDomains = "route"
			default:
				o.UseDomains = yesNo(k.boolean())
			}
		case "hostname":
			o.Hostname = k.str()
		case "route-metric":
			o.RouteMetric = k.integer(1, 1<<31-1)
		default:
			v.warn(k.line, "%s: key %q is not known here and has no effect", v.name, k.key)
		}
	}
}

func readV2Bond(v value, b *BondOptions) {
	for _, k := range v.entries() {
		if !bondKey(k, b) {
			v.warn(k.line, "bond: parameter %q is not known here and has no effect", k.key)
		}
	}
}

var bondModes = []string{"balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"}

// bondKey reads a bond parameter under its netplan name.
func bondKey(k entry, b *BondOptions) bool {
	switch k.key {
	case "mode":
		// The kernel also knows the modes by number, and version 1 uses it.
		if s := k.str(); len(s) == 1 && s[0] >= '0' && s[0] <= '6' {
			b.Mode = bondModes[s[0]-'0']
		} else {
			b.Mode = k.one(bondModes...)
		}
	case "lacp-rate":
		b.LACPRate = map[string]string{"slow": "slow", "fast": "fast", "0": "slow", "1": "fast"}[k.one("slow", "fast", "0", "1")]
	case "transmit-hash-policy":
		b.TransmitHashPolicy = k.one("layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac")
	case "ad-select":
		b.AdSelect = k.one("stable", "bandwidth", "count")
	case "arp-validate":
		b.ARPValidate = k.one("none", "active", "backup", "all")
	case "arp-all-targets":
		b.ARPAllTargets = k.one("any", "all")
	case "fail-over-mac-policy":
		b.FailOverMAC = k.one("none", "active", "follow")
	case "primary-reselect-policy":
		b.PrimaryReselect = k.one("always", "better", "failure")
	case "primary":
		b.Primary = k.str()
	case "mii-monitor-interval":
		b.MIIMonitor = k.duration(time.Millisecond)
	case "up-delay":
		b.UpDelay = k.duration(time.Millisecond)
	case "down-delay":
		b.DownDelay = k.duration(time.Millisecond)
	case "arp-interval":
		b.ARPInterval = k.duration(time.Millisecond)
	case "learn-packet-interval":
		b.Learn = k.duration(time.Second)
	case "arp-ip-targets":
		b.ARPTargets = k.addrs()
	case "all-slaves-active", "all-members-active":
		b.AllSlavesActive = k.boolean()
	case "min-links":
		b.MinLinks = k.integer(0, 1024)
	case "gratuitous-arp", "gratuitious-arp": // netplan keeps its old misspelling alive
		b.GratuitousARP = k.integer(0, 255)
	case "packets-per-slave", "packets-per-member":
		b.PacketsPerSlave = k.integer(0, 65535)
	case "resend-igmp":
		b.ResendIGMP = k.integer(0, 255)
	default:
		return false
	}
	return true
}

func readV2Bridge(v value, b *BridgeOptions) {
	for _, k := range v.entries() {
		switch k.key {
		case "stp":
			b.STP = k.booleanPtr()
		case "forward-delay":
			b.ForwardDelay = k.durationPtr(time.Second)
		case "hello-time":
			b.HelloTime = k.durationPtr(time.Second)
		case "max-age":
			b.MaxAge = k.durationPtr(time.Second)
		case "ageing-time", "aging-time":
			b.AgeTime = k.durationPtr(time.Second)
		case "priority":
			n := k.integer(0, 65535)
			b.Priority = &n
		case "path-cost":
			b.PathCost = perMember(k.value, 1, 1<<31-1)
		case "port-priority":
			b.PortPriority = perMember(k.value, 0, 63)
		default:
			v.warn(k.line, "bridge: parameter %q is not known here and has no effect", k.key)
		}
	}
}

func perMember(v value, lo, hi int) map[string]int {
	out := map[string]int{}
	for _, k := range v.entries() {
		out[k.key] = k.integer(lo, hi)
	}
	return out
}

// duration reads a number of units, or a number with its own unit (ms, s).
func (v value) duration(unit time.Duration) time.Duration {
	s := v.str()
	if strings.HasSuffix(s, "s") {
		if d, err := time.ParseDuration(s); err == nil && d >= 0 && d < 1000*time.Hour {
			return d
		}
		v.fail(v.node, "%s: %q is not a length of time", v.name, s)
		return 0
	}
	return time.Duration(v.integer(0, 1<<31-1)) * unit
}

func (v value) durationPtr(unit time.Duration) *time.Duration {
	d := v.duration(unit)
	return &d
}
