//go:build !linux

package peers

import "net"

// unreachable does nothing: agents run on Linux alone.
func unreachable(net.Conn) {}
