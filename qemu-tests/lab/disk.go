package lab

import (
	"context"
	"os"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/nbd"
)

// A volatile disk is the overlay on a disk of fixed size, as it would be on a
// logical volume: qcow2 takes its clusters one after the other and never makes
// the disk larger. The file is sparse, so that its room costs nothing; it may be
// opened again without the disk between.

// roomFor is how large the disk under an overlay of a size must be. Twice its
// content is more than tables, and clusters that leaked in power cuts, will take.
func roomFor(virtual int64) int64 { return 2*virtual + 64<<20 }

// makeRoom makes the file under an overlay as large as it may become.
func makeRoom(ctx context.Context, overlay string) error {
	info, err := imageInfo(ctx, overlay, "qcow2")
	if err != nil {
		return err
	}
	st, err := os.Stat(overlay)
	if err != nil || st.Size() >= roomFor(info.VirtualSize) {
		return err
	}
	return os.Truncate(overlay, roomFor(info.VirtualSize))
}

// hasRoom refuses to grow a volatile disk beyond its room while it has power.
func (m *Machine) hasRoom(size int64) error {
	if !m.vm.Volatile {
		return nil
	}
	st, err := os.Stat(m.path(systemDisk))
	if err == nil && st.Size() < roomFor(size) {
		err = fault.New(fault.Usage, "machine %s: the disk has no room for %d bytes while it has power", m.vm.Name, size).
			WithMend("power it off first")
	}
	return err
}

// diskOptions are those of the next start. Every cut has its own chance, and the
// same in the same order of starts.
func (m *Machine) diskOptions() nbd.Options {
	o := nbd.Options{Manner: m.manner}
	if m.vm.Tear != 0 {
		o.Tear = m.vm.Tear + m.starts
	}
	return o
}

// DiskStats says what the system disk has written, flushed and lost since it was
// last powered on; afterwards the error says why it could not, if the host is to
// blame. Only a volatile disk counts.
func (m *Machine) DiskStats() (nbd.Stats, error) {
	m.mu.Lock()
	d, on := m.disk, m.run != nil
	m.mu.Unlock()
	switch {
	case d == nil:
		return nbd.Stats{}, m.notVolatile()
	case on:
		return d.Stats(), nil
	}
	return d.Stats(), d.Wait()
}

func (m *Machine) notVolatile() error {
	return fault.New(fault.Usage, "machine %s: its disk is not volatile, or had no power yet", m.vm.Name).WithMend("set Volatile in its VM")
}
