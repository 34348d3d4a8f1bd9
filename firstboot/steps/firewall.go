package steps

import (
	"context"
	_ "embed"
	"fmt"
	"regexp"
	"strings"
	"text/template"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/node"
)

//go:embed nftables.conf.tmpl
var rulesetTemplate string

// RulesetPath is where the firewall's rules stand.
const RulesetPath = "/etc/slipway/nftables.conf"

// Firewall closes every port but those of the role marker. The rules are one
// table of their own, replaced in one transaction: what others, such as
// Docker, keep in the kernel stays.
type Firewall struct{}

func (Firewall) Name() string { return "firewall" }

func (Firewall) Apply(ctx context.Context, n *node.Node) error {
	ruleset, err := Ruleset(n.Role.Ports, nil)
	if err != nil {
		return err
	}
	if _, err := n.Ensure(RulesetPath, 0o644, ruleset); err != nil {
		return err
	}
	// The kernel forgets at every boot, so the rules are always loaded; within a
	// boot the same rules are loaded once more without effect on connections.
	_, err = n.Command(ctx, "nft", "-f", RulesetPath)
	return err
}

// Ruleset renders the firewall for a role's ports and its peers' addresses.
func Ruleset(ports []manifest.Port, peers []string) (string, error) {
	type rule struct{ Match, Peers, Why string }
	var data struct {
		Peers4, Peers6 []string
		Any, Cluster   []rule
		Published      []string // tcp and udp ports that containers may answer at
	}
	for _, p := range peers {
		if strings.Contains(p, ":") {
			data.Peers6 = append(data.Peers6, p)
		} else {
			data.Peers4 = append(data.Peers4, p)
		}
	}
	for _, p := range ports {
		match, err := portMatch(p)
		if err != nil {
			return "", err
		}
		r := rule{Match: match, Why: oneLine(p.Why)}
		switch p.From {
		case "any":
			data.Any = append(data.Any, r)
		case "cluster":
			data.Cluster = append(data.Cluster, r)
		default:
			return "", fmt.Errorf("role marker: port %s is open to %q; it must be any or cluster", p.Port, p.From)
		}
		if p.Proto != "vrrp" {
			source := ""
			if p.From == "cluster" {
				source = "cluster"
			}
			for _, family := range families(source) {
				data.Published = append(data.Published, fmt.Sprintf("%sct original protocol %s ct original proto-dst %s", family, p.Proto, p.Port))
			}
		}
	}
	t, err := template.New("nftables.conf").Parse(rulesetTemplate)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = t.Execute(&b, data)
	return b.String(), err
}

func families(source string) []string {
	if source == "" {
		return []string{""}
	}
	return []string{"ip saddr @cluster4 ", "ip6 saddr @cluster6 "}
}

var portRange = regexp.MustCompile(`^[0-9]{1,5}(-[0-9]{1,5})?$`)

func portMatch(p manifest.Port) (string, error) {
	switch {
	case p.Proto == "vrrp":
		return "meta l4proto vrrp", nil
	case p.Proto != "tcp" && p.Proto != "udp":
		return "", fmt.Errorf("role marker: port %s has protocol %q; it must be tcp, udp or vrrp", p.Port, p.Proto)
	case !portRange.MatchString(p.Port):
		return "", fmt.Errorf("role marker: %q is not a port or a range of ports", p.Port)
	}
	return p.Proto + " dport " + p.Port, nil
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
