package daemon

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Place is the directory of one lab: the machines' disks, the seeds, the
// secrets, the socket. It may be entered by its owner only.
type Place string

// Names inside a Place.
const (
	socketName    = "lab.sock"
	lockName      = "lock"
	logName       = "daemon.log"
	keyName       = "id_ed25519"
	nodesName     = "nodes"
	seedsName     = "seeds"
	storeName     = "store"
	authorityName = "authority.pem"
	portsName     = "ports.json"
	requestName   = "lab.json"
)

// PlaceOf is where the lab of a topology file lives: a directory of the user's
// state directory (XDG Base Directory Specification, XDG_STATE_HOME). Its name
// tells a person which cluster it is, and its digest keeps apart two clusters of
// one name.
func PlaceOf(cluster, topologyFile string) (Place, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) { // the specification says to ignore a relative one
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fault.New(fault.Missing, "no directory for the lab's state: %w", err).WithMend("set HOME or XDG_STATE_HOME")
		}
		base = filepath.Join(home, ".local", "state")
	}
	path, err := filepath.Abs(topologyFile)
	if err != nil {
		return "", err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", fault.New(fault.Input, "topology: %w", err)
	}
	digest := sha256.Sum256([]byte(path))
	return Place(filepath.Join(base, "slipway", "lab", fmt.Sprintf("%s-%x", cluster, digest[:4]))), nil
}

// Make creates the directory, and refuses one that others may enter.
func (p Place) Make() error {
	if err := os.MkdirAll(string(p), 0o700); err != nil {
		return err
	}
	st, err := os.Stat(string(p))
	if err != nil {
		return err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fault.New(fault.Missing, "others may enter %s, which holds the cluster's secrets", p).WithMend("run: chmod 700 %s", p)
	}
	return nil
}

func (p Place) path(name ...string) string {
	return filepath.Join(append([]string{string(p)}, name...)...)
}

// Log is what the daemon says, for people.
func (p Place) Log() string { return p.path(logName) }

// Key is the private key with which the lab's owner enters the nodes.
func (p Place) Key() string { return p.path(keyName) }

// Authority is the certificate of the cluster's authority, for clients.
func (p Place) Authority() string { return p.path(authorityName) }

// Machines is the directory with a directory for each machine.
func (p Place) Machines() string { return p.path(nodesName) }

// Machine is the directory of a node's machine.
func (p Place) Machine(node string) string { return p.path(nodesName, node) }

// KnownHosts is where ssh notes a node's host key. It is beside the node's disk,
// since it is as old as the disk.
func (p Place) KnownHosts(node string) string { return p.path(nodesName, node, "known_hosts") }

// Seeds is where seeds go that nobody else has written.
func (p Place) Seeds() string { return p.path(seedsName) }

// Store is where the cluster's secrets are kept if it has no other store.
func (p Place) Store() string { return p.path(storeName) }

// lock takes the directory for this process. It fails with errTaken if another
// one has it.
func (p Place) lock() (*os.File, error) {
	f, err := os.OpenFile(p.path(lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errTaken
		}
		return nil, os.NewSyscallError("flock", err)
	}
	return f, nil
}

var errTaken = errors.New("another process runs this lab")

// Runs says whether a daemon has the directory, by asking the lock.
func (p Place) Runs() (bool, error) {
	if _, err := os.Stat(p.path(lockName)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	f, err := p.lock()
	switch {
	case errors.Is(err, errTaken):
		return true, nil
	case err != nil:
		return false, err
	}
	return false, f.Close()
}

// A socket's path may have 107 bytes (unix(7)), and a state directory's path may
// be longer. So the socket is named by way of an open directory.

// listen makes the socket; what a daemon that ended has left is replaced.
func (p Place) listen() (net.Listener, error) {
	dir, err := os.Open(string(p))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := os.Remove(p.path(socketName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName))
	if err != nil {
		return nil, err
	}
	// It could not: the path means something else once dir is closed.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(p.path(socketName), 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

func (p Place) connect(ctx context.Context) (net.Conn, error) {
	dir, err := os.Open(string(p))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName))
}
