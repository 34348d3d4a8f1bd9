package peers

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unreachable has a connection end when what was sent has not been acknowledged for
// a while (tcp(7), TCP_USER_TIMEOUT). Else an administrator whose network is gone
// would keep an action going for a quarter of an hour.
func unreachable(conn net.Conn) {
	if c, ok := conn.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(lostLimit.Milliseconds()))
			})
		}
	}
}
