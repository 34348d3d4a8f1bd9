package versions

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/bootpart"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Store is the versions of a node.
type Store struct {
	node *node.Node
	// open opens the boot partition for changes, peek only to be read: udev looks a device over each time
	// that somebody closes it who might have written to it.
	open, peek func() (Partition, error)

	mu    sync.Mutex // one at a time
	offer *Image     // what blobs are taken for
}

// Partition is the boot partition.
type Partition interface {
	bootpart.Device
	Size() int64
	// Forget has what is read from now on come from the disk.
	Forget()
	Close() error
}

// New is the versions of a node; nil opens the real boot partition.
func New(n *node.Node, open func() (Partition, error)) *Store {
	s := &Store{node: n, open: open, peek: open}
	if open == nil {
		s.open = func() (Partition, error) { return s.device(os.O_RDWR) }
		s.peek = func() (Partition, error) { return s.device(os.O_RDONLY) }
	}
	return s
}

// device opens the partition that the init booted from.
func (s *Store) device(flag int) (Partition, error) {
	if s.node.Boot.ESP == "" {
		return nil, fault.New(fault.Missing, "this node was not started by the appliance's init: it has no versions")
	}
	f, err := os.OpenFile(s.node.Path(s.node.Boot.ESP), flag, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &partition{f, size}, nil
}

type partition struct {
	*os.File
	size int64
}

func (p *partition) Size() int64 { return p.size }
func (p *partition) Forget()     { forget(p.File) }

// with opens the boot partition for one piece of work.
func (s *Store) with(do func(v *bootpart.Volume, p Partition) error) error { return work(s.open, do) }

func work(open func() (Partition, error), do func(v *bootpart.Volume, p Partition) error) error {
	p, err := open()
	if err != nil {
		return err
	}
	defer p.Close()
	v, err := bootpart.Open(p, p.Size())
	if err != nil {
		return err
	}
	return errors.Join(do(v, p), v.Close())
}

// EnvPath is GRUB's environment block on a running node.
const EnvPath = bootfacts.ESPDir + "/grub/grubenv"

// ReadEnv reads the boot counting's record.
func ReadEnv(n *node.Node) (grubenv.Env, error) {
	block, err := os.ReadFile(n.Path(EnvPath))
	if err != nil {
		return grubenv.Env{}, fmt.Errorf("boot counting: %w", err)
	}
	env, err := grubenv.Parse(block)
	if err != nil {
		return env, fmt.Errorf("boot counting: %w", err)
	}
	return env, nil
}

// WriteEnv writes the block over the old one in place: its sectors must stay
// where GRUB finds them, and 1024 bytes within one cluster reach the disk whole
// or not at all as far as FAT is concerned. The partition is writable for that
// moment only.
func WriteEnv(ctx context.Context, n *node.Node, env grubenv.Env) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("boot counting: %w", err)
		}
	}()
	block, err := env.Bytes()
	if err != nil {
		return err
	}
	if _, err := n.Command(ctx, "mount", "-o", "remount,rw", bootfacts.ESPDir); err != nil {
		return err
	}
	defer func() {
		_, roErr := n.Command(context.WithoutCancel(ctx), "mount", "-o", "remount,ro", bootfacts.ESPDir)
		err = errors.Join(err, roErr)
	}()
	f, err := os.OpenFile(n.Path(EnvPath), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(block, 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// List is the versions that the node has, by name.
func (s *Store) List() (list []status.Version, err error) {
	env, err := ReadEnv(s.node)
	if err != nil {
		return nil, err
	}
	err = work(s.peek, func(v *bootpart.Volume, _ Partition) error {
		for _, e := range v.List("images") {
			if e.Dir {
				list = append(list, s.describe(v, path.Base(e.Path), env))
			}
		}
		return nil
	})
	return list, err
}

func (s *Store) describe(v *bootpart.Volume, name string, env grubenv.Env) status.Version {
	out := status.Version{
		Version: name, Running: name == s.node.Boot.Version, Good: name == env.Good, Previous: name == env.Previous,
		Trial: name == env.Try && env.Tries > 0,
	}
	if out.Trial {
		out.Tries = env.Tries
	}
	if name == env.Try && env.Failed() && !out.Running {
		out.Failed = Failure(s.node, name)
	}
	m, sum, err := readManifest(v, name)
	out.Incomplete = err != nil
	if err != nil {
		return out
	}
	out.Created, out.Manifest, out.PostgreSQL = m.Created, sum, PostgreSQL(m)
	for _, part := range Parts {
		_, there := v.Stat(path.Join(dirOf(name), part))
		out.Incomplete = out.Incomplete || !there
	}
	for _, l := range m.Layers {
		e, there := v.Stat(l.File())
		out.Incomplete = out.Incomplete || !there || e.Size != l.Size
	}
	return out
}

// readManifest reads the manifest of a version and its hash.
func readManifest(v *bootpart.Volume, version string) (*manifest.Manifest, string, error) {
	text, err := v.ReadFile(path.Join(dirOf(version), manifestAt), maxManifest)
	if err != nil {
		return nil, "", err
	}
	m, err := manifest.Parse(text)
	if err == nil && m.Version != version {
		err = fmt.Errorf("%s holds version %s", dirOf(version), m.Version)
	}
	sum := sha256.Sum256(text)
	return m, hex.EncodeToString(sum[:]), err
}

// PostgreSQL is the major version of PostgreSQL that a version brings; "" if none.
func PostgreSQL(m *manifest.Manifest) string {
	for _, p := range m.Packages {
		if major, ok := strings.CutPrefix(p.Name, "postgresql-"); ok && strings.Trim(major, "0123456789") == "" {
			return major
		}
	}
	return ""
}

// upperDir is what a version has written to its root file system; see the init.
func (s *Store) upperDir(version string) string {
	return s.node.Path(filepath.Join(bootfacts.StateDir, "upper", version))
}

// dropUpper takes away what a version wrote that is not there any more.
func (s *Store) dropUpper(version string) error {
	if version == "" || version == s.node.Boot.Version {
		return fault.New(fault.Internal, "the root file system of the version that runs cannot be taken away")
	}
	return os.RemoveAll(s.upperDir(version))
}
