// Package gateway is the one computer of the lab that is no virtual machine: a
// router between the lab's networks that lives inside the process, on gVisor's
// network stack, and the host's way into the guests.
//
// In go a switch (package ether) and the networks with the gateway's address in
// each. Out come: answers to ARP and echo requests; packets forwarded between
// the networks, and to nowhere else: what is for any other destination is
// answered with "network unreachable" at once (RFC 792), and no packet reaches
// the host's own network; DNS for the names that it is given (dns.go); time
// (ntp.go); and connections of this process to the guests and from them
// (dial.go), which are what a client outside the cluster would see.
package gateway

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

// PortName begins the names of the gateway's ports: gateway/NETWORK. Faults of
// the switch that name the gateway alone mean all of them.
const PortName = "gateway"

// Network is one network of the lab, as the gateway sees it.
type Network struct {
	Name string
	VLAN uint16 // of the switch
	// Addresses are the gateway's own, with the network's prefix length. It dials
	// from the first of each family; DNS and time are served on all.
	Addresses []netip.Prefix
	MTU       int // default 1500
}

// Options of a gateway.
type Options struct {
	// Zones are the DNS domains in which a name that is not there does not exist;
	// outside of them queries are refused.
	Zones []string
	// Names are what DNS answers: fully qualified names and their addresses. See SetNames.
	Names map[string][]netip.Addr
	Log   logrus.FieldLogger // default: logrus's standard logger
}

// Gateway is a running gateway.
type Gateway struct {
	opts     Options
	networks []Network
	net      *netstack
	names    atomic.Pointer[names]
	offset   atomic.Int64 // nanoseconds that its clock is ahead of the host's

	serving sync.WaitGroup
	closing sync.Once
	closers []func() error
}

// New plugs a gateway into a switch.
func New(sw *ether.Switch, networks []Network, opts Options) (*Gateway, error) {
	if opts.Log == nil {
		opts.Log = logrus.StandardLogger()
	}
	g := &Gateway{opts: opts, networks: networks}
	g.SetNames(opts.Names)
	var links []link
	for _, n := range networks {
		if n.MTU == 0 {
			n.MTU = 1500
		}
		if len(n.Addresses) == 0 {
			return nil, fault.New(fault.Usage, "network %s: the gateway has no address", n.Name)
		}
		links = append(links, link{
			port:      PortName + "/" + n.Name,
			cfg:       ether.PortConfig{VLAN: n.VLAN, Router: true},
			mac:       macFor(n.Name),
			mtu:       n.MTU,
			addresses: n.Addresses,
		})
	}
	stack, err := newNetstack(sw, links)
	if err != nil {
		return nil, err
	}
	g.net = stack
	for _, p := range []tcpip.NetworkProtocolNumber{ipv4.ProtocolNumber, ipv6.ProtocolNumber} {
		if err := stack.SetForwardingDefaultAndAllNICs(p, true); err != nil {
			g.Close()
			return nil, fault.New(fault.Internal, "gateway: forwarding: %s", err)
		}
	}
	for _, n := range networks {
		for _, a := range n.Addresses {
			if err := g.serve(a.Addr()); err != nil {
				g.Close()
				return nil, fmt.Errorf("gateway of network %s: %w", n.Name, err)
			}
		}
	}
	return g, nil
}

// serve answers DNS and NTP on one of the gateway's addresses.
func (g *Gateway) serve(addr netip.Addr) error {
	if err := g.serveDNS(addr); err != nil {
		return err
	}
	return g.serveNTP(addr)
}

// run keeps a server going until the gateway is closed.
func (g *Gateway) run(close func() error, serve func()) {
	g.closers = append(g.closers, close)
	g.serving.Add(1)
	go func() {
		defer g.serving.Done()
		serve()
	}()
}

// Close unplugs the gateway and ends its connections.
func (g *Gateway) Close() {
	g.closing.Do(func() {
		for _, close := range g.closers {
			close() // it fails only for what is closed already
		}
		g.net.close()
		g.serving.Wait()
	})
}

// SetClockOffset puts the gateway's clock ahead of the host's, or behind it.
func (g *Gateway) SetClockOffset(d time.Duration) { g.offset.Store(int64(d)) }

func (g *Gateway) now() time.Time { return time.Now().Add(time.Duration(g.offset.Load())) }

// macFor derives a locally administered address from the network's name.
func macFor(network string) net.HardwareAddr {
	h := sha256.Sum256([]byte(PortName + "/" + network))
	return net.HardwareAddr{0x02, h[0], h[1], h[2], h[3], h[4]}
}
