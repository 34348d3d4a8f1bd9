// Package agent is the daemon that brings a node to what its metadata asks for,
// at every boot, and tells how far it is.
//
// A round goes through the steps of package steps in order. Those that need no
// network come first; systemd then hears READY=1, lets the network and the
// services start, and the other steps follow. Without metadata a round ends in
// the state unconfigured, and the agent keeps looking: metadata that appears
// later starts a new round, without a restart. Once the role's services run,
// the agent watches them.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/datasource"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/product"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/steps"
	"github.com/slipwayhq/slipway/firstboot/units"
	"github.com/slipwayhq/slipway/firstboot/versions"
)

const (
	lookAgain     = 3 * time.Second  // for metadata, while there is none
	describeAgain = 30 * time.Second // for what no event tells of, such as the host name
	settleTime    = 20 * time.Second
)

// Agent is the daemon.
type Agent struct {
	Root     string
	Runner   node.Runner
	Units    units.Manager // systemd; nil asks it by systemctl
	Metadata datasource.Env
	Watchers []status.Watcher
	Socket   string             // where to answer; "" is nowhere
	Last     string             // where the last report is kept; "" is nowhere
	Again    <-chan os.Signal   // asks for a new round
	Notify   func(state string) // tells systemd; nil does it for real
	// Dial reaches other agents; nil dials for real.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Run goes on until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	n, err := a.load()
	if err != nil {
		return err
	}
	if a.Notify == nil {
		a.Notify = func(state string) { daemon.SdNotify(false, state) }
	}
	watchers := append([]status.Watcher{systemd{a.Notify}}, a.Watchers...)
	if a.Last != "" {
		watchers = append(watchers, keeper{a.Last})
	}
	if n.Boot.Trial {
		watchers = append(watchers, &versions.Recorder{Node: n})
	}
	t := status.NewTracker(status.Report{
		Role: n.Role.Name, Summary: n.Role.Summary, Version: n.Boot.Version, Trial: n.Boot.Trial, Maintenance: n.Maintenance(),
		Reset: n.Boot.State.Reset, Start: n.Start(),
	}, time.Now, watchers...)
	if a.Socket != "" {
		if err := status.Serve(ctx, a.Socket, t); err != nil {
			return fmt.Errorf("answering at %s: %w", a.Socket, err)
		}
	}
	t.Update(func(*status.Report) {}, fmt.Sprintf("agent started: role %s, version %s", n.Role.Name, orUnknown(n.Boot.Version)))
	r := &run{
		agent: a, node: n, tracker: t, source: &source{env: a.Metadata, node: n},
		membership: &steps.Membership{Store: member.NewStore(n.Path(member.Dir)), Now: time.Now},
		asked:      make(chan string, 1),
		looking:    make(chan struct{}, 1),
	}
	r.versions = versions.New(n, nil)
	r.lookAtVersions()
	r.source.refuses = r.membership.Refuses
	r.membership.Unknown = func() bool { return r.source.needsNetwork }
	service := peers.New(t.Report, r.newPlan, r.actions())
	if a.Dial != nil {
		service.Dial = a.Dial
	}
	service.Receive = r.versions.Receive
	service.Actions.Actions = append(service.Actions.Actions, product.Share(service))
	r.among = peers.Task{Service: service, Life: ctx}
	return r.rounds(ctx)
}

// ask has a new round begin.
func (r *run) ask(why string) {
	select {
	case r.asked <- why:
	default: // one is asked for already
	}
}

// newPlan keeps a newer plan and has a new round apply it.
func (r *run) newPlan(p *plan.Plan, signed plan.Signed) error {
	if err := r.membership.Store.SavePlan(p, signed); err != nil {
		return err
	}
	r.ask(fmt.Sprintf("the cluster's plan is that of generation %d now", p.Generation))
	return nil
}

func orUnknown(version string) string {
	if version == "" {
		return "unknown"
	}
	return version
}

// load reads what the image and the init say about this node.
func (a *Agent) load() (*node.Node, error) {
	n := &node.Node{Root: a.Root, Run: a.Runner, Units: a.Units, User: &cloudconfig.UserData{}}
	if n.Units == nil {
		n.Units = units.Systemctl{Run: n.Command}
	}
	marker, err := os.ReadFile(n.Path("/" + manifest.RolePath))
	if err != nil {
		return nil, fmt.Errorf("this is no appliance of slipway: %w", err)
	}
	if n.Role, err = manifest.ParseRole(marker); err != nil {
		return nil, err
	}
	if record, err := os.ReadFile(n.Path(bootfacts.Path)); err == nil {
		facts, err := bootfacts.Parse(record)
		if err != nil {
			return nil, err
		}
		n.Boot = *facts
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if n.Kept, err = node.OpenState(n, node.KeptPath); err != nil {
		return nil, err
	}
	if n.Local, err = node.OpenState(n, node.LocalPath); err != nil {
		return nil, err
	}
	return n, nil
}

// run is the agent at work.
type run struct {
	agent      *Agent
	node       *node.Node
	tracker    *status.Tracker
	source     *source
	told       bool // systemd knows that the node is ready to start its services
	membership *steps.Membership
	among      peers.Task
	versions   *versions.Store
	asked      chan string   // why a new round is due
	looking    chan struct{} // the observers are to be asked before it is time
	essential  []string      // steps without which the role does not come up
	describing sync.Mutex
	settling   sync.Mutex
}

func (r *run) rounds(ctx context.Context) error {
	r.source.settled = r.settleDevices(ctx)
	for {
		local, tasks := steps.Local(r.source.find, r.membership), steps.Cluster(r.membership, r.among, r.ask)
		online := steps.Online(steps.Confirmer{Missing: func() string { return r.unfinished(tasks) }})
		all := slices.Clone(local)
		r.essential = []string{"membership", "role"}
		for _, task := range tasks {
			all = append(all, task)
			r.essential = append(r.essential, task.Name())
		}
		r.begin(append(all, online...))
		for _, step := range local {
			err := r.apply(ctx, step)
			switch step.Name() {
			case "datasource":
				r.foundMetadata()
			case "membership":
				if err != nil || r.membership.Untimely != nil {
					r.source.live = false // another seed may put it right
				}
			}
			if ctx.Err() != nil {
				return nil
			}
		}
		if !r.told {
			r.agent.Notify(daemon.SdNotifyReady)
			r.told = true
		}
		if r.source.needsNetwork && !r.source.env.NetworkUp {
			// Now that the network comes up, the metadata can be fetched.
			r.source.env.NetworkUp = true
			continue
		}
		r.source.env.NetworkUp = true
		if m := r.node.Member; m != nil && m.Retired != "" {
			tasks, online = steps.Serving(m, tasks), nil
			r.keep(local, tasks)
		}
		onlineCtx, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r.online(onlineCtx, tasks, online)
		}()
		why := r.watch(ctx)
		stop()
		<-ended
		if ctx.Err() != nil {
			r.agent.Notify(daemon.SdNotifyStopping)
			return nil
		}
		r.tracker.Update(func(*status.Report) {}, why)
	}
}

// settleDevices waits, aside, until udev has gone through the devices that the
// machine started with.
func (r *run) settleDevices(ctx context.Context) <-chan struct{} {
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		if !r.node.Has("udevadm") || !r.node.Exists("/run/systemd/system") {
			return
		}
		if _, err := r.node.Command(ctx, "udevadm", "settle", "--timeout="+strconv.Itoa(int(settleTime.Seconds()))); err != nil && ctx.Err() == nil {
			r.tracker.Alert(status.Warning, func(*status.Report) {}, fmt.Sprintf("the machine's devices took longer than %s to settle", settleTime))
		}
	}()
	return settled
}

func (r *run) begin(all []steps.Step) {
	names := make([]string, len(all))
	for i, s := range all {
		names[i] = s.Name()
	}
	r.tracker.Begin(names)
	if r.told {
		r.tracker.SetState(status.Converging)
	}
}

// keep has the report tell of these steps and tasks alone.
func (r *run) keep(local []steps.Step, tasks []steps.Task) {
	var names []string
	for _, s := range local {
		names = append(names, s.Name())
	}
	for _, t := range tasks {
		names = append(names, t.Name())
	}
	r.tracker.Keep(names)
}

// apply applies one step and reports how it went.
func (r *run) apply(ctx context.Context, s steps.Step) error {
	handle := r.tracker.Step(s.Name())
	r.node.Report = handle
	handle.Start()
	if !r.told {
		// Each step has limits of its own; formatting a large disk must not look
		// like a start that hangs.
		r.agent.Notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", steps.Longest.Microseconds()))
	}
	err := s.Apply(ctx, r.node)
	if ctx.Err() == nil {
		handle.End(err)
	}
	return err
}

// foundMetadata says what the datasource step came back with.
func (r *run) foundMetadata() {
	seed := r.node.Seed
	r.tracker.Update(func(rep *status.Report) {
		if rep.Datasource = ""; seed != nil {
			rep.Datasource = seed.Source
		}
	})
	if seed == nil && r.source.trouble == "" && !r.source.needsNetwork {
		r.tracker.SetState(status.Unconfigured)
		r.tracker.Update(func(*status.Report) {}, "no metadata: the network uses DHCP, and nobody can log in")
		return
	}
	r.tracker.SetState(status.Converging)
	if seed != nil {
		r.tracker.Update(func(*status.Report) {}, "metadata: "+seed.Source)
	}
}

// watch returns, with the reason, when a new round is due.
func (r *run) watch(ctx context.Context) string {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	moved := addressEvents(ctx)
	look, again := time.NewTicker(lookAgain), time.NewTicker(describeAgain)
	defer look.Stop()
	defer again.Stop()
	if r.source.live {
		look.Stop() // what is in use is read again at the next boot, or when asked for
	}
	r.describe()
	for {
		select {
		case <-ctx.Done():
			return ""
		case <-r.agent.Again:
			return "asked to go through all steps again"
		case why := <-r.asked:
			return why
		case <-moved:
			r.describe()
		case <-again.C:
			r.describe()
		case <-look.C:
			if r.source.look(ctx) {
				return "metadata has appeared"
			}
		}
	}
}
