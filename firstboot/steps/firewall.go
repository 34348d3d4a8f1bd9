package steps

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"text/template"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/node"
)

//go:embed role.nft.tmpl
var portsTemplate string

const (
	// policyPath is the image's firewall: default deny, with sets for what is open.
	policyPath = "/usr/lib/slipway/nftables.conf"
	// PortsPath fills those sets; the policy includes it.
	PortsPath = "/etc/nftables.d/50-role.nft"
)

// Firewall opens the ports of the role marker and no other. The rules are one
// table of their own, replaced in one transaction: what others, such as
// Docker, keep in the kernel stays.
type Firewall struct{}

func (Firewall) Name() string { return "firewall" }

func (Firewall) Apply(ctx context.Context, n *node.Node) error {
	ports, err := OpenPorts(n.Role.Ports, nil)
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

// OpenPorts writes which ports are open, and to which peers, for nft(8).
func OpenPorts(ports []manifest.Port, peers []netip.Addr) (string, error) {
	type element struct{ Set, Element, Why string }
	var elements []element
	for _, p := range peers {
		set := "peers4"
		if p.Is6() {
			set = "peers6"
		}
		elements = append(elements, element{set, p.String(), "a peer of this node"})
	}
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
	case p.From != "any" && p.From != "cluster":
		return "", "", fmt.Errorf("port %s is open to %q; it must be any or cluster", p.Port, p.From)
	case p.Proto == "vrrp" && p.From == "cluster":
		return "proto_cluster", "vrrp", nil
	case p.Proto != "tcp" && p.Proto != "udp":
		return "", "", fmt.Errorf("port %s has protocol %q; it must be tcp, udp, or vrrp from the cluster", p.Port, p.Proto)
	case !portRange.MatchString(p.Port):
		return "", "", fmt.Errorf("%q is not a port or a range of ports", p.Port)
	}
	return p.Proto + "_" + p.From, p.Port, nil
}
