package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// resolver is Go's own, which asks the gateway from a guest.
func resolver(from *guest, network string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return from.dial(ctx, network, "10.77.1.1:53")
	}}
}

func TestNamesAreResolvedOverUDPAndTCP(t *testing.T) {
	sw, g := lab(t)
	a := boot(t, sw, "a-db1", 1, "10.77.1.11/24")
	for _, network := range []string{"udp", "tcp"} {
		r := resolver(a, network)
		for name, want := range map[string]string{
			"a-db1.example.internal.": "[10.77.1.11 2001:db8:1::11]",
			"DB.site-a.Example.ORG.":  "[10.77.1.10]",
		} {
			got, err := r.LookupHost(soon(t), name)
			slices.Sort(got)
			if err != nil || fmt.Sprint(got) != want {
				t.Errorf("%s: %s: %v %v, want %s", network, name, got, err, want)
			}
		}
		got, err := r.LookupAddr(soon(t), "10.77.2.11")
		if err != nil || fmt.Sprint(got) != "[b-db1.example.internal.]" {
			t.Errorf("%s: reverse: %v %v", network, got, err)
		}
		got, err = r.LookupAddr(soon(t), "2001:db8:1::11")
		if err != nil || fmt.Sprint(got) != "[a-db1.example.internal.]" {
			t.Errorf("%s: reverse: %v %v", network, got, err)
		}
		_, err = r.LookupHost(soon(t), "nobody.example.internal.")
		if e := (*net.DNSError)(nil); !errors.As(err, &e) || !e.IsNotFound {
			t.Errorf("%s: %v", network, err)
		}
	}
	g.SetNames(map[string][]netip.Addr{"nobody.example.internal": addrs("10.77.1.99")})
	if got, err := resolver(a, "udp").LookupHost(soon(t), "nobody.example.internal."); err != nil || fmt.Sprint(got) != "[10.77.1.99]" {
		t.Errorf("after a change: %v %v", got, err)
	}
}

// ask is one query through miekg's client, from a guest.
func ask(t *testing.T, from *guest, q *dns.Msg) *dns.Msg {
	t.Helper()
	conn, err := from.dial(soon(t), "udp", "10.77.1.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer, _, err := new(dns.Client).ExchangeWithConnContext(soon(t), q, &dns.Conn{Conn: conn})
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestAnswersCarryTheRightCode(t *testing.T) {
	sw, _ := lab(t)
	a := boot(t, sw, "a-db1", 1, "10.77.1.11/24")
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
		count int
	}{
		{"a-db1.example.internal.", dns.TypeA, dns.RcodeSuccess, 1},
		{"b-db1.example.internal.", dns.TypeAAAA, dns.RcodeSuccess, 0},
		{"b-db1.example.internal.", dns.TypeTXT, dns.RcodeSuccess, 0},
		{"many.pool.example.internal.", dns.TypeA, dns.RcodeSuccess, 3},
		{"pool.example.internal.", dns.TypeA, dns.RcodeSuccess, 0}, // there are names below it
		{"example.internal.", dns.TypeA, dns.RcodeSuccess, 0},
		{"c.example.internal.", dns.TypeA, dns.RcodeNameError, 0},
		{"99.1.77.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, 0},
		{"1.2.0.192.in-addr.arpa.", dns.TypePTR, dns.RcodeRefused, 0},
		{"example.org.", dns.TypeA, dns.RcodeRefused, 0},
		{".", dns.TypeNS, dns.RcodeRefused, 0},
	} {
		answer := ask(t, a, new(dns.Msg).SetQuestion(c.name, c.kind))
		if answer.Rcode != c.rcode || len(answer.Answer) != c.count {
			t.Errorf("%s %s: %v", c.name, dns.TypeToString[c.kind], answer)
		}
		refused := c.rcode == dns.RcodeRefused
		if answer.Authoritative == refused {
			t.Errorf("%s: authoritative: %v", c.name, answer.Authoritative)
		}
		if withSOA := len(answer.Ns) == 1; withSOA != (!refused && c.count == 0) {
			t.Errorf("%s: how long nothing lasts is told: %v", c.name, withSOA)
		}
	}
}

func TestLongAnswersAreCutToWhatTheClientTakes(t *testing.T) {
	sw, g := lab(t)
	a := boot(t, sw, "a-db1", 1, "10.77.1.11/24")
	var many []netip.Addr
	for i := range 60 {
		many = append(many, netip.AddrFrom4([4]byte{10, 77, 1, byte(i + 10)}))
	}
	g.SetNames(map[string][]netip.Addr{"many.example.internal": many})
	q := new(dns.Msg).SetQuestion("many.example.internal.", dns.TypeA)
	if answer := ask(t, a, q); !answer.Truncated || len(answer.Answer) == 60 { // the client reads no more than 512 bytes
		t.Errorf("truncated: %v, %d answers", answer.Truncated, len(answer.Answer))
	}
	q.SetEdns0(4096, false)
	if answer := ask(t, a, q); answer.Truncated || answer.IsEdns0() == nil || len(answer.Answer) != 60 {
		t.Errorf("truncated: %v, %d answers", answer.Truncated, len(answer.Answer))
	}
	if got, err := resolver(a, "tcp").LookupHost(soon(t), "many.example.internal."); err != nil || len(got) != 60 {
		t.Errorf("%d addresses, %v", len(got), err)
	}
}

func FuzzDNSAnswer(f *testing.F) {
	for _, name := range []string{"a.example.internal.", "1.1.77.10.in-addr.arpa.", "x.ip6.arpa.", "."} {
		b, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	g := &Gateway{opts: Options{Zones: []string{"example.internal"}}, networks: []Network{{Addresses: prefixes("10.77.1.1/24")}}}
	g.SetNames(map[string][]netip.Addr{"a.example.internal": addrs("10.77.1.1")})
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil || len(q.Question) != 1 {
			return // miekg's server drops these
		}
		if _, err := g.answer(q).Pack(); err != nil {
			t.Errorf("%v: %v", q, err)
		}
	})
}

// ntpOffset is what a client works out from one exchange (RFC 5905, 8).
func ntpOffset(t *testing.T, from *guest, address string) time.Duration {
	t.Helper()
	conn, err := from.dial(soon(t), "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline, _ := soon(t).Deadline()
	conn.SetDeadline(deadline)
	query := make([]byte, ntpSize)
	query[0] = 4<<3 | ntpClient
	t1 := time.Now()
	putTimestamp(query[40:], t1)
	if _, err := conn.Write(query); err != nil {
		t.Fatal(err)
	}
	a := make([]byte, 1500)
	n, err := conn.Read(a)
	t4 := time.Now()
	if err != nil || n != ntpSize {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if a[0] != 4<<3|ntpServer || a[1] != 1 || string(a[24:32]) != string(query[40:48]) {
		t.Fatalf("%x is no answer to %x", a[:n], query)
	}
	t2, t3 := timestamp(a[32:], t1), timestamp(a[40:], t1)
	return (t2.Sub(t1) + t3.Sub(t4)) / 2
}

// timestamp reads a timestamp that is at most 68 years from near.
func timestamp(b []byte, near time.Time) time.Time {
	seconds := int32(binary.BigEndian.Uint32(b) - uint32(near.Unix()+2208988800))
	nanos := int64(binary.BigEndian.Uint32(b[4:])) * 1e9 >> 32
	return time.Unix(near.Unix()+int64(seconds), nanos)
}

func TestEveryAddressServes(t *testing.T) {
	sw, _ := lab(t)
	a := boot(t, sw, "a-db1", 1, "10.77.1.11/24", "2001:db8:1::11/64")
	for _, gateway := range []string{"10.77.1.1", "10.77.1.2", "10.77.2.1", "[2001:db8:1::1]"} {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return a.dial(ctx, "udp", gateway+":53")
		}}
		if _, err := r.LookupHost(soon(t), "b-db1.example.internal."); err != nil {
			t.Errorf("DNS on %s: %v", gateway, err)
		}
		ntpOffset(t, a, gateway+":123")
	}
}

func TestTheGatewayTellsTheTime(t *testing.T) {
	sw, g := lab(t)
	a := boot(t, sw, "a-db1", 1, "10.77.1.11/24")
	for _, ahead := range []time.Duration{0, 3 * time.Hour, -40 * time.Minute, 20 * 365 * 24 * time.Hour} {
		g.SetClockOffset(ahead)
		// The offset is wrong by at most half of the time the exchange took.
		if got := ntpOffset(t, a, "10.77.1.1:123"); (got - ahead).Abs() > 15*time.Second {
			t.Errorf("%v ahead instead of %v", got, ahead)
		}
	}
}

func TestOnlyNTPClientsAreAnswered(t *testing.T) {
	query := func(version, mode byte, size int) []byte {
		b := make([]byte, size)
		if size > 0 {
			b[0] = version<<3 | mode
		}
		return b
	}
	for _, q := range [][]byte{query(4, 3, 0), query(4, 3, 47), query(0, 3, 48), query(5, 3, 48), query(4, 4, 48), query(4, 6, 48), query(4, 1, 48)} {
		if ntpAnswer(q, time.Now(), time.Now) != nil {
			t.Errorf("%x is answered", q)
		}
	}
	if a := ntpAnswer(query(3, 3, 68), time.Now(), time.Now); len(a) != ntpSize || a[0] != 3<<3|ntpServer {
		t.Errorf("version 3 with an authenticator: %x", a)
	}
}

func FuzzNTPAnswer(f *testing.F) {
	f.Add([]byte{})
	f.Add(append([]byte{4<<3 | ntpClient}, make([]byte, 47)...))
	f.Fuzz(func(t *testing.T, query []byte) {
		now := time.Unix(1800000000, 0)
		a := ntpAnswer(query, now, func() time.Time { return now })
		if a != nil && (len(a) != ntpSize || string(a[24:32]) != string(query[40:48])) {
			t.Errorf("%x is answered with %x", query, a)
		}
	})
}
