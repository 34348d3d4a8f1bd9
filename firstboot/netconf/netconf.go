// Package netconf reads the network configuration that a seed carries and
// writes it as files of systemd-networkd.
//
// In comes one of three formats, all of which end in the one model Config:
//
//   - network-config version 1 (cloud-init documentation, "Networking Config
//     Version 1"): what Proxmox writes;
//   - network-config version 2 (cloud-init documentation, "Networking Config
//     Version 2"; the subset of netplan that makes sense in a virtual machine);
//   - network_data.json (OpenStack Nova specification, "Network data schema").
//
// Out go .link, .netdev and .network files (systemd.link(5), systemd.netdev(5),
// systemd.network(5)). What a format has and this package has not is never
// swallowed: it comes back as a Warning with file and line. What is wrong is
// an error, Mistakes, that lists every mistake found, each with its line.
//
// An interface that the configuration matches by MAC address is matched by its
// permanent address: a VLAN or a bridge inherits the MAC of the interface
// below it, and MACAddress= would match all of them.
//
// set-name becomes a .link file, so that udev gives the name at every later
// boot before anything else sees the interface. At the boot that writes the
// file, udev has already named the interface; Renames tells what is still to
// be done then.
package netconf

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// MaxSize is the largest configuration that Parse reads. A node's takes a few
// hundred bytes.
const MaxSize = 1 << 20

// Kind says what sort of interface a Link is.
type Kind string

const (
	Ethernet Kind = "ethernet" // exists already and is matched
	Bond     Kind = "bond"     // created
	Bridge   Kind = "bridge"   // created
	VLAN     Kind = "vlan"     // created
	Loopback Kind = "loopback" // lo
)

// Config is a machine's whole network.
type Config struct {
	// Source says where the configuration came from; it stands in the header
	// of every file.
	Source string
	Links  []Link // in the order of the configuration
}

// Link is one interface.
type Link struct {
	ID    string // the name that the configuration gives it
	Kind  Kind
	Match Match // Ethernet only; empty means: named ID

	SetName   string // name to give to the matched interface
	MAC       string // address to set, lower case with colons
	MTU       int    // bytes; 0 leaves it
	WakeOnLAN bool
	Optional  bool // the node counts as online without it
	Manual    bool // configured, but nobody brings it up
	Off       bool // kept down

	DHCP4, DHCP6   bool
	DHCP4Overrides DHCPOverrides
	DHCP6Overrides DHCPOverrides
	DHCPIdentifier string   // "mac", or "" for networkd's default, the DUID
	AcceptRA       *bool    // nil leaves it to networkd
	IPv6Privacy    bool     // temporary addresses
	LinkLocal      []string // ipv4, ipv6; nil leaves it to networkd
	LinkLocalSet   bool     // LinkLocal was given (it may be empty: none)

	Addresses []Address
	Routes    []Route
	Rules     []Rule
	DNS       []netip.Addr
	Search    []string

	Members []string // interfaces of a bond or bridge, by ID
	Bond    BondOptions
	Bridge  BridgeOptions
	VLANID  int
	Parent  string // the interface below a VLAN, by ID

	line int
}

// Match chooses existing interfaces; all that is given must hold.
type Match struct {
	Names   []string // shell globs
	MAC     string   // lower case with colons
	Drivers []string // shell globs
}

func (m Match) empty() bool { return len(m.Names) == 0 && m.MAC == "" && len(m.Drivers) == 0 }

// DHCPOverrides changes what is taken from a DHCP answer; nil leaves
// networkd's default.
type DHCPOverrides struct {
	UseDNS, UseNTP, UseHostname, UseMTU, UseRoutes, SendHostname *bool

	UseDomains  string // yes, no or route; "" for the default
	Hostname    string // sent instead of the node's
	RouteMetric int    // 0 for the default
}

// Address is one fixed address with its network.
type Address struct {
	Prefix   netip.Prefix // the address with the length of its network
	Label    string
	Lifetime string // "0" for deprecated, "forever" or ""
}

// Route is one fixed route. An invalid To is the default route of Via's family.
type Route struct {
	To     netip.Prefix
	Via    netip.Addr // invalid: the destination is on the link
	From   netip.Addr // preferred source address
	Metric int        // -1 for none given
	Table  int
	OnLink bool // Via is reached directly although no network contains it
	Type   string
	Scope  string
	MTU    int
}

// Rule is one routing policy rule.
type Rule struct {
	From, To netip.Prefix
	Table    int
	Priority int // -1 for none given
	Mark     int
	TOS      int
}

// BondOptions are the parameters of a bond, in networkd's words; empty or zero
// leaves the kernel's default.
type BondOptions struct {
	Mode, TransmitHashPolicy, LACPRate, AdSelect       string
	ARPValidate, ARPAllTargets                         string
	FailOverMAC, PrimaryReselect, Primary              string
	MIIMonitor, UpDelay, DownDelay, ARPInterval, Learn time.Duration
	ARPTargets                                         []netip.Addr
	AllSlavesActive                                    bool
	MinLinks, GratuitousARP, PacketsPerSlave           int
	ResendIGMP                                         int
}

// BridgeOptions are the parameters of a bridge; nil or zero leaves the
// kernel's default.
type BridgeOptions struct {
	STP                                      *bool
	ForwardDelay, HelloTime, MaxAge, AgeTime *time.Duration
	Priority                                 *int
	PathCost, PortPriority                   map[string]int // by member ID
}

// Warning is something in the configuration that has no effect as written.
type Warning struct {
	File string
	Line int
	Text string
}

// String reads as a compiler's message.
func (w Warning) String() string { return fmt.Sprintf("%s:%d: %s", w.File, w.Line, w.Text) }

// Mistakes is the error of a configuration that cannot be used: all that is
// wrong in it.
type Mistakes []Warning

// Error lists them, each on its line.
func (m Mistakes) Error() string {
	lines := make([]string, len(m))
	for i, w := range m {
		lines[i] = w.String()
	}
	return strings.Join(lines, "\n")
}

// Default is the network of a node that was told nothing: DHCP on every
// network card. It is a Config like any other, with one Link that matches by
// kind; virtual interfaces, which Docker makes plenty of, are left alone.
func Default() *Config {
	return &Config{
		Source: "no configuration: DHCP on every network card",
		Links: []Link{{
			ID: "default", Kind: Ethernet, Match: Match{Names: []string{anyCard}},
			DHCP4: true, DHCP6: true,
			// A card with nothing behind it must not hold up the boot.
			Optional: true,
		}},
	}
}

// anyCard in Match.Names stands for every physical network card, whatever
// naming policy named it.
const anyCard = "\x00card"

// Link returns the link of that ID, or nil.
func (c *Config) Link(id string) *Link {
	for i := range c.Links {
		if c.Links[i].ID == id {
			return &c.Links[i]
		}
	}
	return nil
}

// Name is the interface's name once the configuration is in force, or "" when
// the configuration leaves it open (a match by MAC address without set-name).
func (l *Link) Name() string {
	switch {
	case l.SetName != "":
		return l.SetName
	case l.Kind != Ethernet || l.Match.empty():
		return l.ID
	case len(l.Match.Names) == 1 && !isGlob(l.Match.Names[0]):
		return l.Match.Names[0]
	}
	return ""
}
