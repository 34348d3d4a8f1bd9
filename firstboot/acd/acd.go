// Package acd finds out whether somebody else uses an IPv4 address before this
// machine does: address conflict detection by ARP probes (RFC 5227, 2.1), with the
// times of a local network of today, a few tenths of a second instead of seven
// whole ones. Version 257 of systemd-networkd knows only the latter.
//
// In goes a network card and an address, out comes the hardware address of
// whoever has it. A probe tells nobody that this machine wants the address, and
// so disturbs nobody who has it.
package acd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/packet"
)

const (
	probes   = 3
	interval = 110 * time.Millisecond

	etherTypeARP = 0x0806 // IEEE 802 Numbers (IANA)
)

var (
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	nobody    = net.HardwareAddr{0, 0, 0, 0, 0, 0}
)

// Probe asks on a card who has an address; nil if nobody answers. Those of own
// are this machine itself.
func Probe(ctx context.Context, card *net.Interface, address netip.Addr, own []net.HardwareAddr) (net.HardwareAddr, error) {
	if !address.Is4() {
		return nil, fmt.Errorf("%s is no IPv4 address", address)
	}
	conn, err := packet.Listen(card, packet.Datagram, etherTypeARP, nil)
	if err != nil {
		return nil, fmt.Errorf("asking on %s who has %s: %w", card.Name, address, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	question, err := arp.NewPacket(arp.OperationRequest, card.HardwareAddr, netip.IPv4Unspecified(), nobody, address)
	if err != nil {
		return nil, err
	}
	data, err := question.MarshalBinary()
	if err != nil {
		return nil, err
	}
	for range probes {
		if _, err := conn.WriteTo(data, &packet.Addr{HardwareAddr: broadcast}); err != nil {
			return nil, fmt.Errorf("asking on %s who has %s: %w", card.Name, address, err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(interval)); err != nil {
			return nil, err
		}
		holder, err := listen(conn, address, append(own, card.HardwareAddr))
		if holder != nil || ctx.Err() != nil {
			return holder, ctx.Err()
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// listen reads until the deadline, or until somebody shows that it has the
// address.
func listen(conn net.PacketConn, address netip.Addr, own []net.HardwareAddr) (net.HardwareAddr, error) {
	buffer := make([]byte, 2048)
	for {
		n, _, err := conn.ReadFrom(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if holder := conflict(buffer[:n], address); holder != nil &&
			!slices.ContainsFunc(own, func(a net.HardwareAddr) bool { return bytes.Equal(a, holder) }) {
			return holder, nil
		}
	}
}

// conflict tells who claims an address in an ARP packet: whoever sends from it,
// or probes for it at the same time (RFC 5227, 2.1.1).
func conflict(data []byte, address netip.Addr) net.HardwareAddr {
	var p arp.Packet
	if err := p.UnmarshalBinary(data); err != nil || len(p.SenderHardwareAddr) != 6 {
		return nil
	}
	if p.SenderIP == address || p.Operation == arp.OperationRequest && p.SenderIP.IsUnspecified() && p.TargetIP == address {
		return slices.Clone(p.SenderHardwareAddr)
	}
	return nil
}
