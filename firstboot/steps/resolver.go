package steps

import (
	"context"
	"net/netip"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/node"
)

const resolvedDropIn = "/etc/systemd/resolved.conf.d/20-slipway.conf"

// Resolver sets name servers for the whole node; those of single network cards
// are the network's.
type Resolver struct{}

func (Resolver) Name() string { return "resolver" }

func (Resolver) Apply(ctx context.Context, n *node.Node) error {
	c := &n.User.Config
	content := ""
	switch r := c.ResolvConf; {
	case r == nil:
	case !c.ManageResolvConf:
		n.Warn("", "resolv_conf", "has no effect without manage_resolv_conf: true")
	default:
		var servers, domains []string
		for _, s := range r.Nameservers {
			if _, err := netip.ParseAddr(s); err != nil {
				n.Warn("", "resolv_conf.nameservers", "one is not an IP address, and is left out")
				continue
			}
			servers = append(servers, s)
		}
		for _, d := range append(append([]string(nil), r.SearchDomains...), r.Domain) {
			if d == "" {
				continue
			}
			if !cloudconfig.ValidHostname(d) {
				n.Warn("", "resolv_conf", "a domain to search is not a domain, and is left out")
				continue
			}
			domains = append(domains, d)
		}
		content = "[Resolve]\n"
		if len(servers) > 0 {
			content += "DNS=" + strings.Join(servers, " ") + "\n"
		}
		if len(domains) > 0 {
			content += "Domains=" + strings.Join(domains, " ") + "\n"
		}
	}
	changed, err := n.Ensure(resolvedDropIn, 0o644, content)
	if err != nil || !changed {
		return err
	}
	return n.Nudge(ctx, "try-restart", "systemd-resolved.service")
}
