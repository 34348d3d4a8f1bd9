package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/firstboot/status"
)

// describe brings addresses, host name and advice up to date.
func (r *run) describe() {
	r.describing.Lock()
	defer r.describing.Unlock()
	addresses := addresses()
	hostname, _ := os.Hostname()
	report := r.tracker.Report()
	advice := advise(report, addresses)
	if slices.Equal(report.Addresses, addresses) && report.Hostname == hostname && slices.Equal(report.Advice, advice) {
		return
	}
	var lines []string
	if !slices.Equal(report.Addresses, addresses) {
		for _, a := range addresses {
			lines = append(lines, fmt.Sprintf("address %s on %s", a.Address, a.Interface))
		}
	}
	r.tracker.Update(func(rep *status.Report) {
		rep.Addresses, rep.Hostname, rep.Advice = addresses, hostname, advice
	}, lines...)
}

// addresses lists what others can reach the node at.
func addresses() []status.Address {
	out := []status.Address{}
	interfaces, err := net.Interfaces()
	if err != nil {
		return out
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 {
			continue
		}
		found, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range found {
			if ip, _, err := net.ParseCIDR(a.String()); err == nil && ip.IsGlobalUnicast() {
				out = append(out, status.Address{Interface: i.Name, Address: a.String()})
			}
		}
	}
	return out
}

// advise tells a person what can be done now.
func advise(r status.Report, addresses []status.Address) []string {
	if r.State == status.Unconfigured {
		return []string{
			"This node has no metadata yet. Give it some, in one of these ways:",
			" - attach the CD image that slipway seed wrote for it, or another one labelled cidata;",
			" - fill in the properties when importing the OVA; set guestinfo.userdata on VMware;",
			" - use the cloud-init settings of Proxmox or OpenStack.",
			"It looks every few seconds and needs no restart.",
		}
	}
	if r.State == status.Removed {
		return []string{
			r.Cluster.Why() + ".",
			"It serves nothing any more. Switch it off and delete its machine.",
		}
	}
	if r.State == status.Starting {
		return nil
	}
	if len(r.Logins) == 0 {
		return []string{"Nobody can log in over ssh: the metadata gives no ssh key."}
	}
	if len(addresses) == 0 {
		return []string{"No address yet."}
	}
	host, _, _ := strings.Cut(addresses[0].Address, "/")
	return []string{fmt.Sprintf("Log in: ssh %s@%s", r.Logins[0], host)}
}

// addressEvents tells when an address or a link may have changed. The kernel
// says so (rtnetlink(7)); what exactly it says is of no interest, since the
// addresses are listed anew then. Without such a socket nothing is told.
func addressEvents(ctx context.Context) <-chan struct{} {
	events := make(chan struct{}, 1)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return events
	}
	socket := os.NewFile(uintptr(fd), "rtnetlink")
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		socket.Close()
		return events
	}
	context.AfterFunc(ctx, func() { socket.Close() }) // which ends the reading
	go func() {
		message := make([]byte, 8<<10)
		for {
			// ENOBUFS: so much has changed that the kernel has lost count.
			if _, err := socket.Read(message); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case events <- struct{}{}:
			default: // told already, and nobody has looked since
			}
		}
	}()
	return events
}
