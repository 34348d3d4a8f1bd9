package gateway

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

const (
	dnsPort = 53
	// dnsTTL is short, because names move in drills.
	dnsTTL = 5
	// dnsPayload is the UDP size that no path fragments (DNS Flag Day 2020).
	dnsPayload = 1232
)

// names are what DNS knows at one moment.
type names struct {
	addresses map[string][]netip.Addr // by name, in small letters, with the final dot
	reverse   map[netip.Addr]string
}

func (n *names) lookup(name string) []netip.Addr { return n.addresses[dns.CanonicalName(name)] }

// SetNames replaces the names that DNS answers. The first of several names of an
// address, in the order of the alphabet, is the answer to reverse queries.
func (g *Gateway) SetNames(addresses map[string][]netip.Addr) {
	n := &names{addresses: map[string][]netip.Addr{}, reverse: map[netip.Addr]string{}}
	for name, addrs := range addresses {
		name = dns.CanonicalName(name)
		for _, a := range addrs {
			a = a.Unmap()
			n.addresses[name] = append(n.addresses[name], a)
			if known, ok := n.reverse[a]; !ok || name < known {
				n.reverse[a] = name
			}
		}
	}
	g.names.Store(n)
}

func (g *Gateway) serveDNS(addr netip.Addr) error {
	at := netip.AddrPortFrom(addr, dnsPort).String()
	packets, err := g.ListenPacket("udp", at)
	if err != nil {
		return err
	}
	stream, err := g.Listen("tcp", at)
	if err != nil {
		packets.Close()
		return err
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
		answer := g.answer(query)
		g.opts.Log.WithField("from", w.RemoteAddr()).Debugf("DNS: %s %s: %s, %d records", query.Question[0].Name,
			dns.Type(query.Question[0].Qtype), dns.RcodeToString[answer.Rcode], len(answer.Answer))
		if w.LocalAddr().Network() == "udp" {
			size := dns.MinMsgSize
			if opt := query.IsEdns0(); opt != nil {
				size = max(size, int(opt.UDPSize()))
			}
			answer.Truncate(min(size, dnsPayload))
		}
		w.WriteMsg(answer) // a lost answer is asked for again
	})
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: stream, Handler: handler}} {
		closeIt := packets.Close
		if server.Listener != nil {
			closeIt = stream.Close
		}
		g.run(closeIt, func() {
			server.ActivateAndServe() // ends when its socket is closed
		})
	}
	return nil
}

// answer is authoritative for the names that were set, for the zones, and for
// the addresses of the networks; it refuses everything else (RFC 1035, 4.1.1).
func (g *Gateway) answer(query *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(query)
	if query.IsEdns0() != nil {
		m.SetEdns0(dnsPayload, false)
	}
	q := query.Question[0] // the server lets only queries with one question pass
	name := dns.CanonicalName(q.Name)
	known := g.names.Load()
	zone, responsible := g.zone(name)
	addrs, exists := known.addresses[name]
	if !responsible && exists {
		zone, responsible = name, true
	}
	if q.Qclass != dns.ClassINET || !responsible {
		m.Rcode = dns.RcodeRefused
		return m
	}
	m.Authoritative = true
	head := func(rrtype uint16) dns.RR_Header {
		return dns.RR_Header{Name: q.Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: dnsTTL}
	}
	if addr, ok := reverseAddress(name); ok {
		var to string
		if to, exists = known.reverse[addr]; exists && q.Qtype == dns.TypePTR {
			m.Answer = append(m.Answer, &dns.PTR{Hdr: head(dns.TypePTR), Ptr: to})
		}
	}
	for _, a := range addrs {
		switch {
		case q.Qtype == dns.TypeA && a.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: head(dns.TypeA), A: net.IP(a.AsSlice())})
		case q.Qtype == dns.TypeAAAA && a.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: head(dns.TypeAAAA), AAAA: net.IP(a.AsSlice())})
		}
	}
	if len(m.Answer) > 0 {
		return m
	}
	if !exists && name != zone && !known.above(name) {
		m.Rcode = dns.RcodeNameError
	}
	// How long to remember that there is nothing (RFC 2308, 5).
	m.Ns = []dns.RR{&dns.SOA{
		Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: dnsTTL},
		Ns:  "gateway.lab.", Mbox: "nobody.lab.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: dnsTTL,
	}}
	return m
}

// above says whether there are names below this one: it exists then, with no
// records of its own (RFC 8020).
func (n *names) above(name string) bool {
	for known := range n.addresses {
		if strings.HasSuffix(known, "."+name) {
			return true
		}
	}
	return false
}

// zone is the domain in which a name must be looked up here, if any.
func (g *Gateway) zone(name string) (string, bool) {
	for _, z := range g.opts.Zones {
		if z = dns.CanonicalName(z); dns.IsSubDomain(z, name) {
			return z, true
		}
	}
	if addr, ok := reverseAddress(name); ok {
		for _, n := range g.networks {
			if slices.ContainsFunc(n.Addresses, func(p netip.Prefix) bool { return p.Contains(addr) }) {
				_, parent, _ := strings.Cut(name, ".")
				return parent, true
			}
		}
	}
	return "", false
}

// reverseAddress is the address that a name under in-addr.arpa or ip6.arpa
// stands for (RFC 1035, 3.5; RFC 3596, 2.5).
func reverseAddress(name string) (netip.Addr, bool) {
	if host, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(host, ".")
		slices.Reverse(parts)
		addr, err := netip.ParseAddr(strings.Join(parts, "."))
		return addr, err == nil && addr.Is4()
	}
	if host, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		nibbles := strings.Split(host, ".")
		if len(nibbles) != 32 {
			return netip.Addr{}, false
		}
		slices.Reverse(nibbles)
		var text strings.Builder
		for i, n := range nibbles {
			if i > 0 && i%4 == 0 {
				text.WriteByte(':')
			}
			text.WriteString(n)
		}
		addr, err := netip.ParseAddr(text.String())
		return addr, err == nil
	}
	return netip.Addr{}, false
}
