package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/qemu-tests/drill/faults"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

// natively is what the faults of machines are where nodes are namespaces.
var natively = map[string]struct {
	inject, heal func(ctx context.Context, c *cluster, nodes []string) error
}{
	"switchover":    {handOver, nothing},
	"shutdown":      {shutdown, start},
	"kill-postgres": {kill("postgres"), nothing},
	"kill-patroni":  {kill("/usr/lib/slipway/patroni"), nothing},
	"kill-etcd":     {kill("/usr/bin/etcd"), nothing},
	"power-cut":     {powerCut, start},
	"site-loss":     {powerCut, start},
	"pause":         {pause, resume},
	"link-cut":      {carrier(false), carrier(true)},
	"isolation":     {isolate, rejoin},
	"partition":     {partition, mend},
	"mute":          {mute, mend},
	"deaf":          {deafen, mend},
	"latency":       {impair(faults.Latency), impair(ether.Path{})},
	"packet-loss":   {impair(faults.Loss), impair(ether.Path{})},
	"disk-full":     {fill, free},
	"etcd-majority": {stopEtcd, startEtcd},
}

// machinesOnly are faults that namespaces cannot have: they share the clock of this
// machine, and have no disks.
var machinesOnly = []string{"disk-slow", "clock-forward", "clock-back"}

// harm is a fault of machines, made natively. It implements drill.Fault.
type harm struct {
	c *cluster
	faults.Fault
}

// fault is one of the drill's faults, at its own targets unless others are named.
func (c *cluster) fault(name string, targets ...schedule.Target) *harm {
	c.t.Helper()
	named, err := faults.Named([]string{name})
	if err != nil {
		c.t.Fatal(err)
	}
	if targets != nil {
		named[0].Targets = targets
	}
	return &harm{c, named[0]}
}

func (h *harm) Plan() schedule.Fault { return h.Fault.Fault }

func (h *harm) Inject(ctx context.Context, nodes []string, _ uint64) error {
	return natively[h.Name].inject(ctx, h.c, nodes)
}

func (h *harm) Heal(ctx context.Context, nodes []string) error {
	return natively[h.Name].heal(ctx, h.c, nodes)
}

func TestEveryFaultIsOneForMachinesOnlyOrHasItsLikeHere(t *testing.T) {
	known := slices.Clone(machinesOnly)
	for name := range natively {
		known = append(known, name)
	}
	var all []string
	for _, f := range faults.All() {
		all = append(all, f.Name)
	}
	slices.Sort(known)
	slices.Sort(all)
	if !slices.Equal(known, all) {
		t.Errorf("the drill has %q\nand here are %q", all, known)
	}
}

func nothing(context.Context, *cluster, []string) error { return nil }

// handOver has another node lead, as slipway switchover has the leader's agent do it.
func handOver(ctx context.Context, c *cluster, nodes []string) error {
	leader, err := c.nodes[nodes[0]], error(nil)
	for _, candidate := range c.databases() {
		if candidate == nodes[0] {
			continue
		}
		var args []byte
		if args, err = json.Marshal(database.SwitchoverArgs{Leader: nodes[0], Candidate: candidate}); err != nil {
			return err
		}
		e := actions.NewEnv(*leader.Node.Node, actions.Caller{Name: "test"}, nil, func(string) {})
		if _, err = database.Switchover.Run(ctx, e, args); err == nil {
			return nil
		}
	}
	return err // no replica is fit to
}

// shutdown has nodes stop what runs on them, and then be gone.
func shutdown(ctx context.Context, c *cluster, nodes []string) error {
	c.each(nodes, func(name string) {
		for _, unit := range slices.Backward(c.units(name)) {
			c.nodes[name].StopUnit(unit)
		}
	})
	return isolate(ctx, c, nodes)
}

// powerCut takes nodes away as a power cut does, but for what a disk has not flushed:
// nothing of them says goodbye.
func powerCut(ctx context.Context, c *cluster, nodes []string) error {
	err := isolate(ctx, c, nodes)
	c.each(nodes, func(name string) {
		c.nodes[name].Crash()
		c.killAll(name, "postgres")
	})
	return err
}

func start(ctx context.Context, c *cluster, nodes []string) error {
	err := rejoin(ctx, c, nodes)
	for _, name := range nodes {
		for _, unit := range c.units(name) {
			c.nodes[name].StartUnit(unit)
		}
	}
	return err
}

// kill kills the processes that there are of a program. What looks after it starts it again.
func kill(program string) func(context.Context, *cluster, []string) error {
	return func(_ context.Context, c *cluster, nodes []string) error {
		for _, name := range nodes {
			pids := c.processes(name, program)
			if len(pids) == 0 {
				return fmt.Errorf("%s runs no %s", name, program)
			}
			for _, pid := range pids {
				end(pid)
			}
		}
		return nil
	}
}

// end kills a process and takes what is left of it: whoever was a child of one killed may
// be the test's, and Patroni takes a dead process that nobody has waited for (a zombie) for
// one that runs.
func end(pid int) {
	syscall.Kill(pid, syscall.SIGKILL)
	for {
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != syscall.EINTR {
			return // it was another's child, who has waited for it
		}
	}
}

// pause has all processes of nodes stand still. The kernel, which would answer for them,
// is not heard meanwhile.
func pause(ctx context.Context, c *cluster, nodes []string) error {
	err := isolate(ctx, c, nodes)
	c.signal(nodes, syscall.SIGSTOP)
	return err
}

func resume(ctx context.Context, c *cluster, nodes []string) error {
	c.signal(nodes, syscall.SIGCONT)
	return rejoin(ctx, c, nodes)
}

// signal is for all processes of nodes. Those that were being started meanwhile are met the
// second time.
func (c *cluster) signal(nodes []string, signal syscall.Signal) {
	for _, name := range nodes {
		for range 2 {
			for _, pid := range c.processes(name, "") {
				syscall.Kill(pid, signal)
			}
		}
	}
}

func carrier(in bool) func(context.Context, *cluster, []string) error {
	return func(_ context.Context, c *cluster, nodes []string) (err error) {
		for _, name := range nodes {
			err = errors.Join(err, c.net.carrier(name, in))
		}
		return err
	}
}

func isolate(_ context.Context, c *cluster, nodes []string) error {
	for _, name := range nodes {
		c.net.sw.Cut(name)
	}
	return nil
}

func rejoin(_ context.Context, c *cluster, nodes []string) error {
	for _, name := range nodes {
		c.net.sw.Restore(name)
	}
	return nil
}

func partition(ctx context.Context, c *cluster, nodes []string) error {
	return errors.Join(mute(ctx, c, nodes), deafen(ctx, c, nodes))
}

func mute(_ context.Context, c *cluster, nodes []string) error {
	c.net.sever(nodes, c.net.others(nodes))
	return nil
}

func deafen(_ context.Context, c *cluster, nodes []string) error {
	c.net.sever(c.net.others(nodes), nodes)
	return nil
}

// mend ends partition, mute and deafen.
func mend(_ context.Context, c *cluster, nodes []string) error {
	c.net.join(nodes, c.net.others(nodes))
	c.net.join(c.net.others(nodes), nodes)
	return nil
}

func impair(p ether.Path) func(context.Context, *cluster, []string) error {
	return func(_ context.Context, c *cluster, nodes []string) error {
		for _, name := range nodes {
			c.net.sw.Impair(name, ether.Any, p)
			c.net.sw.Impair(ether.Any, name, p)
		}
		return nil
	}
}

// ballast is the file that fills a file system.
func ballast(c *cluster, name string) string { return c.nodes[name].Path(dataDir + "/.ballast") }

// fill takes all room of the file system with the database, in ever smaller pieces.
func fill(_ context.Context, c *cluster, nodes []string) error {
	for _, name := range nodes {
		file, err := os.OpenFile(ballast(c, name), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer file.Close()
		size := int64(0)
		for _, piece := range []int64{32 << 20, 1 << 20, 4 << 10} {
			for err = nil; err == nil; size += piece {
				err = unix.Fallocate(int(file.Fd()), 0, size, piece)
			}
			if size -= piece; err != unix.ENOSPC {
				return err
			}
		}
	}
	return nil
}

func free(_ context.Context, c *cluster, nodes []string) (err error) {
	for _, name := range nodes {
		err = errors.Join(err, os.Remove(ballast(c, name)))
	}
	return err
}

func stopEtcd(_ context.Context, c *cluster, nodes []string) error {
	c.each(nodes, func(name string) { c.nodes[name].StopUnit(consensus.Unit) })
	return nil
}

func startEtcd(_ context.Context, c *cluster, nodes []string) error {
	c.each(nodes, func(name string) { c.nodes[name].StartUnit(consensus.Unit) })
	return nil
}
