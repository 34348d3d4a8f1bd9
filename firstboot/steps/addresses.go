package steps

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/acd"
	"github.com/slipwayhq/slipway/firstboot/netconf"
	"github.com/slipwayhq/slipway/firstboot/node"
)

// carrierLimit is how long a card may take until it has a link; one that takes
// longer uses its addresses without asking.
const carrierLimit = time.Second

// Probe asks, on a node of a cluster and before its network starts, whether
// somebody else has one of its fixed IPv4 addresses. The network step leaves
// such an address alone, so that a node that is started twice, or has a wrong
// address, does not disturb the one that has it.
type Probe struct{}

func (Probe) Name() string { return "probe" }

func (Probe) Apply(ctx context.Context, n *node.Node) error {
	n.Taken = nil
	if n.Member == nil {
		return nil
	}
	taken, err := probe(ctx, n)
	n.Taken = taken
	return err
}

// claim is an address that a card is to have.
type claim struct {
	card    net.Interface
	address netip.Addr
}

// probe asks for all addresses at the same time, and returns who has them.
func probe(ctx context.Context, n *node.Node) (map[netip.Addr]string, error) {
	cards, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var own []net.HardwareAddr
	for _, c := range cards {
		own = append(own, c.HardwareAddr)
	}
	var (
		mu       sync.Mutex
		group    sync.WaitGroup
		taken    = map[netip.Addr]string{}
		problems []error
	)
	for _, c := range claims(n, cards) {
		group.Go(func() {
			if !linked(ctx, n, c.card.Name) {
				return
			}
			holder, err := acd.Probe(ctx, &c.card, c.address, own)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				problems = append(problems, err)
			}
			if holder != nil {
				taken[c.address] = fmt.Sprintf("%s on %s", holder, c.card.Name)
			}
		})
	}
	group.Wait()
	if len(problems) > 0 {
		return taken, problems[0]
	}
	return taken, nil
}

// claims are the fixed IPv4 addresses that cards are to have and do not have yet.
func claims(n *node.Node, cards []net.Interface) (out []claim) {
	if n.Seed == nil || n.Seed.Network == nil {
		return nil
	}
	for _, link := range n.Seed.Network.Links {
		if link.Kind != netconf.Ethernet || link.Off || link.Manual {
			continue
		}
		i := slices.IndexFunc(cards, func(c net.Interface) bool { return meant(link, c) })
		if i < 0 {
			continue
		}
		has, err := cards[i].Addrs()
		if err != nil {
			continue
		}
		for _, a := range link.Addresses {
			present := slices.ContainsFunc(has, func(h net.Addr) bool { return strings.HasPrefix(h.String(), a.Prefix.Addr().String()+"/") })
			if a.Prefix.Addr().Is4() && !present {
				out = append(out, claim{cards[i], a.Prefix.Addr()})
			}
		}
	}
	return out
}

// meant reports whether a configuration's link is this card.
func meant(l netconf.Link, c net.Interface) bool {
	switch {
	case l.Match.MAC != "":
		return l.Match.MAC == c.HardwareAddr.String()
	case len(l.Match.Names) > 0:
		return slices.ContainsFunc(l.Match.Names, func(glob string) bool { ok, _ := path.Match(glob, c.Name); return ok })
	}
	return len(l.Match.Drivers) == 0 && c.Name == l.ID
}

// linked brings a card up and waits until it has a link, which virtual machines
// have at once.
func linked(ctx context.Context, n *node.Node, name string) bool {
	up := false
	for deadline := time.Now().Add(carrierLimit); time.Now().Before(deadline) && ctx.Err() == nil; {
		card, err := net.InterfaceByName(name)
		if err != nil {
			return false
		}
		if card.Flags&net.FlagRunning != 0 && card.Flags&net.FlagUp != 0 {
			return true
		}
		if !up {
			if _, err := n.Command(ctx, "ip", "link", "set", "dev", name, "up"); err != nil {
				return false
			}
			up = true
			continue
		}
		node.Sleep(ctx, 20*time.Millisecond)
	}
	return false
}

// withoutTaken is a configuration without the addresses that others have.
func withoutTaken(c *netconf.Config, taken map[netip.Addr]string) *netconf.Config {
	if len(taken) == 0 {
		return c
	}
	without := *c
	without.Links = slices.Clone(c.Links)
	for i, link := range without.Links {
		without.Links[i].Addresses = slices.DeleteFunc(slices.Clone(link.Addresses), func(a netconf.Address) bool {
			_, is := taken[a.Prefix.Addr()]
			return is
		})
	}
	return &without
}

// Addresses waits until the node has its addresses for itself. What the kernel
// found out about those of IPv6 (RFC 4862, 5.4) counts, too.
type Addresses struct {
	Again func(why string)
}

func (Addresses) Name() string { return "addresses" }

func (s Addresses) Apply(ctx context.Context, n *node.Node) error {
	if n.Member == nil {
		return nil
	}
	if len(n.Taken) > 0 {
		taken, err := probe(ctx, n)
		if err != nil {
			return err
		}
		if len(taken) == 0 {
			s.Again("the node's addresses are free now")
			<-ctx.Done()
			return ctx.Err()
		}
		var say []string
		for _, a := range slices.SortedFunc(maps.Keys(taken), netip.Addr.Compare) {
			say = append(say, fmt.Sprintf("%s is also used by %s", a, taken[a]))
		}
		return fmt.Errorf("%s; this node leaves it alone until it is free", strings.Join(say, "; "))
	}
	return duplicates(n)
}

// duplicates are the addresses of IPv6 that the kernel found in use by others
// (IFA_F_DADFAILED in /proc/net/if_inet6).
func duplicates(n *node.Node) error {
	const failed = 0x08
	table, err := n.Read("/proc/net/if_inet6")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		var (
			digits, card         string
			index, prefix, scope int
			flags                uint
		)
		if _, err := fmt.Sscanf(line, "%s %x %x %x %x %s", &digits, &index, &prefix, &scope, &flags, &card); err != nil || len(digits) != 32 || flags&failed == 0 {
			continue
		}
		var groups []string
		for i := 0; i < 32; i += 4 {
			groups = append(groups, digits[i:i+4])
		}
		if a, err := netip.ParseAddr(strings.Join(groups, ":")); err == nil {
			return fmt.Errorf("%s on %s is also used by somebody else, as the kernel found out", a, card)
		}
	}
	return nil
}
