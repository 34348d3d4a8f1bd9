package main

import (
	"os"
	"time"

	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
)

// boot measures power-on to "node ready" with a minimal seed, twice: the first
// boot, which makes the state partition, and the next.
func (b *bench) boot() error {
	say("boots to node ready")
	iso := b.path("seed.iso")
	if err := atomicfile.Write(iso, 0o644, func(f *os.File) error {
		return seed.NoCloudISO(f, seed.Files{MetaData: []byte("instance-id: bench\nlocal-hostname: bench\n"), UserData: []byte("#cloud-config\n")})
	}); err != nil {
		return err
	}
	var first, second []float64
	var accel lab.Accel
	for range b.runs {
		dir := b.path("machine")
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		vm := lab.VM{Name: role, Image: b.path("assembled/" + role + ".qcow2"), Seeds: []string{iso}, Dir: dir, Firmware: lab.BIOS, CPUs: 2, Memory: 4 << 30, Patience: 10 * time.Minute}
		began := time.Now()
		m, err := lab.Start(b.ctx, vm)
		if err != nil {
			return err
		}
		for _, times := range []*[]float64{&first, &second} {
			if err := m.WaitForConsole(b.ctx, `slipway: node ready`); err != nil {
				m.Close()
				return err
			}
			*times = append(*times, time.Since(began).Seconds())
			if times == &first {
				if err := m.Shutdown(b.ctx); err != nil {
					m.Close()
					return err
				}
				began = time.Now()
				if err := m.PowerOn(b.ctx); err != nil {
					m.Close()
					return err
				}
			}
		}
		accel = m.Accel()
		m.Close()
	}
	b.compare("first boot to node ready, "+string(accel), middle(first), "", 0, "s", 0)
	b.compare("next boot to node ready, "+string(accel), middle(second), "", 0, "s", 0)
	return nil
}
