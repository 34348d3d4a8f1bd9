package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

// howToOpen says how somebody at this computer comes to the pages of brokers and
// dispatchers, whose names and addresses are known in the lab alone: nothing for a
// cluster without. The authority is a file, the store a directory.
func howToOpen(p *plan.Plan, forwards []daemon.Forward, file, authority, store string) string {
	var out strings.Builder
	at := func(name, service string) (guest netip.AddrPort, host string) {
		i := slices.IndexFunc(forwards, func(f daemon.Forward) bool { return f.Name == name && f.Service == service })
		if i < 0 {
			return guest, ""
		}
		guest, _ = netip.ParseAddrPort(forwards[i].Guest)
		return guest, forwards[i].Host
	}
	for _, v := range p.VIPs {
		guest, host := at(v.Name, daemon.Site)
		if host == "" {
			continue
		}
		name := v.Address.Addr().String()
		if len(v.Names) > 0 {
			name = v.Names[0]
		}
		rules := []string{fmt.Sprintf("MAP %s:%d %s", name, guest.Port(), host)}
		if guest, host := at(v.Name, daemon.Gateway); host != "" {
			rules = append(rules, fmt.Sprintf("MAP %s:%d %s", name, guest.Port(), host))
		}
		fmt.Fprintf(&out, "\n  chromium --user-data-dir=$(mktemp -d) --host-resolver-rules=%q https://%s/\n", strings.Join(rules, ", "), portless(name, guest))
		if !v.Certificate {
			fmt.Fprintf(&out, "  its authority, which the browser asks about:  %s\n", authority)
		}
		fmt.Fprintf(&out, "  log in as admin; the password:  slipway secret show %s %s --store %s\n", file, plan.BrokerAdmin, store)
	}
	for _, n := range p.Nodes {
		if guest, host := at(n.Name, daemon.Site); host != "" {
			address := portless(guest.Addr().String(), guest)
			fmt.Fprintf(&out, "\n  curl --cacert %s --connect-to %s:%s https://%s/\n", authority, guest, host, address)
		}
	}
	return out.String()
}

// portless is a host with the port of an HTTPS service, unless that is the usual one.
func portless(host string, at netip.AddrPort) string {
	if at.Port() == 443 {
		return host
	}
	return fmt.Sprintf("%s:%d", host, at.Port())
}
