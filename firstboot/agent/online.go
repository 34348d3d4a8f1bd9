package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/steps"
)

const (
	retryRole    = 5 * time.Second // after a service failed
	watchRole    = 10 * time.Second
	observeAgain = 10 * time.Second
	observeLimit = 12 * time.Second // for one observer
	// A task that failed is begun again after retryFirst, then after twice as long
	// each time, up to retryLongest.
	retryFirst   = 2 * time.Second
	retryLongest = 30 * time.Second
)

// online applies the steps of a node whose services start, then watches the
// role. Tasks run beside them.
func (r *run) online(ctx context.Context, tasks []steps.Task, all []steps.Step) {
	var beside sync.WaitGroup
	defer beside.Wait()
	r.begun(ctx, &beside, tasks)
	seen := *r.node // as it is before any other step is applied to it
	beside.Go(func() { r.observe(ctx, seen, tasks) })
	r.settle() // what failed already may be why all that follows waits
	for _, step := range all {
		for {
			err := r.apply(ctx, step)
			if ctx.Err() != nil {
				return
			}
			r.trial()
			if step.Name() == (steps.Confirmer{}).Name() {
				r.lookAtVersions()
			}
			if err == nil || step.Name() != "role" {
				break
			}
			r.settle() // the role is not up: that is the node's state until it is
			if !r.roleMoves(ctx, err) {
				return
			}
		}
	}
	r.settle()
	for node.Sleep(ctx, watchRole) {
		if r.checkRole(ctx) {
			r.settle()
		}
	}
}

// trial keeps the report's word on the version's trial up to date.
func (r *run) trial() {
	if trial := r.node.Boot.Trial; trial != r.tracker.Report().Trial {
		r.tracker.Update(func(rep *status.Report) { rep.Trial = trial })
	}
}

// unfinished says which tasks have not come to their end yet; "" if all have.
func (r *run) unfinished(tasks []steps.Task) string {
	var names []string
	report := r.tracker.Report()
	for _, task := range tasks {
		if !slices.ContainsFunc(report.Steps, func(s status.Step) bool { return s.Name == task.Name() && s.State == status.Done }) {
			names = append(names, task.Name())
		}
	}
	if names == nil {
		return ""
	}
	return "the version counts as good once these are done: " + strings.Join(names, ", ")
}

// begun starts every task.
func (r *run) begun(ctx context.Context, beside *sync.WaitGroup, tasks []steps.Task) {
	done := map[string]chan struct{}{}
	for _, task := range tasks {
		done[task.Name()] = make(chan struct{})
	}
	for _, task := range tasks {
		own := *r.node // before any other step is applied to it
		beside.Go(func() {
			for _, name := range task.After {
				select {
				case <-done[name]:
				case <-ctx.Done():
					return
				}
			}
			r.persist(ctx, &own, task)
			if ctx.Err() == nil {
				close(done[task.Name()])
			}
		})
	}
}

// persist applies a task until it succeeds. One that failed counts as failed
// until it waits for something again, or succeeds.
func (r *run) persist(ctx context.Context, n *node.Node, task steps.Task) {
	handle := r.tracker.Step(task.Name())
	n.Report = handle
	handle.Start()
	for pause := retryFirst; ; pause = min(2*pause, retryLongest) {
		err := task.Apply(ctx, n)
		if ctx.Err() != nil {
			return
		}
		handle.End(err)
		r.settle()
		// Nodes that hinder each other shall not try again at the same moment.
		if err == nil || !node.Sleep(ctx, pause+rand.N(pause/4)) {
			return
		}
	}
}

// observe asks the tasks how what they brought up is doing, again and again.
func (r *run) observe(ctx context.Context, n node.Node, tasks []steps.Task) {
	if n.Member == nil {
		r.tracker.Update(func(rep *status.Report) { rep.Cluster = nil })
		return
	}
	for again := true; again; again = r.pause(ctx, observeAgain) {
		c := steps.Describe(n.Member)
		for _, task := range tasks {
			observer, ok := task.Step.(steps.Observer)
			if !ok {
				continue
			}
			n.Report = r.tracker.Step(task.Name())
			limited, cancel := context.WithTimeout(ctx, observeLimit)
			err := observer.Observe(limited, &n, c)
			cancel()
			if ctx.Err() != nil {
				return
			}
			for _, problem := range separate(err) {
				c.Problems = append(c.Problems, task.Name()+": "+problem.Error())
			}
		}
		before, maintenance := r.tracker.Report(), n.Maintenance()
		if before.Cluster != nil && reflect.DeepEqual(before.Cluster, c.Clone()) && (before.Maintenance == nil) == (maintenance == nil) {
			continue
		}
		r.tracker.Update(func(rep *status.Report) { rep.Cluster, rep.Maintenance = c, maintenance })
		r.settle()
	}
}

// pause waits for a while, or until somebody wants to see what there is now. It
// reports whether ctx has not ended.
func (r *run) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-r.looking:
	case <-timer.C:
	}
	return true
}

// separate takes joined errors apart.
func separate(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// roleMoves waits until something else is wrong with the role than what was, or
// nothing. It reports false if ctx ends before. To apply the step again and
// again would tell the same story each time.
func (r *run) roleMoves(ctx context.Context, was error) bool {
	for node.Sleep(ctx, retryRole) {
		health, err := steps.CheckRole(ctx, r.node)
		if err == nil {
			err = health.Err()
		}
		if err == nil || err.Error() != was.Error() {
			return ctx.Err() == nil
		}
	}
	return false
}

// checkRole looks whether the role's services still run, and reports whether
// that has changed.
func (r *run) checkRole(ctx context.Context) (changed bool) {
	health, err := steps.CheckRole(ctx, r.node)
	if ctx.Err() != nil {
		return false
	}
	problems := append(health.Broken, health.Waiting...)
	if err != nil {
		problems = append(problems, err.Error())
	}
	if up := len(problems) == 0; up == roleUp(r.tracker.Report()) {
		return false
	}
	var broken error
	if len(problems) > 0 {
		broken = errors.New(strings.Join(problems, "; "))
	}
	r.tracker.Step("role").End(broken)
	return true
}

// roleUp reports whether the role's services run.
func roleUp(report status.Report) bool {
	return slices.ContainsFunc(report.Steps, func(s status.Step) bool { return s.Name == "role" && s.State == status.Done })
}

// verdict is what a report amounts to.
type verdict struct {
	state    status.State
	failed   []string // steps
	serious  int      // mistakes in the metadata
	problems int      // of the cluster
}

func (r *run) judge(report status.Report) verdict {
	var v verdict
	moving := false
	for _, s := range report.Steps {
		switch s.State {
		case status.Broken:
			v.failed = append(v.failed, s.Name)
		case status.Pending, status.Running:
			moving = true
		}
	}
	for _, w := range report.Warnings {
		if w.Serious {
			v.serious++
		}
	}
	if report.Cluster != nil {
		v.problems = len(report.Cluster.Problems)
	}
	up := roleUp(report)
	switch {
	case r.node.Member != nil && r.node.Member.Retired != "":
		v.state = status.Removed
	case r.node.Seed == nil && r.source.trouble == "":
		v.state = status.Unconfigured // what the role lacks is metadata
	case !up && r.stuck(report):
		v.state = status.Failed
	case moving:
		v.state = status.Converging
	case len(v.failed) > 0 || v.serious > 0 || v.problems > 0:
		v.state = status.Degraded
	case report.Maintenance != nil:
		v.state = status.Maintenance
	default:
		v.state = status.Ready
	}
	return v
}

// stuck reports whether a role that is not up does not come up by waiting alone:
// it failed itself, or something has that it needs.
func (r *run) stuck(report status.Report) bool {
	return slices.ContainsFunc(report.Steps, func(s status.Step) bool {
		switch {
		case s.Name == "membership" && r.node.Member != nil:
			return false // the node goes on as who it was
		case s.Name == "datasource" && r.node.Seed == nil && s.State == status.Broken:
			return true
		}
		return s.State == status.Broken && slices.Contains(r.essential, s.Name)
	})
}

// line is the verdict as a line of the story.
func (v verdict) line(role string, uptime float64) string {
	line := fmt.Sprintf("node %s (role %s, %.1f s)", v.state, role, uptime)
	if len(v.failed) > 0 {
		line += ": failed: " + strings.Join(v.failed, ", ")
	}
	if v.serious > 0 {
		line += fmt.Sprintf("; mistakes in the metadata: %d", v.serious)
	}
	if v.problems > 0 {
		line += fmt.Sprintf("; problems of the cluster: %d", v.problems)
	}
	return line
}

// settle works out the node's state from its steps and tells it if it is new.
func (r *run) settle() {
	r.settling.Lock()
	defer r.settling.Unlock()
	r.describe() // so that whoever waited for the state finds the addresses there
	report := r.tracker.Report()
	v := r.judge(report)
	if v.state == report.State {
		return
	}
	uptime, up := r.uptime(), roleUp(report)
	r.tracker.Update(func(rep *status.Report) {
		if up && rep.BootSecs == 0 {
			rep.BootSecs = uptime
		}
	})
	r.tracker.SetState(v.state)
	r.describe() // the advice goes by the state
	level := status.Info
	if v.state == status.Degraded || v.state == status.Failed {
		level = status.Warning
	}
	r.tracker.Alert(level, func(*status.Report) {}, v.line(r.node.Role.Name, uptime))
}

func (r *run) uptime() float64 {
	text, _ := r.node.Read("/proc/uptime")
	first, _, _ := strings.Cut(string(text), " ")
	seconds, _ := strconv.ParseFloat(first, 64)
	return seconds
}
