package lab

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Dial connects by TCP to an address in the cluster's network, as a computer
// outside of the cluster would, from the gateway.
func (c *Cluster) Dial(ctx context.Context, address string) (net.Conn, error) {
	return c.network.dial(ctx, address)
}

// Witness calls seen for each frame that a node sends from an IP address, until stop
// is called: it tells who has a virtual address, whatever the nodes say.
func (c *Cluster) Witness(address netip.Addr, seen func(node string)) (stop func()) {
	return c.network.sw.Witness(address, func(_ time.Time, port string) {
		if node, _, isNode := strings.Cut(port, "/"); isNode {
			seen(node)
		}
	})
}

// Report is a node's own account of itself, by way of the guest agent, so that it
// needs no network in the guest. It is the file that slipway's agent keeps up to date:
// who waits asks every other second, and a command in an emulated guest each time
// would take as much of its processor as all its services together.
func (c *Cluster) Report(ctx context.Context, name string) (*status.Report, error) {
	n, err := c.node(name)
	if err != nil {
		return nil, err
	}
	text, err := n.ReadFile(ctx, status.LastReport)
	if err != nil {
		return nil, err
	}
	var r status.Report
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("%s of %s: %w", status.LastReport, name, err)
	}
	return &r, nil
}

// Overview asks all agents over mutual TLS, as an administrator outside of the
// cluster would. The configuration holds the administrator's certificate, and the
// cluster's authority in RootCAs.
func (c *Cluster) Overview(ctx context.Context, p *plan.Plan, config *tls.Config) overview.Overview {
	return overview.Gather(ctx, p, config, func(ctx context.Context, _, address string) (net.Conn, error) {
		return c.Dial(ctx, address)
	})
}

// WaitUntilReady waits until the named nodes, or all, say that they are ready.
// Its deadline is that of ctx: it depends on the cluster how long that takes.
func (c *Cluster) WaitUntilReady(ctx context.Context, names ...string) error {
	return c.WaitUntil(ctx, status.Ready, names...)
}

// WaitUntil is WaitUntilReady for another state.
func (c *Cluster) WaitUntil(ctx context.Context, want status.State, names ...string) error {
	return c.await(ctx, string(want), func(s status.State) bool { return s == want }, names)
}

// WaitUntilUp waits until the named nodes, or all, say that their roles are up, though
// they may miss others that have no power yet.
func (c *Cluster) WaitUntilUp(ctx context.Context, names ...string) error {
	return c.await(ctx, "up", status.State.Up, names)
}

func (c *Cluster) await(ctx context.Context, want string, is func(status.State) bool, names []string) error {
	_, err := c.each(names, func(n *clusterNode) (bool, error) {
		last := "it has said nothing"
		for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
			if !n.Running() {
				return false, n.failed("waited for it to be %s: %w", want, errMachineEnded)
			}
			// A guest that boots says nothing: ask again before the agent's channel is waited for in vain.
			bounded, cancel := context.WithTimeout(ctx, 4*knockTime)
			r, err := c.Report(bounded, n.node.Name)
			cancel()
			switch {
			case err == nil && is(r.State):
				return true, nil
			case err == nil:
				last = "it is " + Progress(r)
			case ctx.Err() == nil:
				last = firstLine(err.Error())
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return false, n.failed("waited for it to be %s: %w; last: %s", want, ctx.Err(), last)
			}
		}
	})
	return err
}

// Progress is a report in a few words: the state, and the first step that has
// something to tell, or else the first that is under way.
func Progress(r *status.Report) string {
	told, running := "", ""
	for _, s := range r.Steps {
		switch {
		case told != "":
		case s.State == status.Broken:
			told = ": " + s.Name + ": " + s.Error
		case s.State == status.Running && s.WaitingFor != "":
			told = ": " + s.Name + ": " + s.WaitingFor
		case s.State == status.Running && running == "":
			running = ": " + s.Name
		}
	}
	return string(r.State) + cmp.Or(told, running)
}

// InsertSeed puts another seed into a node's drive, whether it runs or not.
func (c *Cluster) InsertSeed(ctx context.Context, name, iso string) error {
	n, err := c.node(name)
	if err != nil {
		return err
	}
	abs, err := filepath.Abs(iso)
	if err != nil {
		return err
	}
	n.power.Lock()
	defer n.power.Unlock()
	n.vm.Seeds = []string{abs}
	if !n.Running() {
		return nil
	}
	return n.InsertCD(ctx, abs)
}

// SetClock sets what a node's hardware clock says when it is powered on the next
// time; the zero value is the host's time.
func (c *Cluster) SetClock(name string, clock time.Time) error {
	n, err := c.node(name)
	if err != nil {
		return err
	}
	n.power.Lock()
	defer n.power.Unlock()
	n.vm.Clock = clock
	return nil
}

// Console connects to a node's serial port.
func (c *Cluster) Console(name string) (net.Conn, error) {
	n, err := c.node(name)
	if err != nil {
		return nil, err
	}
	if !n.Running() {
		return nil, fault.New(fault.Failed, "%s is powered off", name).WithMend("start it with slipway up %s %s", c.Topology().Path(), name)
	}
	return n.Serial()
}

// ConsoleLog is what a node's serial port has said since it was last powered on.
func (c *Cluster) ConsoleLog(name string) (string, error) {
	n, err := c.node(name)
	if err != nil {
		return "", err
	}
	return n.BootLog(), nil
}

// ConsoleSize tells a guest how large the terminal at its serial port is: a
// serial line has no way to say so (tty_ioctl(4), TIOCSWINSZ).
func (c *Cluster) ConsoleSize(ctx context.Context, name string, rows, columns int) error {
	n, err := c.node(name)
	if err != nil {
		return err
	}
	_, err = n.Succeed(ctx, fmt.Sprintf("stty -F /dev/ttyS0 rows %d cols %d", rows, columns))
	return err
}

// Screenshot is a node's screen as PNG.
func (c *Cluster) Screenshot(ctx context.Context, name string) ([]byte, error) {
	n, err := c.node(name)
	if err != nil {
		return nil, err
	}
	n.shot.Lock()
	defer n.shot.Unlock()
	file := n.path("screen.png")
	if err := n.Machine.Screenshot(ctx, file); err != nil {
		return nil, err
	}
	defer os.Remove(file)
	return os.ReadFile(file)
}
