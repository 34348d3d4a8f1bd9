package steps

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

//go:embed role.nft.tmpl
var portsTemplate string

const (
	// policyPath is the image's firewall: default deny, with sets for what is open.
	policyPath = "/usr/lib/slipway/nftables.conf"
	// PortsPath fills those sets; the policy includes it.
	PortsPath = "/etc/nftables.d/50-role.nft"
)

// Firewall opens the ports of the role marker, those that the cluster's plan asks
// for, and no other. The rules are one
// table of their own, replaced in one transaction: what others, such as
// Docker, keep in the kernel stays.
type Firewall struct{}

func (Firewall) Name() string { return "firewall" }

func (Firewall) Apply(ctx context.Context, n *node.Node) error {
	wanted, to := planned(n.Member)
	ports, err := OpenPorts(append(slices.Clone(n.Role.Ports), wanted...), to)
	if err != nil {
		return err
	}
	former, err := n.Read(PortsPath)
	if err != nil {
		return err
	}
	changed, err := n.Ensure(PortsPath, 0o644, ports)
	if err != nil {
		return err
	}
	// The kernel forgets at every boot, so the rules are always loaded. Loading
	// the same rules once more has no effect on connections.
	if _, err := n.Command(ctx, "nft", "-f", policyPath); err != nil {
		if changed && len(former) > 0 {
			_, restoreErr := n.Write(PortsPath, 0o644, former)
			return fmt.Errorf("the rules stay as they were: %w", errors.Join(err, restoreErr))
		}
		return err
	}
	return nil
}

// Origins are who a port may be open to, other than the whole world.
type Origins struct {
	Peers   []netip.Prefix // the nodes of the cluster
	Clients []netip.Prefix // the networks of those who use its services
	Backup  []netip.Prefix // the nodes that this one speaks to about backups
}

// planned is what a node's cluster adds to its role: where agents answer each
// other, which certificates protect, the port of a swarm's networks, and the ports of
// the virtual addresses that may sit on this node.
func planned(m *member.Member) (ports []manifest.Port, to Origins) {
	if m == nil {
		return nil, to
	}
	for _, peer := range m.Plan.Nodes {
		to.Peers = append(to.Peers, netip.PrefixFrom(peer.Address, peer.Address.BitLen()))
		for _, a := range peer.Addresses {
			to.Peers = append(to.Peers, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
		}
	}
	to.Clients = m.Plan.Clients
	ports = append(ports, manifest.Port{Port: strconv.Itoa(plan.APIPort), Proto: "tcp", From: "any", Why: "agents of the cluster; mutual TLS"})
	for _, peer := range m.Plan.BackupPeers(m.Self.Name) {
		for _, a := range peer.Addresses {
			to.Backup = append(to.Backup, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
		}
	}
	if len(to.Backup) > 0 {
		ports = append(ports, manifest.Port{Port: strconv.Itoa(plan.BackupPort), Proto: "tcp", From: "backup", Why: "pgBackRest; mutual TLS"})
	}
	if s := m.Plan.Swarm; s != nil && m.Self.Role == plan.DispatcherRole {
		ports = append(ports, manifest.Port{Port: strconv.Itoa(s.DataPathPort), Proto: "udp", From: "cluster", Why: "overlay networks of the swarm"})
	}
	for _, v := range m.Plan.HeldBy(m.Self.Name) {
		for _, port := range []int{v.HTTP, v.HTTPS, v.Gateway, v.Tunnel} {
			if port != 0 {
				ports = append(ports, manifest.Port{Port: strconv.Itoa(port), Proto: "tcp", From: "any", Why: "virtual address " + v.Name})
			}
		}
		for _, port := range []int{v.ReadWrite, v.ReadOnly} {
			if port == 0 {
				continue
			}
			for _, from := range []string{"cluster", "clients"} {
				ports = append(ports, manifest.Port{Port: strconv.Itoa(port), Proto: "tcp", From: from, Why: "virtual address " + v.Name})
			}
		}
	}
	return ports, to
}

// OpenPorts writes which ports are open, and to whom, for nft(8).
func OpenPorts(ports []manifest.Port, to Origins) (string, error) {
	type element struct{ Set, Element, Why string }
	var elements []element
	known := map[string]bool{}
	allow := func(set string, from []netip.Prefix, why string) {
		for _, p := range from {
			family := "4"
			if p.Addr().Is6() {
				family = "6"
			}
			if text := p.Masked().String(); !known[set+text] {
				known[set+text] = true
				elements = append(elements, element{set + family, text, why})
			}
		}
	}
	allow("peers", to.Peers, "a node of the cluster")
	allow("clients", to.Clients, "computers that use the cluster's services")
	allow("backup", to.Backup, "the other side of backups")
	for _, p := range ports {
		set, value, err := opening(p)
		if err != nil {
			return "", fmt.Errorf("role marker: %w", err)
		}
		elements = append(elements, element{set, value, strings.Join(strings.Fields(p.Why), " ")})
	}
	t, err := template.New("role.nft").Parse(portsTemplate)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = t.Execute(&b, elements)
	return b.String(), err
}

var portRange = regexp.MustCompile(`^[0-9]{1,5}(-[0-9]{1,5})?$`)

// opening is the set that a port goes into, and its element.
func opening(p manifest.Port) (set, element string, err error) {
	switch {
	case p.From == "backup" && p.Proto == "tcp" && portRange.MatchString(p.Port):
		return "tcp_backup", p.Port, nil
	case p.From != "any" && p.From != "cluster" && p.From != "clients":
		return "", "", fmt.Errorf("port %s is open to %q; it must be any, cluster or clients", p.Port, p.From)
	case p.Proto == "vrrp" && p.From == "cluster":
		return "proto_cluster", "vrrp", nil
	case p.Proto != "tcp" && p.Proto != "udp":
		return "", "", fmt.Errorf("port %s has protocol %q; it must be tcp, udp, or vrrp from the cluster", p.Port, p.Proto)
	case !portRange.MatchString(p.Port):
		return "", "", fmt.Errorf("%q is not a port or a range of ports", p.Port)
	}
	return p.Proto + "_" + p.From, p.Port, nil
}
