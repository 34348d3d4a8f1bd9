package gateway

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// NTP's packet (RFC 5905, 7.3): without extensions it is 48 bytes.
const (
	ntpPort   = 123
	ntpSize   = 48
	ntpClient = 3 // modes
	ntpServer = 4
)

// serveNTP tells the gateway's time (RFC 5905, as a primary server: it answers
// clients and asks nobody).
func (g *Gateway) serveNTP(addr netip.Addr) error {
	conn, err := g.ListenPacket("udp", netip.AddrPortFrom(addr, ntpPort).String())
	if err != nil {
		return err
	}
	g.run(conn.Close, func() {
		buf := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			received := g.now()
			if answer := ntpAnswer(buf[:size], received, g.now); answer != nil {
				conn.WriteTo(answer, from) // a lost answer is asked for again
			}
		}
	})
	return nil
}

// ntpAnswer is the reply to a client's packet, or nil for anything else.
func ntpAnswer(query []byte, received time.Time, now func() time.Time) []byte {
	if len(query) < ntpSize || query[0]&7 != ntpClient {
		return nil
	}
	version := query[0] >> 3 & 7
	if version < 1 || version > 4 {
		return nil
	}
	a := make([]byte, ntpSize)
	a[0] = version<<3 | ntpServer                 // leap indicator 0: no warning
	a[1] = 1                                      // stratum: primary server
	a[2] = query[2]                               // poll
	a[3] = 0xec                                   // precision: 2^-20 s, a microsecond
	binary.BigEndian.PutUint32(a[8:], 1<<16/1000) // root dispersion: 1 ms
	copy(a[12:], "XLAB")                          // reference id; X is for what is not registered (7.3)
	putTimestamp(a[16:], received)                // reference
	copy(a[24:32], query[40:48])                  // origin: the client's transmit timestamp
	putTimestamp(a[32:], received)
	putTimestamp(a[40:], now())
	return a
}

// putTimestamp writes seconds since 1900 and their fraction (6); the era is
// left out, as the format has no room for it.
func putTimestamp(b []byte, t time.Time) {
	const from1900 = 2208988800
	binary.BigEndian.PutUint32(b, uint32(t.Unix()+from1900))
	binary.BigEndian.PutUint32(b[4:], uint32(uint64(t.Nanosecond())<<32/1e9))
}
