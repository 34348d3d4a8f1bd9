//go:build !linux

package lab

import (
	"net"
	"os"
	"os/exec"
)

// process is a running child; only Linux ends it with us.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// startTied says that a lab needs Linux.
func startTied(*exec.Cmd) (*process, error) { return nil, notHere() }

func (p *process) kill() {}

// channel says that a lab needs Linux.
func channel(string) (net.Conn, *os.File, error) { return nil, nil, notHere() }
