package lab

import (
	"fmt"
	"net"
	"os"

	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
	"github.com/slipwayhq/slipway/qemu-tests/lab/nbd"
)

// wiring are the sockets between us and a QEMU that is about to start.
type wiring struct {
	qmp, qga net.Conn
	ports    []*ether.Port
	disk     *nbd.Disk  // nil if the system disk is not volatile
	theirs   []*os.File // qmpFD, qgaFD, netFD and so on
}

// wire makes the sockets, plugs the NICs into their switches and gives power to
// the disk.
func (m *Machine) wire() (*wiring, error) {
	w := &wiring{}
	if err := w.make(m); err != nil {
		w.closeOurs()
		w.closeTheirs()
		return nil, err
	}
	return w, nil
}

func (w *wiring) make(m *Machine) (err error) {
	pair := func(name string) (net.Conn, error) {
		ours, theirs, err := channel(name)
		if err == nil {
			w.theirs = append(w.theirs, theirs)
		}
		return ours, err
	}
	if w.qmp, err = pair("qmp"); err != nil {
		return err
	}
	if w.qga, err = pair("qga"); err != nil {
		return err
	}
	for i, n := range m.vm.NICs {
		if n.Switch == nil {
			continue
		}
		conn, err := pair(fmt.Sprintf("net%d", i))
		if err != nil {
			return err
		}
		port, err := n.Switch.Attach(n.PortName, conn, n.Port)
		if err != nil {
			conn.Close()
			return err
		}
		w.ports = append(w.ports, port)
	}
	if !m.vm.Volatile {
		return nil
	}
	conn, err := pair("disk")
	if err != nil {
		return err
	}
	if w.disk, err = nbd.Attach(conn, m.path(systemDisk), m.diskOptions()); err != nil {
		conn.Close()
	}
	return err
}

func (w *wiring) closeOurs() {
	for _, c := range []net.Conn{w.qmp, w.qga} {
		if c != nil {
			c.Close()
		}
	}
	for _, p := range w.ports {
		p.Close()
	}
	if w.disk != nil {
		w.disk.Cut()
	}
}

func (w *wiring) closeTheirs() {
	for _, f := range w.theirs {
		f.Close()
	}
}
