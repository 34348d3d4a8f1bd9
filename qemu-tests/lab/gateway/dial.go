package gateway

import (
	"context"
	"net"
	"net/netip"
	"strconv"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/slipwayhq/slipway/internal/fault"
)

// DialContext connects to a guest, from the gateway's address in the guest's
// network. The network is tcp or udp (also tcp4, udp6 and so on); the host in
// address is an IP address or a name that the gateway's DNS knows.
func (g *Gateway) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := g.resolve(network, address)
	if err != nil {
		return nil, err
	}
	full := fullAddress(to)
	switch network[:3] {
	case "tcp":
		c, err := gonet.DialContextTCP(ctx, g.net.Stack, full, protocolNumber(to.Addr()))
		if err != nil {
			return nil, fault.New(fault.Network, "%s: %w", address, err)
		}
		return &tcpConn{c, net.TCPAddrFromAddrPort(to)}, nil
	default:
		c, err := gonet.DialUDP(g.net.Stack, nil, &full, protocolNumber(to.Addr()))
		if err != nil {
			return nil, fault.New(fault.Network, "%s: %w", address, err)
		}
		return c, nil
	}
}

// tcpConn is a connection that knows whom it led to after it was reset, too:
// gonet forgets, where connections of the kernel do not, and clients rely on it.
type tcpConn struct {
	*gonet.TCPConn
	remote net.Addr
}

func (c *tcpConn) RemoteAddr() net.Addr { return c.remote }

// Listen takes TCP connections of guests on one of the gateway's addresses,
// such as 10.77.1.1:8000.
func (g *Gateway) Listen(network, address string) (net.Listener, error) {
	at, err := g.resolve(network, address)
	if err != nil {
		return nil, err
	}
	if network[:3] != "tcp" {
		return nil, fault.New(fault.Usage, "network %s: only tcp has listeners", network)
	}
	return gonet.ListenTCP(g.net.Stack, fullAddress(at), protocolNumber(at.Addr()))
}

// ListenPacket takes UDP datagrams of guests on one of the gateway's addresses.
func (g *Gateway) ListenPacket(network, address string) (net.PacketConn, error) {
	at, err := g.resolve(network, address)
	if err != nil {
		return nil, err
	}
	if network[:3] != "udp" {
		return nil, fault.New(fault.Usage, "network %s: only udp has packets", network)
	}
	full := fullAddress(at)
	return gonet.DialUDP(g.net.Stack, &full, nil, protocolNumber(at.Addr()))
}

func (g *Gateway) resolve(network, address string) (netip.AddrPort, error) {
	var none netip.AddrPort
	switch network {
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
	default:
		return none, fault.New(fault.Usage, "network %q: only tcp and udp are known", network)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return none, fault.New(fault.Usage, "%w", err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return none, fault.New(fault.Usage, "address %s: port %q is no number up to 65535", address, service)
	}
	candidates := g.names.Load().lookup(host)
	if ip, err := netip.ParseAddr(host); err == nil {
		candidates = []netip.Addr{ip.Unmap()}
	}
	for _, ip := range candidates {
		if family := network[3:]; family == "" || (family == "4") == ip.Is4() {
			return netip.AddrPortFrom(ip, uint16(port)), nil
		}
	}
	return none, fault.New(fault.Usage, "address %s: the lab's DNS knows no address for %s", address, host)
}
