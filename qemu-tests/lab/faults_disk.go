package lab

import (
	"context"
	"slices"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/lab/nbd"
)

// ballast is the file that fills a file system. It lies at the mount point, so
// that it is in no directory whose content somebody copies.
const ballast = ".lab-ballast"

// fillScript takes all room of a file system, in ever smaller pieces, and what is
// kept for root as well; then an ordinary user has none (statfs(2), f_bavail).
const fillScript = `
mount=$(findmnt --noheadings --output TARGET --target "$dir") && file=$mount/` + ballast + ` && (umask 077; touch "$file") || exit
for piece in 1073741824 33554432 1048576 65536 4096; do
	while fallocate --offset "$(stat --format %s "$file")" --length "$piece" "$file" 2> /dev/null; do :; done
done
free=$(stat --file-system --format %a "$mount")
test "$free" -eq 0 || { echo "$free blocks of $mount are still free"; exit 1; }`

// FillDisk takes the last byte of the guest's file system in which a directory
// is. What lets room go afterwards, such as a log that is removed, has it.
func (m *Machine) FillDisk(ctx context.Context, dir string) error {
	m.note(func() {
		if !slices.Contains(m.full, dir) {
			m.full = append(m.full, dir)
		}
	})
	_, err := m.Succeed(ctx, "dir="+quote(dir)+fillScript)
	return err
}

// FreeDisk gives back what FillDisk took.
func (m *Machine) FreeDisk(ctx context.Context, dir string) error {
	_, err := m.Succeed(ctx, "dir="+quote(dir)+` && mount=$(findmnt --noheadings --output TARGET --target "$dir") && rm --force "$mount/`+ballast+`"`)
	if err == nil {
		m.note(func() { m.full = slices.DeleteFunc(m.full, func(d string) bool { return d == dir }) })
	}
	return err
}

// SlowDisk makes each request to the system disk take so much longer, one after
// the other, and bounds the bytes in a second; 0 leaves the one or the other as
// it is in a good disk. The disk must be volatile. It holds through power cuts.
func (m *Machine) SlowDisk(latency time.Duration, bandwidth int64) error {
	return m.behave(func(manner *nbd.Manner) { manner.Latency, manner.Bandwidth = latency, bandwidth })
}

// BreakDisk makes the system disk, which must be volatile, answer with I/O errors.
// A guest rarely goes on after that when the disk is mended: it needs a restart.
func (m *Machine) BreakDisk() error {
	return m.behave(func(manner *nbd.Manner) { manner.Refuse = nbd.EIO })
}

// MendDisk makes a slow or broken disk a good one.
func (m *Machine) MendDisk() error {
	return m.behave(func(manner *nbd.Manner) { *manner = nbd.Manner{} })
}

func (m *Machine) behave(change func(*nbd.Manner)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.vm.Volatile {
		return m.notVolatile()
	}
	change(&m.manner)
	if m.disk != nil {
		m.disk.Behave(m.manner)
	}
	return nil
}
