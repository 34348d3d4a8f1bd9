package netconf

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Dir is where systemd-networkd and udev read the files that Render makes.
const Dir = "etc/systemd/network"

// Prefix begins the name of every file that Render makes, so that those of an
// earlier configuration can be told from an administrator's own and removed.
const Prefix = "10-slipway-"

// Render writes the configuration as files, by name. The same configuration
// gives the same bytes.
func Render(cfg *Config) (map[string][]byte, error) {
	files := map[string][]byte{}
	master := map[string]*Link{}
	vlans := map[string][]string{}
	for i := range cfg.Links {
		l := &cfg.Links[i]
		for _, m := range l.Members {
			master[m] = l
		}
		if l.Kind == VLAN {
			vlans[l.Parent] = append(vlans[l.Parent], l.ID)
		}
	}
	put := func(l *Link, ext string, s *sections) error {
		name := Prefix + l.ID + ext
		if _, dup := files[name]; dup {
			return fault.New(fault.Input, "two interfaces are named %s", l.ID)
		}
		files[name] = s.file(cfg.Source)
		return nil
	}
	for i := range cfg.Links {
		l := &cfg.Links[i]
		if s := linkFile(l); s != nil {
			if err := put(l, ".link", s); err != nil {
				return nil, err
			}
		}
		if s := netdevFile(l); s != nil {
			if err := put(l, ".netdev", s); err != nil {
				return nil, err
			}
		}
		if err := put(l, ".network", networkFile(l, master[l.ID], vlans[l.ID])); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// sections is a file of systemd's syntax in the making. Sections stand in the
// order in which they were begun.
type sections struct{ b bytes.Buffer }

func (s *sections) begin(name string) { fmt.Fprintf(&s.b, "\n[%s]\n", name) }

func (s *sections) set(key, val string) {
	if val != "" {
		fmt.Fprintf(&s.b, "%s=%s\n", key, val)
	}
}

func (s *sections) number(key string, n int) {
	if n != 0 {
		s.set(key, strconv.Itoa(n))
	}
}

func (s *sections) boolPtr(key string, b *bool) {
	if b != nil {
		s.set(key, yesNo(*b))
	}
}

// block writes a section only if fill writes something into it.
func (s *sections) block(name string, fill func(*sections)) {
	var inner sections
	fill(&inner)
	if inner.b.Len() > 0 {
		s.begin(name)
		s.b.Write(inner.b.Bytes())
	}
}

func (s *sections) file(source string) []byte {
	header := "# Written by slipway's firstboot from " + printable(source) + ".\n" +
		"# It is written anew at every boot: change the seed, not this file.\n"
	return append([]byte(header), s.b.Bytes()...)
}

// printable keeps a source's name, which may come from outside, to its line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// linkFile is what udev shall do to the card before networkd sees it, or nil.
func linkFile(l *Link) *sections {
	if l.Kind != Ethernet || l.SetName == "" && !l.WakeOnLAN {
		return nil
	}
	s := &sections{}
	s.begin("Match")
	switch {
	case l.Match.MAC != "":
		s.set("PermanentMACAddress", l.Match.MAC)
	case len(l.Match.Names) > 0:
		s.set("OriginalName", strings.Join(l.Match.Names, " "))
	case len(l.Match.Drivers) == 0:
		s.set("OriginalName", l.ID)
	}
	s.set("Driver", strings.Join(l.Match.Drivers, " "))
	s.begin("Link")
	if l.SetName != "" {
		s.set("Name", l.SetName)
	} else {
		// The first .link file that matches is the only one that counts. These
		// are the policies of the 99-default.link that this one displaces;
		// without them the card would keep the kernel's ethN.
		s.set("NamePolicy", "keep kernel database onboard slot path")
		s.set("AlternativeNamesPolicy", "database onboard slot path mac")
	}
	if l.WakeOnLAN {
		s.set("WakeOnLan", "magic")
	}
	return s
}

func networkFile(l *Link, master *Link, vlans []string) *sections {
	s := &sections{}
	s.begin("Match")
	matchInterface(s, l)
	s.block("Link", func(s *sections) {
		s.number("MTUBytes", l.MTU)
		s.set("MACAddress", l.MAC)
		switch {
		case l.Off:
			s.set("ActivationPolicy", "always-down")
		case l.Manual:
			s.set("ActivationPolicy", "manual")
		}
		if l.Optional || l.Manual || l.Off {
			s.set("RequiredForOnline", "no")
		}
	})
	s.begin("Network")
	if master != nil {
		s.set(map[Kind]string{Bond: "Bond", Bridge: "Bridge"}[master.Kind], master.Name())
		if master.Kind == Bond && master.Bond.Primary == l.ID {
			s.set("PrimarySlave", "yes")
		}
		// A member has no addresses of its own, not even link-local ones.
		s.set("LinkLocalAddressing", "no")
		writeVLANs(s, vlans)
		if master.Kind == Bridge {
			s.block("Bridge", func(s *sections) {
				s.number("Cost", master.Bridge.PathCost[l.ID])
				if p, ok := master.Bridge.PortPriority[l.ID]; ok {
					s.set("Priority", strconv.Itoa(p))
				}
			})
		}
		return s
	}
	s.set("DHCP", map[[2]bool]string{{true, true}: "yes", {true, false}: "ipv4", {false, true}: "ipv6"}[[2]bool{l.DHCP4, l.DHCP6}])
	if l.LinkLocalSet {
		s.set("LinkLocalAddressing", linkLocal(l.LinkLocal))
	}
	s.boolPtr("IPv6AcceptRA", l.AcceptRA)
	if l.IPv6Privacy {
		s.set("IPv6PrivacyExtensions", "yes")
	}
	if l.Kind == Bridge || l.Kind == Bond || l.Kind == VLAN {
		// The interface has its addresses even before what is below it has a
		// carrier, so that services which bind to them can start.
		s.set("ConfigureWithoutCarrier", "yes")
	}
	writeVLANs(s, vlans)
	for _, a := range l.DNS {
		s.set("DNS", a.String())
	}
	s.set("Domains", strings.Join(l.Search, " "))
	for _, a := range l.Addresses {
		if a.Label == "" && a.Lifetime == "" {
			s.set("Address", a.Prefix.String())
		}
	}
	writeAddresses(s, l)
	writeRoutes(s, l)
	writeDHCP(s, l)
	return s
}

func matchInterface(s *sections, l *Link) {
	switch {
	case l.Kind != Ethernet:
		s.set("Name", l.Name())
		return
	case len(l.Match.Names) == 1 && l.Match.Names[0] == anyCard:
		s.set("Type", "ether")
		s.set("Kind", "!*")
		return
	case l.Match.MAC != "":
		s.set("PermanentMACAddress", l.Match.MAC)
	case l.SetName != "":
		s.set("Name", l.SetName)
	case len(l.Match.Names) > 0:
		s.set("Name", strings.Join(l.Match.Names, " "))
	case len(l.Match.Drivers) == 0:
		s.set("Name", l.ID)
	}
	s.set("Driver", strings.Join(l.Match.Drivers, " "))
}

func writeVLANs(s *sections, vlans []string) {
	for _, v := range vlans {
		s.set("VLAN", v)
	}
}

func linkLocal(words []string) string {
	switch v4, v6 := contains(words, "ipv4"), contains(words, "ipv6"); {
	case v4 && v6:
		return "yes"
	case v4:
		return "ipv4"
	case v6:
		return "ipv6"
	}
	return "no"
}

func writeAddresses(s *sections, l *Link) {
	for _, a := range l.Addresses {
		if a.Label == "" && a.Lifetime == "" {
			continue
		}
		s.begin("Address")
		s.set("Address", a.Prefix.String())
		s.set("Label", a.Label)
		s.set("PreferredLifetime", a.Lifetime)
	}
}

func writeRoutes(s *sections, l *Link) {
	for _, rt := range l.Routes {
		s.begin("Route")
		if rt.To.IsValid() {
			s.set("Destination", rt.To.String())
		}
		if rt.Via.IsValid() {
			s.set("Gateway", rt.Via.String())
		}
		if rt.OnLink {
			s.set("GatewayOnLink", "yes")
		}
		if rt.From.IsValid() {
			s.set("PreferredSource", rt.From.String())
		}
		if rt.Metric >= 0 {
			s.set("Metric", strconv.Itoa(rt.Metric))
		}
		s.number("Table", rt.Table)
		s.set("Type", rt.Type)
		s.set("Scope", rt.Scope)
		s.number("MTUBytes", rt.MTU)
	}
	for _, r := range l.Rules {
		s.begin("RoutingPolicyRule")
		if r.From.IsValid() {
			s.set("From", r.From.String())
		}
		if r.To.IsValid() {
			s.set("To", r.To.String())
		}
		s.number("Table", r.Table)
		if r.Priority >= 0 {
			s.set("Priority", strconv.Itoa(r.Priority))
		}
		s.number("FirewallMark", r.Mark)
		s.number("TypeOfService", r.TOS)
	}
}

func writeDHCP(s *sections, l *Link) {
	s.block("DHCPv4", func(s *sections) {
		s.set("ClientIdentifier", l.DHCPIdentifier)
		o := l.DHCP4Overrides
		s.boolPtr("UseDNS", o.UseDNS)
		s.boolPtr("UseNTP", o.UseNTP)
		s.boolPtr("UseHostname", o.UseHostname)
		s.boolPtr("UseMTU", o.UseMTU)
		s.boolPtr("UseRoutes", o.UseRoutes)
		s.boolPtr("SendHostname", o.SendHostname)
		s.set("Hostname", o.Hostname)
		s.set("UseDomains", o.UseDomains)
		s.number("RouteMetric", o.RouteMetric)
	})
	s.block("DHCPv6", func(s *sections) {
		o := l.DHCP6Overrides
		s.boolPtr("UseDNS", o.UseDNS)
		s.boolPtr("UseNTP", o.UseNTP)
		s.boolPtr("UseHostname", o.UseHostname)
		s.boolPtr("SendHostname", o.SendHostname)
		s.set("Hostname", o.Hostname)
		s.set("UseDomains", o.UseDomains)
	})
	s.block("IPv6AcceptRA", func(s *sections) {
		// Routes of IPv6 come from the router's advertisement, whatever DHCPv6 says.
		s.number("RouteMetric", l.DHCP6Overrides.RouteMetric)
	})
}

func netdevFile(l *Link) *sections {
	s := &sections{}
	kinds := map[Kind]string{Bond: "bond", Bridge: "bridge", VLAN: "vlan"}
	if kinds[l.Kind] == "" {
		return nil
	}
	s.begin("NetDev")
	s.set("Name", l.ID)
	s.set("Kind", kinds[l.Kind])
	s.set("MACAddress", l.MAC)
	s.number("MTUBytes", l.MTU)
	switch l.Kind {
	case VLAN:
		s.begin("VLAN")
		s.set("Id", strconv.Itoa(l.VLANID))
	case Bond:
		s.block("Bond", func(s *sections) { writeBond(s, &l.Bond) })
	case Bridge:
		s.block("Bridge", func(s *sections) { writeBridge(s, &l.Bridge) })
	}
	return s
}

func writeBond(s *sections, b *BondOptions) {
	s.set("Mode", b.Mode)
	s.set("TransmitHashPolicy", b.TransmitHashPolicy)
	s.set("LACPTransmitRate", b.LACPRate)
	s.set("AdSelect", b.AdSelect)
	s.span("MIIMonitorSec", b.MIIMonitor)
	s.span("UpDelaySec", b.UpDelay)
	s.span("DownDelaySec", b.DownDelay)
	s.span("LearnPacketIntervalSec", b.Learn)
	s.span("ARPIntervalSec", b.ARPInterval)
	var targets []string
	for _, a := range b.ARPTargets {
		targets = append(targets, a.String())
	}
	sort.Strings(targets)
	s.set("ARPIPTargets", strings.Join(targets, " "))
	s.set("ARPValidate", b.ARPValidate)
	s.set("ARPAllTargets", b.ARPAllTargets)
	s.set("FailOverMACPolicy", b.FailOverMAC)
	s.set("PrimaryReselectPolicy", b.PrimaryReselect)
	if b.AllSlavesActive {
		s.set("AllSlavesActive", "yes")
	}
	s.number("MinLinks", b.MinLinks)
	s.number("GratuitousARP", b.GratuitousARP)
	s.number("PacketsPerSlave", b.PacketsPerSlave)
	s.number("ResendIGMP", b.ResendIGMP)
}

func writeBridge(s *sections, b *BridgeOptions) {
	s.boolPtr("STP", b.STP)
	for _, t := range []struct {
		key string
		d   *time.Duration
	}{{"ForwardDelaySec", b.ForwardDelay}, {"HelloTimeSec", b.HelloTime}, {"MaxAgeSec", b.MaxAge}, {"AgeingTimeSec", b.AgeTime}} {
		if t.d != nil {
			s.set(t.key, span(*t.d))
		}
	}
	if b.Priority != nil {
		s.set("Priority", strconv.Itoa(*b.Priority))
	}
}

func (s *sections) span(key string, d time.Duration) {
	if d != 0 {
		s.set(key, span(d))
	}
}

// span writes a length of time as systemd.time(7) reads it.
func span(d time.Duration) string {
	if d%time.Second == 0 {
		return strconv.FormatInt(int64(d/time.Second), 10) + "s"
	}
	return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
}
