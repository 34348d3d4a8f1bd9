package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

// lab is a switch and a gateway with two networks, VLANs 1 and 2.
func lab(t *testing.T) (*ether.Switch, *Gateway) {
	t.Helper()
	sw := ether.New(ether.Options{})
	t.Cleanup(sw.Close)
	log := logrus.New()
	log.SetOutput(io.Discard)
	g, err := New(sw, []Network{
		{Name: "a", VLAN: 1, Addresses: prefixes("10.77.1.1/24", "2001:db8:1::1/64", "10.77.1.2/24")},
		{Name: "b", VLAN: 2, Addresses: prefixes("10.77.2.1/24", "2001:db8:2::1/64"), MTU: 9000},
	}, Options{
		Zones: []string{"example.internal"},
		Names: map[string][]netip.Addr{
			"a-db1.example.internal":     addrs("10.77.1.11", "2001:db8:1::11"),
			"b-db1.example.internal":     addrs("10.77.2.11"),
			"db.Site-A.example.org":      addrs("10.77.1.10"),
			"many.pool.example.internal": addrs("10.77.1.11", "10.77.1.12", "10.77.1.13"),
		},
		Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return sw, g
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func addrs(texts ...string) (all []netip.Addr) {
	for _, s := range texts {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

// guest is a computer in the lab, whose default routes go to the gateway.
type guest struct {
	*netstack
	mac net.HardwareAddr
}

func boot(t *testing.T, sw *ether.Switch, name string, vlan uint16, addresses ...string) *guest {
	t.Helper()
	l := link{port: name + "/0", cfg: ether.PortConfig{VLAN: vlan}, mac: macFor(name), mtu: 1500, addresses: prefixes(addresses...)}
	n, err := newNetstack(sw, []link{l})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	for _, a := range l.addresses {
		first := a.Masked().Addr().Next()
		everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if first.Is6() {
			everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		n.SetRouteTable(append(n.GetRouteTable(), tcpip.Route{Destination: subnet(everything), Gateway: tcpip.AddrFromSlice(first.AsSlice()), NIC: 1}))
	}
	return &guest{n, l.mac}
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (g *guest) dial(ctx context.Context, network, address string) (net.Conn, error) {
	to := netip.MustParseAddrPort(address)
	full := fullAddress(to)
	if network == "udp" {
		return gonet.DialUDP(g.Stack, nil, &full, protocolNumber(to.Addr()))
	}
	return gonet.DialContextTCP(ctx, g.Stack, full, protocolNumber(to.Addr()))
}

// greet answers every connection with the word and the caller's address.
func (g *guest) greet(t *testing.T, address, word string) {
	t.Helper()
	at := netip.MustParseAddrPort(address)
	l, err := gonet.ListenTCP(g.Stack, fullAddress(at), protocolNumber(at.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	greet(t, l, word)
}

func greet(t *testing.T, l net.Listener, word string) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			io.WriteString(c, word+" "+host)
			c.Close()
		}
	}()
}

// hear dials and returns what it is told.
func hear(t *testing.T, dial func(context.Context, string, string) (net.Conn, error), address string) string {
	t.Helper()
	c, err := dial(soon(t), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTheHostReachesGuestsFromTheGatewaysAddress(t *testing.T) {
	sw, g := lab(t)
	boot(t, sw, "a-db1", 1, "10.77.1.11/24", "2001:db8:1::11/64").greet(t, "10.77.1.11:22", "a")
	boot(t, sw, "b-db1", 2, "10.77.2.11/24").greet(t, "10.77.2.11:22", "b")
	for address, want := range map[string]string{
		"10.77.1.11:22":             "a 10.77.1.1",
		"10.77.2.11:22":             "b 10.77.2.1",
		"b-db1.example.internal:22": "b 10.77.2.1",
	} {
		if got := hear(t, g.DialContext, address); got != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
}

func TestGuestsOfOneNetworkReachThoseOfAnother(t *testing.T) {
	sw, _ := lab(t)
	a := boot(t, sw, "a-db1", 1, "10.77.1.11/24")
	boot(t, sw, "b-db1", 2, "10.77.2.11/24").greet(t, "10.77.2.11:5432", "b")
	if got := hear(t, a.dial, "10.77.2.11:5432"); got != "b 10.77.1.11" {
		t.Error(got)
	}
}

func TestIPv6IsRoutedToo(t *testing.T) {
	sw, g := lab(t)
	a := boot(t, sw, "a-db1", 1, "2001:db8:1::11/64")
	boot(t, sw, "b-db1", 2, "2001:db8:2::11/64").greet(t, "[2001:db8:2::11]:5432", "b")
	if got := hear(t, a.dial, "[2001:db8:2::11]:5432"); got != "b 2001:db8:1::11" {
		t.Error(got)
	}
	if got := hear(t, g.DialContext, "[2001:db8:2::11]:5432"); got != "b 2001:db8:2::1" {
		t.Error(got)
	}
}

func TestGuestsReachTheHostsListeners(t *testing.T) {
	sw, g := lab(t)
	a := boot(t, sw, "a-db1", 1, "10.77.1.11/24")
	l, err := g.Listen("tcp", "10.77.1.1:8000")
	if err != nil {
		t.Fatal(err)
	}
	greet(t, l, "gateway")
	if got := hear(t, a.dial, "10.77.1.1:8000"); got != "gateway 10.77.1.11" {
		t.Error(got)
	}
}

func TestEchoRequestsAreAnsweredAndForwarded(t *testing.T) {
	sw, _ := lab(t)
	a := boot(t, sw, "a-db1", 1, "10.77.1.11/24")
	boot(t, sw, "b-db1", 2, "10.77.2.11/24")
	for _, to := range []string{"10.77.1.1", "10.77.2.1", "10.77.2.11"} {
		if err := a.ping(t, to); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
}

func (g *guest) ping(t *testing.T, address string) error {
	var wq waiter.Queue
	ep, tcpErr := g.NewEndpoint(icmp.ProtocolNumber4, ipv4.ProtocolNumber, &wq)
	if tcpErr != nil {
		return errors.New(tcpErr.String())
	}
	if err := ep.Connect(tcpip.FullAddress{Addr: tcpip.AddrFromSlice(netip.MustParseAddr(address).AsSlice())}); err != nil {
		return errors.New(err.String())
	}
	c := gonet.NewUDPConn(&wq, ep)
	defer c.Close()
	deadline, _ := soon(t).Deadline()
	c.SetDeadline(deadline)
	request := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+4))
	request.SetType(header.ICMPv4Echo)
	copy(request.Payload(), "ping")
	if _, err := c.Write(request); err != nil {
		return err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		return err
	}
	if reply := header.ICMPv4(b[:n]); reply.Type() != header.ICMPv4EchoReply || string(reply.Payload()) != "ping" {
		return errors.New("another answer")
	}
	return nil
}

// refusal is why a dial fails, which must not be a deadline.
func refusal(t *testing.T, dial func(context.Context, string, string) (net.Conn, error), address string) string {
	t.Helper()
	c, err := dial(soon(t), "tcp", address)
	if err == nil {
		c.Close()
		t.Fatalf("%s answers", address)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s: the guest is left waiting", address)
	}
	return err.Error()
}

func TestWhatIsElsewhereIsUnreachableAtOnce(t *testing.T) {
	sw, _ := lab(t)
	a := boot(t, sw, "a-db1", 1, "10.77.1.11/24", "2001:db8:1::11/64")
	for _, address := range []string{"192.0.2.1:443", "10.77.3.1:53", "[2001:db8:ffff::1]:443"} {
		if why := refusal(t, a.dial, address); !strings.Contains(why, "unreachable") {
			t.Errorf("%s: %s", address, why)
		}
	}
}

func TestPortsThatNobodyServesAreRefused(t *testing.T) {
	sw, g := lab(t)
	a := boot(t, sw, "a-db1", 1, "10.77.1.11/24")
	if why := refusal(t, a.dial, "10.77.1.1:22"); !strings.Contains(why, "refused") {
		t.Error(why)
	}
	if why := refusal(t, g.DialContext, "10.77.1.11:22"); !strings.Contains(why, "refused") {
		t.Error(why)
	}
}

func TestAConnectionKnowsWhomItLedToAfterAReset(t *testing.T) {
	sw, g := lab(t)
	a := boot(t, sw, "a-db1", 1, "10.77.1.11/24")
	at := netip.MustParseAddrPort("10.77.1.11:22")
	l, err := gonet.ListenTCP(a.Stack, fullAddress(at), protocolNumber(at.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := g.DialContext(soon(t), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	// What is closed before it has read all is reset.
	if _, err := c.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	theirs.Close()
	if _, err := io.ReadAll(c); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Fatalf("not a reset: %v", err)
	}
	if got := c.RemoteAddr(); got == nil || got.String() != at.String() {
		t.Errorf("it led to %v", got)
	}
}

func TestADialEndsWithItsContext(t *testing.T) {
	_, g := lab(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.DialContext(ctx, "tcp", "10.77.1.99:22"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestAddressesToDialAreChecked(t *testing.T) {
	_, g := lab(t)
	for _, a := range [][2]string{
		{"unix", "10.77.1.11:22"}, {"tcp", "10.77.1.11"}, {"tcp", "10.77.1.11:70000"}, {"tcp", "10.77.1.11:ssh"},
		{"tcp", "nobody.example.internal:22"}, {"tcp6", "b-db1.example.internal:22"}, {"tcp4", "[2001:db8::1]:22"}, {"", ":22"},
	} {
		if _, err := g.DialContext(soon(t), a[0], a[1]); err == nil {
			t.Errorf("%v was taken", a)
		}
	}
}

// A virtual address moves from one machine to another, which announces it as
// VRRP does: the gateway must not keep sending to the old one.
func TestAnAnnouncedAddressIsFollowedAtOnce(t *testing.T) {
	for _, form := range []struct {
		name   string
		op     header.ARPOp
		target []byte
	}{
		{"as a request", header.ARPRequest, make([]byte, 6)},
		{"as a reply", header.ARPReply, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
	} {
		t.Run(form.name, func(t *testing.T) {
			sw, g := lab(t)
			third := boot(t, sw, "a-db1", 1, "10.77.1.11/24")
			first := boot(t, sw, "a-lb1", 1, "10.77.1.10/24")
			first.greet(t, "10.77.1.10:5432", "first")
			if got := hear(t, g.DialContext, "10.77.1.10:5432"); got != "first 10.77.1.1" {
				t.Fatal(got)
			}
			sw.Cut("a-lb1") // it hangs, and gives nothing back
			second := boot(t, sw, "a-lb2", 1, "10.77.1.10/24")
			second.greet(t, "10.77.1.10:5432", "second")
			vip := []byte{10, 77, 1, 10}
			frame := make([]byte, header.EthernetMinimumSize+header.ARPSize)
			header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(second.mac), DstAddr: header.EthernetBroadcastAddress, Type: arp.ProtocolNumber})
			a := header.ARP(frame[header.EthernetMinimumSize:])
			a.SetIPv4OverEthernet()
			a.SetOp(form.op)
			copy(a.HardwareAddressSender(), second.mac)
			copy(a.ProtocolAddressSender(), vip)
			copy(a.HardwareAddressTarget(), form.target)
			copy(a.ProtocolAddressTarget(), vip)
			second.ports[0].Send(frame)
			// What answers this ping has taken the announcement before it.
			if err := third.ping(t, "10.77.1.1"); err != nil {
				t.Fatal(err)
			}
			known, _ := g.net.Neighbors(1, ipv4.ProtocolNumber)
			if slices.ContainsFunc(known, func(n stack.NeighborEntry) bool { return n.LinkAddr == tcpip.LinkAddress(first.mac) }) {
				t.Errorf("the gateway still knows the old card: %v", known)
			}
			if got := hear(t, g.DialContext, "10.77.1.10:5432"); got != "second 10.77.1.1" {
				t.Error(got)
			}
		})
	}
}

func TestAClosedGatewayLeavesItsPortsAndConnections(t *testing.T) {
	sw, g := lab(t)
	boot(t, sw, "a-db1", 1, "10.77.1.11/24").greet(t, "10.77.1.11:22", "a")
	l, err := g.Listen("tcp", "10.77.1.1:8000")
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	g.Close()
	if _, err := l.Accept(); err == nil {
		t.Error("a listener outlived the gateway")
	}
	if _, err := g.DialContext(soon(t), "tcp", "10.77.1.11:22"); err == nil {
		t.Error("a closed gateway dials")
	}
	if stats := sw.Stats(); len(stats) != 1 {
		t.Errorf("ports are left: %v", stats)
	}
}

func TestTwoGatewaysDoNotFitIntoOneSwitch(t *testing.T) {
	sw, _ := lab(t)
	if _, err := New(sw, []Network{{Name: "a", VLAN: 1, Addresses: prefixes("10.77.1.1/24")}}, Options{}); err == nil {
		t.Error("a second gateway was made")
	}
	if _, err := New(sw, []Network{{Name: "c", VLAN: 3}}, Options{}); err == nil {
		t.Error("a network without an address was taken")
	}
}

// BenchmarkTransfer carries bytes over TCP from one guest to another, through
// the gateway: both stacks, the switch and the router.
func BenchmarkTransfer(b *testing.B) {
	sw := ether.New(ether.Options{})
	defer sw.Close()
	var stacks []*netstack
	for _, address := range []string{"10.77.1.11/24", "10.77.1.12/24"} {
		n, err := newNetstack(sw, []link{{port: address, cfg: ether.PortConfig{VLAN: 1}, mac: macFor(address), mtu: 1500, addresses: prefixes(address)}})
		if err != nil {
			b.Fatal(err)
		}
		defer n.close()
		stacks = append(stacks, n)
	}
	at := fullAddress(netip.MustParseAddrPort("10.77.1.11:5001"))
	l, err := gonet.ListenTCP(stacks[0].Stack, at, ipv4.ProtocolNumber)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err == nil {
			io.Copy(io.Discard, c)
		}
	}()
	c, err := gonet.DialTCP(stacks[1].Stack, at, ipv4.ProtocolNumber)
	if err != nil {
		b.Fatal(err)
	}
	chunk := make([]byte, 64<<10)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := c.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
	<-done
}
