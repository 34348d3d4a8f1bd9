package faults

import (
	"context"
	"fmt"
	"time"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

const (
	one      = schedule.One
	primary  = schedule.Primary
	holder   = schedule.Holder
	minority = schedule.Minority
	majority = schedule.Majority
	all      = schedule.All
)

// dataDir is on the file system that PostgreSQL writes to.
const dataDir = "/var/lib/postgresql"

// Strengths.
const (
	slowRequest = 30 * time.Millisecond // a disk that is worn, or shared with a busy neighbour
	slowBytes   = 1 << 20               // in a second
	clockStep   = 10 * time.Minute
)

// What happens to each packet to and from a node.
var (
	Latency = ether.Path{Delay: 50 * time.Millisecond, Jitter: 100 * time.Millisecond}
	Loss    = ether.Path{Loss: 0.15}
)

// switchoverName is the one that is no fault of machines.
const switchoverName = "switchover"

// All are all faults, the gentlest first.
func All() []Fault {
	return []Fault{
		{plan(switchoverName, 0, 0, primary), "no fault: slipway switchover has another node lead", switchover, nil},
		{plan("shutdown", 10, 40, one, primary, holder), "power off in good order, then on again", shutdown, start},
		{plan("kill-postgres", 0, 0, one, primary), "SIGKILL to PostgreSQL, all of its processes", kill("postgres"), nil},
		{plan("kill-patroni", 0, 0, one, primary), "SIGKILL to Patroni", kill("patroni"), nil},
		{plan("kill-etcd", 0, 0, one, primary, minority, majority), "SIGKILL to etcd", kill("etcd"), nil},
		{plan("power-cut", 10, 40, one, primary, holder, minority, majority), "power cut: what was not flushed to disk is gone; then power again", crash, start},
		{plan("site-loss", 10, 40, all), "power cut of every node of the site that serves, at once", crash, start},
		{plan("pause", 5, 60, one, primary, holder, minority, majority), "processors stand still, as under a hypervisor that is overloaded", each((*lab.Machine).Pause), each((*lab.Machine).Resume)},
		{plan("link-cut", 20, 60, one, primary, holder), "the cable is pulled, and the node sees it", each(unplug), each(plug)},
		{plan("isolation", 20, 60, one, primary, holder, minority, majority), "the node hears nobody and nobody hears it, clients included", isolate, rejoin},
		{plan("partition", 20, 60, one, primary, holder, minority, majority), "the nodes are parted from all others, while clients reach both parts", partition, mendPartition},
		{plan("mute", 20, 60, one, primary, holder), "what the node sends reaches no other, while it still hears them", mute, mendPartition},
		{plan("deaf", 20, 60, one, primary, holder), "the node hears no other, while they still hear it", deafen, mendPartition},
		{plan("latency", 20, 60, one, primary, holder, all), "each packet to and from the node takes 50 to 150 ms longer", impair(Latency), mend},
		{plan("packet-loss", 20, 60, one, primary, holder, all), "one of seven packets to and from the node is lost", impair(Loss), mend},
		{plan("disk-full", 20, 60, one, primary), "the file system with the database has no room left", each(fill), each(free)},
		{plan("disk-slow", 20, 60, one, primary, all), "each request to the disk takes 30 ms longer, with 1 MiB a second at most", each(slow), each(mendDisk)},
		{plan("clock-forward", 20, 60, one, primary, holder), "the clock steps 10 minutes forward", step(clockStep), each((*lab.Machine).MendClock)},
		{plan("clock-back", 20, 60, one, primary, holder), "the clock steps 10 minutes back", step(-clockStep), each((*lab.Machine).MendClock)},
		{plan("etcd-majority", 20, 60, majority), "etcd is stopped on most of its nodes, so that nothing can be agreed on", each(stopEtcd), each(startEtcd)},
	}
}

func plan(name string, shortest, longest time.Duration, targets ...schedule.Target) schedule.Fault {
	return schedule.Fault{Name: name, Targets: targets, Shortest: shortest * time.Second, Longest: longest * time.Second}
}

// switchover is what slipway switchover does, agreed to beforehand.
func switchover(ctx context.Context, s strike) error {
	if s.admin == nil {
		return fault.New(fault.Usage, "a switchover is no fault of a machine").WithMend("run slipway switchover")
	}
	r := operations.Runner{Cluster: s.admin, Say: func(string) {}, Agree: func(context.Context, string) error { return nil }}
	_, err := r.Run(ctx, operations.Switchover(s.admin, "", ""))
	return err
}

func shutdown(ctx context.Context, s strike) error {
	_, forced, err := s.cluster.Shutdown(ctx, s.nodes...)
	if err == nil && len(forced) > 0 {
		err = fmt.Errorf("%v did not shut down within %v", forced, limit)
	}
	return err
}

func crash(_ context.Context, s strike) error {
	_, err := s.cluster.Crash(s.nodes...)
	return err
}

func start(ctx context.Context, s strike) error {
	_, err := s.cluster.Start(ctx, s.nodes...)
	return err
}

func kill(program string) func(context.Context, strike) error {
	return each(func(m *lab.Machine, ctx context.Context) error {
		killed, err := m.Kill(ctx, program)
		if err == nil && killed == 0 {
			err = fmt.Errorf("%s runs no %s", m.Name(), program)
		}
		return err
	})
}

// What is done to one machine takes it first, as package lab's own methods do when
// they are named as functions.

func unplug(m *lab.Machine, ctx context.Context) error { return m.Unplug(ctx) }
func plug(m *lab.Machine, ctx context.Context) error   { return m.Plug(ctx) }

func isolate(_ context.Context, s strike) error {
	return s.each(func(m *lab.Machine) error { return s.cluster.Block(m.Name()) })
}

func rejoin(_ context.Context, s strike) error {
	return s.each(func(m *lab.Machine) error { return s.cluster.Unblock(m.Name()) })
}

func partition(_ context.Context, s strike) error { return s.cluster.Partition(s.nodes, s.others()) }
func mute(_ context.Context, s strike) error      { return s.cluster.Sever(s.nodes, s.others()) }
func deafen(_ context.Context, s strike) error    { return s.cluster.Sever(s.others(), s.nodes) }

func mendPartition(_ context.Context, s strike) error {
	s.cluster.Rejoin()
	return nil
}

func impair(p ether.Path) func(context.Context, strike) error {
	return func(_ context.Context, s strike) error {
		return s.each(func(m *lab.Machine) error { return s.cluster.Impair(m.Name(), p) })
	}
}

func mend(_ context.Context, s strike) error {
	return s.each(func(m *lab.Machine) error { return s.cluster.Mend(m.Name()) })
}

func fill(m *lab.Machine, ctx context.Context) error { return m.FillDisk(ctx, dataDir) }
func free(m *lab.Machine, ctx context.Context) error { return m.FreeDisk(ctx, dataDir) }

func slow(m *lab.Machine, _ context.Context) error     { return m.SlowDisk(slowRequest, slowBytes) }
func mendDisk(m *lab.Machine, _ context.Context) error { return m.MendDisk() }

// step is a step of the clock, which may be some more or less.
func step(by time.Duration) func(context.Context, strike) error {
	return func(ctx context.Context, s strike) error {
		by := by + time.Duration(s.random.Int64N(int64(time.Minute)))
		return s.each(func(m *lab.Machine) error { return m.StepClock(ctx, by) })
	}
}

func stopEtcd(m *lab.Machine, ctx context.Context) error {
	_, err := m.Succeed(ctx, "systemctl stop etcd.service")
	return err
}

func startEtcd(m *lab.Machine, ctx context.Context) error {
	_, err := m.Succeed(ctx, "systemctl start etcd.service")
	return err
}
