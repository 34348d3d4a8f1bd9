// Package modules loads the drivers of the devices that the kernel shows.
package modules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/boot/kmod"
)

// Loader knows the modules of the initramfs and what it has done so far.
type Loader struct {
	dir   string // of the kernel's modules
	sys   string
	index *kmod.Index
	tried map[string]bool // files given to the kernel, and modaliases looked up
	load  func(file string) error
}

// New reads the indices of the one kernel below dir.
func New(dir, sys string) (*Loader, error) {
	found, _ := filepath.Glob(dir + "/*/modules.dep")
	if len(found) != 1 {
		return nil, fmt.Errorf("the initramfs has modules of %d kernels in %s, want one", len(found), dir)
	}
	l := &Loader{dir: filepath.Dir(found[0]), sys: sys, tried: map[string]bool{}, load: finit}
	var text [3][]byte
	for i, name := range []string{"modules.dep", "modules.alias", "modules.softdep"} {
		var err error
		if text[i], err = os.ReadFile(filepath.Join(l.dir, name)); err != nil {
			return nil, err
		}
	}
	var err error
	l.index, err = kmod.Parse(text[0], text[1], text[2])
	return l, err
}

// LoadForDevices loads what serves the devices in sysfs. A driver that does not
// load is reported and not tried again: another one may reach the disk.
func (l *Loader) LoadForDevices(say func(string, ...any)) {
	_ = filepath.WalkDir(l.sys+"/devices", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir // a device went away meanwhile
		}
		if e.IsDir() && skipDir[e.Name()] {
			return fs.SkipDir
		}
		if e.Name() != "modalias" {
			return nil
		}
		text, err := os.ReadFile(p)
		alias := strings.TrimSpace(string(text))
		if err != nil || alias == "" || l.tried[alias] {
			return nil
		}
		l.tried[alias] = true
		for _, m := range l.index.Lookup(alias) {
			if err := l.Load(m); err != nil {
				say("%v", err)
			}
		}
		return nil
	})
}

// skipDir names directories of sysfs that are large and hold no devices.
var skipDir = map[string]bool{"power": true, "msi_irqs": true, "cpu": true, "tty": true, "memory": true, "queue": true, "mq": true, "vc": true, "tracing": true}

// Load loads modules by name with what they need. Names that are not in the
// initramfs are taken for built in.
func (l *Loader) Load(names ...string) error {
	for _, name := range names {
		for _, file := range l.index.Order(name) {
			if l.tried[file] {
				continue
			}
			l.tried[file] = true
			if err := l.load(filepath.Join(l.dir, file)); err != nil {
				return fmt.Errorf("kernel module %s: %w", kmod.Name(file), err)
			}
		}
	}
	return nil
}

// finit gives a module to the kernel; finit_module(2).
func finit(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(file, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(int(f.Fd()), "", flags)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) {
		return nil // already there, or built for a processor that this is not
	}
	return err
}
