// Package node models the machine that the agent configures: where its root
// file system is, how a command is run in it, which role it has, what its
// metadata asks for, and what was done to it before.
//
// Everything goes through a Node, so that a step can be applied to a directory
// in a test as well as to a running appliance: file names are joined to Root,
// commands go to Run.
package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/netconf"
	"github.com/slipwayhq/slipway/firstboot/units"
	"github.com/slipwayhq/slipway/internal/atomicfile"
)

// Node is the machine.
type Node struct {
	Root string // directory of the root file system; "/" on an appliance
	Run  Runner
	// Units is the node's systemd, for those who ask it again and again.
	Units units.Manager
	Role  *manifest.Role
	// Boot is the init's record of this boot; empty on a machine without one.
	Boot bootfacts.Facts
	// Seed is what the platform handed over; nil as long as there is none.
	Seed *Seed
	// User is the seed's user-data, read. It is never nil.
	User *cloudconfig.UserData
	// Member is the node's part in its cluster; nil on a node that stands alone,
	// and on one whose part cannot be used. Nobody changes what it points to.
	Member *member.Member

	// Taken are addresses of the network configuration that somebody else uses,
	// and who does; the node leaves them alone.
	Taken map[netip.Addr]string

	// Kept outlives the image version, Local lives and dies with the root file
	// system of one version. See State.
	Kept, Local *State

	// Report takes what the step under way has to say.
	Report Reporter
}

// Reporter takes what a step says about itself.
type Reporter interface {
	Waiting(why string)  // why the step waits, as a clause of its own; "" when it goes on
	Changed(what string) // something on the node was changed
	Warn(w Warning)      // something does not take effect as asked for
	Say(line string)     // a line for whoever watches
	HostKey(kind, fingerprint string)
	Login(user string) // somebody who can get in over ssh with a key
}

// Warning is something that the metadata asks for and that the node does not
// do as written.
type Warning struct {
	Where   string `json:"where"`         // file:line, or the step that noticed
	Key     string `json:"key,omitempty"` // path in the file, such as users[1].sudo
	Message string `json:"message"`
	// Serious tells a mistake from a key that a node merely does not act on.
	Serious bool `json:"serious"`
}

// String is the warning as one line.
func (w Warning) String() string {
	if w.Key != "" {
		return w.Where + ": " + w.Key + ": " + w.Message
	}
	return w.Where + ": " + w.Message
}

// Seed is the metadata of a node, whatever datasource it came from.
type Seed struct {
	Source     string // for people: NoCloud on /dev/sr0
	Hostname   string // with its domain, if it has one
	PublicKeys []string
	Password   string // of the default user, in clear, as OVF gives it
	Documents  []cloudconfig.Document
	Network    *netconf.Config // nil: not said
	Warnings   []Warning
	// Fingerprint changes whenever anything in the seed does.
	Fingerprint string
	// Slipway is the cluster's block in meta-data, as YAML; empty if there is none.
	Slipway string
}

// Sleep reports whether it lasted to its end.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// Waiting says why the step under way waits, in a clause that stands as it is
// behind the step's name: "no quorum: 1 of 3 members of etcd are well".
func (n *Node) Waiting(format string, args ...any) { n.Report.Waiting(fmt.Sprintf(format, args...)) }

// Changed says that the step under way changed something on the node.
func (n *Node) Changed(format string, args ...any) { n.Report.Changed(fmt.Sprintf(format, args...)) }

// Warn says that something does not take effect as asked for.
func (n *Node) Warn(where, key, format string, args ...any) {
	n.Report.Warn(Warning{Where: where, Key: key, Message: fmt.Sprintf(format, args...), Serious: true})
}

// Path is a file of the node, given by its path on the node.
func (n *Node) Path(path string) string { return filepath.Join(n.Root, path) }

// Exists reports whether the node has a file or directory.
func (n *Node) Exists(path string) bool {
	_, err := os.Lstat(n.Path(path))
	return err == nil
}

// Read reads a file of the node; one that is not there is empty.
func (n *Node) Read(path string) ([]byte, error) {
	data, err := os.ReadFile(n.Path(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// Write makes a file have content and mode, with its directories, and reports
// whether that was a change. A file that is right already is not touched.
func (n *Node) Write(path string, mode os.FileMode, content []byte) (changed bool, err error) {
	full := n.Path(path)
	if info, err := os.Lstat(full); err == nil && info.Mode().IsRegular() && info.Mode().Perm() == mode {
		if old, err := os.ReadFile(full); err == nil && bytes.Equal(old, content) {
			return false, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return false, err
	}
	return true, atomicfile.WriteBytes(full, mode, content)
}

// Remove takes a file away and reports whether it was there.
func (n *Node) Remove(path string) (bool, error) {
	err := os.Remove(n.Path(path))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Ensure is Write for content that is wanted, and Remove for content that is
// not (""); it reports the change to the step.
func (n *Node) Ensure(path string, mode os.FileMode, content string) (changed bool, err error) {
	if content == "" {
		if changed, err = n.Remove(path); changed {
			n.Changed("removed %s", path)
		}
		return changed, err
	}
	if changed, err = n.Write(path, mode, []byte(content)); changed && err == nil {
		n.Changed("wrote %s", path)
	}
	return changed, err
}

// Has reports whether the image has a program, by its name.
func (n *Node) Has(program string) bool {
	for _, dir := range []string{"/usr/sbin", "/usr/bin"} {
		if info, err := os.Stat(n.Path(dir + "/" + program)); err == nil && info.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}

// Command runs a program of the node and returns what it printed.
func (n *Node) Command(ctx context.Context, argv ...string) (string, error) {
	return n.Execute(ctx, Command{Argv: argv})
}

// Execute is Command with all its options.
func (n *Node) Execute(ctx context.Context, c Command) (string, error) {
	if !strings.HasPrefix(c.Argv[0], "/") && !n.Has(c.Argv[0]) {
		return "", fmt.Errorf("the image has no program %s", c.Argv[0])
	}
	return n.Run.Run(ctx, c)
}

// UnitActive reports whether systemd runs a unit. On a node where systemd does
// not run, no unit does.
func (n *Node) UnitActive(ctx context.Context, unit string) bool {
	return n.unitState(ctx, unit) == "active"
}

// UnitBusy reports whether systemd runs a unit or is starting it: a unit that does one thing and ends
// (Type=oneshot) is starting for as long as it runs.
func (n *Node) UnitBusy(ctx context.Context, unit string) bool {
	state := n.unitState(ctx, unit)
	return state == "active" || state == "activating"
}

// UnitStarted is UnitActive for a unit that starts by itself: while it starts, it waits.
// Such a unit may have read its configuration already, and takes no orders yet.
func (n *Node) UnitStarted(ctx context.Context, unit string) bool {
	state := n.unitState(ctx, unit)
	for state == "activating" && Sleep(ctx, 100*time.Millisecond) {
		state = n.unitState(ctx, unit)
	}
	return state == "active"
}

func (n *Node) unitState(ctx context.Context, unit string) string {
	if !n.Exists("/run/systemd/system") {
		return ""
	}
	out, _ := n.Command(ctx, "systemctl", "is-active", unit)
	return strings.TrimSpace(out)
}

// Nudge has systemd do something to a unit if the unit runs already; one that
// starts later reads its configuration anyway. It never waits: the unit may be
// ordered after the agent itself.
func (n *Node) Nudge(ctx context.Context, verb, unit string) error {
	if !n.UnitActive(ctx, unit) {
		return nil
	}
	_, err := n.Command(ctx, "systemctl", "--no-block", verb, unit)
	return err
}
