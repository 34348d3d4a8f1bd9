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
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/datasource"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/steps"
)

const (
	lookAgain  = 3 * time.Second // for metadata, addresses
	retryRole  = 5 * time.Second // after a service failed
	watchRole  = 10 * time.Second
	settleTime = 20 * time.Second
)

// Agent is the daemon.
type Agent struct {
	Root     string
	Runner   node.Runner
	Metadata datasource.Env
	Watchers []status.Watcher
	Socket   string             // where to answer; "" is nowhere
	Last     string             // where the last report is kept; "" is nowhere
	Again    <-chan os.Signal   // asks for a new round
	Notify   func(state string) // tells systemd; nil does it for real
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
	t := status.NewTracker(status.Report{
		Role: n.Role.Name, Summary: n.Role.Summary, Version: n.Boot.Version, Trial: n.Boot.Trial,
	}, time.Now, watchers...)
	if a.Socket != "" {
		if err := status.Serve(ctx, a.Socket, t); err != nil {
			return fmt.Errorf("answering at %s: %w", a.Socket, err)
		}
	}
	t.Update(func(*status.Report) {}, fmt.Sprintf("agent started: role %s, version %s", n.Role.Name, orUnknown(n.Boot.Version)))
	r := &run{agent: a, node: n, tracker: t, source: &source{env: a.Metadata, node: n}}
	return r.rounds(ctx)
}

func orUnknown(version string) string {
	if version == "" {
		return "unknown"
	}
	return version
}

// load reads what the image and the init say about this node.
func (a *Agent) load() (*node.Node, error) {
	n := &node.Node{Root: a.Root, Run: a.Runner, User: &cloudconfig.UserData{}}
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
	describing sync.Mutex
}

func (r *run) rounds(ctx context.Context) error {
	r.source.settled = r.settleDevices(ctx)
	for {
		local, online := steps.Local(r.source.find), steps.Online(steps.Confirmer{})
		r.begin(append(slices.Clone(local), online...))
		for _, step := range local {
			r.apply(ctx, step)
			if step.Name() == "datasource" {
				r.foundMetadata()
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
		onlineCtx, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r.online(onlineCtx, online)
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

// online applies the steps of a node whose services start, then watches the role.
func (r *run) online(ctx context.Context, all []steps.Step) {
	for _, step := range all {
		for {
			err := r.apply(ctx, step)
			if ctx.Err() != nil {
				return
			}
			if err == nil || step.Name() != "role" {
				break
			}
			r.settle() // the role is not up: that is the node's state until it is
			if !sleep(ctx, retryRole) {
				return
			}
		}
	}
	for {
		r.settle()
		if !sleep(ctx, watchRole) {
			return
		}
		r.checkRole(ctx)
	}
}

// checkRole looks whether the role's services still run.
func (r *run) checkRole(ctx context.Context) {
	health, err := steps.CheckRole(ctx, r.node)
	if ctx.Err() != nil {
		return
	}
	problems := append(health.Broken, health.Waiting...)
	if err != nil {
		problems = append(problems, err.Error())
	}
	up := len(problems) == 0
	if up == r.node.RoleUp {
		return
	}
	r.node.RoleUp = up
	if up {
		r.tracker.Step("role").End(nil)
		return
	}
	r.tracker.Step("role").End(errors.New(strings.Join(problems, "; ")))
}

// settle works out the node's state from its steps.
func (r *run) settle() {
	report := r.tracker.Report()
	var failed []string
	for _, s := range report.Steps {
		if s.State == status.Broken {
			failed = append(failed, s.Name)
		}
	}
	serious := 0
	for _, w := range report.Warnings {
		if w.Serious {
			serious++
		}
	}
	state := status.Ready
	switch {
	case r.node.Seed == nil && r.source.trouble == "":
		state = status.Unconfigured // what the role lacks is metadata
	case !r.node.RoleUp:
		state = status.Failed
	case len(failed) > 0 || serious > 0:
		state = status.Degraded
	}
	r.describe()
	if state == report.State {
		return
	}
	uptime := r.uptime()
	r.tracker.Update(func(rep *status.Report) {
		rep.Trial = r.node.Boot.Trial
		if r.node.RoleUp && rep.BootSecs == 0 {
			rep.BootSecs = uptime
		}
	})
	r.tracker.SetState(state)
	line := fmt.Sprintf("node %s (role %s, %.1f s)", state, r.node.Role.Name, uptime)
	if len(failed) > 0 {
		line += ": failed: " + strings.Join(failed, ", ")
	}
	if serious > 0 {
		line += fmt.Sprintf("; mistakes in the metadata: %d", serious)
	}
	level := status.Info
	if state == status.Degraded || state == status.Failed {
		level = status.Warning
	}
	r.tracker.Alert(level, func(*status.Report) {}, line)
}

func (r *run) uptime() float64 {
	text, _ := r.node.Read("/proc/uptime")
	first, _, _ := strings.Cut(string(text), " ")
	seconds, _ := strconv.ParseFloat(first, 64)
	return seconds
}

// watch returns, with the reason, when a new round is due.
func (r *run) watch(ctx context.Context) string {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		r.describe()
		select {
		case <-ctx.Done():
			return ""
		case <-r.agent.Again:
			return "asked to go through all steps again"
		case <-tick.C:
			if r.source.look(ctx) {
				return "metadata has appeared"
			}
		}
	}
}

// describe brings addresses, host name and advice up to date.
func (r *run) describe() {
	r.describing.Lock()
	defer r.describing.Unlock()
	addresses := addresses()
	hostname, _ := os.Hostname()
	report := r.tracker.Report()
	advice := advise(report, addresses)
	if slices.Equal(report.Addresses, addresses) && report.Hostname == hostname && slices.Equal(report.Advice, advice) {
		return
	}
	var lines []string
	if !slices.Equal(report.Addresses, addresses) {
		for _, a := range addresses {
			lines = append(lines, fmt.Sprintf("address %s on %s", a.Address, a.Interface))
		}
	}
	r.tracker.Update(func(rep *status.Report) {
		rep.Addresses, rep.Hostname, rep.Advice = addresses, hostname, advice
	}, lines...)
}

// addresses lists what others can reach the node at.
func addresses() []status.Address {
	out := []status.Address{}
	interfaces, err := net.Interfaces()
	if err != nil {
		return out
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 {
			continue
		}
		found, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range found {
			if ip, _, err := net.ParseCIDR(a.String()); err == nil && ip.IsGlobalUnicast() {
				out = append(out, status.Address{Interface: i.Name, Address: a.String()})
			}
		}
	}
	return out
}

// advise tells a person what can be done now.
func advise(r status.Report, addresses []status.Address) []string {
	if r.State == status.Unconfigured {
		return []string{
			"This node has no metadata yet. Give it some, in one of these ways:",
			" - attach a CD image labelled cidata with files meta-data and user-data ('slipway seed' makes one);",
			" - fill in the properties when importing the OVA; set guestinfo.userdata on VMware;",
			" - use the cloud-init settings of Proxmox or OpenStack.",
			"It looks every few seconds and needs no restart.",
		}
	}
	if r.State == status.Starting {
		return nil
	}
	if len(r.Logins) == 0 {
		return []string{"Nobody can log in over ssh: the metadata gives no ssh key."}
	}
	if len(addresses) == 0 {
		return []string{"No address yet."}
	}
	host, _, _ := strings.Cut(addresses[0].Address, "/")
	return []string{fmt.Sprintf("Log in: ssh %s@%s", r.Logins[0], host)}
}

// sleep reports whether it slept to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// systemd shows the state in systemctl status.
type systemd struct{ notify func(string) }

func (s systemd) Show(r status.Report) {
	text := string(r.State)
	for _, step := range r.Steps {
		if step.State == status.Running {
			if text += ", " + step.Name; step.WaitingFor != "" {
				text += ": waiting for " + step.WaitingFor
			}
		}
	}
	s.notify("STATUS=" + strings.Map(func(c rune) rune {
		if c < ' ' {
			return ' '
		}
		return c
	}, text))
}

func (systemd) Line(status.Level, string) {}

// keeper keeps the last report for those who ask when no agent runs.
type keeper struct{ path string }

func (k keeper) Show(r status.Report) {
	// One that cannot be kept is no reason to stop: the agent still answers.
	_ = status.Keep(k.path, r)
}

func (keeper) Line(status.Level, string) {}
