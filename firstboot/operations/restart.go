package operations

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/versions"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	// restartPatience is how long a node that was started anew may take to be ready; three starts
	// of a version that does not come up, and one of the former, fit in it on slow machines too.
	restartPatience = 20 * time.Minute
	restartPause    = 2 * time.Second
	// successorPatience is how long a primary that is to start anew waits for somebody who
	// can take over.
	successorPatience = 3 * time.Minute
)

// restarter waits for nodes that start anew.
type restarter struct {
	before   overview.Overview // the cluster before anything was done
	c        *Cluster
	patience time.Duration
	pause    time.Duration
	look     func(ctx context.Context) (overview.Overview, error)
}

func newRestarter(c *Cluster) *restarter {
	return &restarter{c: c, patience: restartPatience, pause: restartPause, look: c.Look}
}

// relieve has a node give up what others can do instead, before it goes away: maintenance, with a
// handover before it. Where the others would not carry the service without it, as in a cluster of one or two, that
// is left out: it hands its database over if there is anybody to take it, and is missed for the time of a start.
func (r *restarter) relieve(ctx context.Context, n plan.Node, say func(string)) error {
	now, err := r.look(ctx)
	if err != nil {
		return err
	}
	if lacks := uncarried(r.c.Plan, now, n); len(lacks) > 0 {
		say(fmt.Sprintf("without maintenance, since the others do not carry the service without %s: %s", n.Name, strings.Join(lacks, "; ")))
		return r.handOver(ctx, now, n, say)
	}
	return r.nested(ctx, MaintenanceOn(r.c, n.Name, false), say)
}

// handOver has another node lead if this one does and any other is fit to.
func (r *restarter) handOver(ctx context.Context, now overview.Overview, n plan.Node, say func(string)) error {
	if !leads(now, n) || len(r.c.Plan.DatabaseNodes(n.Site)) < 2 {
		return nil
	}
	s, err := r.c.Plan.Site(n.Site)
	if err != nil {
		return err
	}
	d, to, err := r.successor(ctx, now, s, say)
	if err != nil {
		return err
	}
	say(fmt.Sprintf("%s leads site %s: handing over to %s first", n.Name, n.Site, to))
	return handOver(r.c, s, d, to).Do(ctx, say)
}

// successor is who can take over the database of a site. A replica that came back a
// moment ago may wait for it: it becomes a synchronous standby when the primary's
// Patroni looks the next time.
func (r *restarter) successor(ctx context.Context, now overview.Overview, s plan.Site, say func(string)) (d *status.Database, to string, err error) {
	until := time.Now().Add(min(r.patience, successorPatience))
	last := ""
	for {
		if d, err = databaseOf(now, s.Name); err == nil {
			to, err = candidate(s, now, d, "")
		}
		if err == nil || time.Now().After(until) {
			return d, to, err
		}
		if err.Error() != last {
			last = err.Error()
			say("waiting: " + last)
		}
		select {
		case <-ctx.Done():
			return nil, "", ctx.Err()
		case <-time.After(r.pause):
		}
		if now, err = r.look(ctx); err != nil {
			return nil, "", err
		}
	}
}

// nested does another operation as a part of this one, which was agreed to.
func (r *restarter) nested(ctx context.Context, prepare Prepare, say func(string)) error {
	runner := &Runner{Cluster: r.c, Look: r.look, Say: say, Agree: func(context.Context, string) error { return nil }, Pause: r.pause}
	_, err := runner.Run(ctx, prepare)
	return err
}

// resume has a node take part again after it came back, on whichever version.
func (r *restarter) resume(ctx context.Context, node string, say func(string)) error {
	return r.nested(ctx, MaintenanceOff(r.c, node), say)
}

// around does something to a node that makes it start anew and waits until it is back as it should be, with
// maintenance around both. If that fails, the node takes part again all the same, as far as it can.
func (r *restarter) around(ctx context.Context, n plan.Node, version string, restart func(ctx context.Context) error, say func(string)) error {
	err := r.relieve(ctx, n, say)
	if err == nil {
		err = restart(ctx)
	}
	if err == nil {
		err = r.arrive(ctx, n.Name, version, r.before, say)
	}
	if ctx.Err() != nil {
		return err
	}
	resumed := r.resume(ctx, n.Name, say)
	if err == nil {
		return resumed
	}
	if resumed != nil {
		say(fmt.Sprintf("%s does not take part again yet: %s", n.Name, resumed))
	}
	return err
}

// leads says whether a node leads its site's database.
func leads(now overview.Overview, n plan.Node) bool {
	d, err := databaseOf(now, n.Site)
	return err == nil && d.Leader() == n.Name
}

// arrive waits until a node runs a version, confirmed and ready, with nothing else worse than
// before. A version that fails is an error that tells why; one that is not ready in time is
// abandoned, so that the node goes back.
func (r *restarter) arrive(ctx context.Context, node, version string, before overview.Overview, say func(string)) error {
	until := time.Now().Add(r.patience)
	last := ""
	for {
		now, err := r.look(ctx)
		if err != nil {
			return err
		}
		n, _ := now.Node(node)
		missing, err := arrived(n, version, before)
		if err != nil {
			return err
		}
		if missing == "" {
			missing = strings.Join(worse(now, before, node), "; ")
		}
		if missing == "" {
			return nil
		}
		if missing != last {
			say("waiting: " + missing)
			last = missing
		}
		if time.Now().After(until) {
			return r.abandon(ctx, node, version, missing, say)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(r.pause):
		}
	}
}

// arrived is what is missing until a node is well with a version.
func arrived(n overview.Node, version string, before overview.Overview) (missing string, err error) {
	if n.Report == nil {
		return n.Name + ": " + n.Problem, nil
	}
	i := slices.IndexFunc(n.Report.Versions, func(v status.Version) bool { return v.Version == version })
	if i >= 0 && n.Report.Versions[i].Failed != "" {
		return "", fault.New(fault.Failed, "version %s did not come up on %s, which has gone back to %s by itself: %s", version, n.Name, n.Report.Version, n.Report.Versions[i].Failed).
			WithMend("the node's log tells more; slipway rollback %s ends the warning, another upgrade tries again", n.Name)
	}
	was, _ := before.Node(n.Name)
	wasDegraded := was.Report != nil && was.Report.State == status.Degraded
	inMaintenance := n.Report.State == status.Maintenance && !n.Report.Trial
	switch {
	case n.Report.Version != version:
		return fmt.Sprintf("%s runs version %s", n.Name, n.Report.Version), nil
	case inMaintenance, n.Report.State == status.Degraded && wasDegraded && !n.Report.Trial:
		return "", nil // it is as well as it can be
	case n.Report.State != status.Ready || n.Report.Trial:
		text := fmt.Sprintf("%s is %s", n.Name, n.Report.State)
		if n.Report.Trial {
			text += ", on trial"
		}
		if why := waits(n.Report); why != "" {
			text += ": " + why
		}
		return text, nil
	}
	return "", nil
}

// waits is the first thing that a node waits for or failed at.
func waits(r *status.Report) string {
	for _, s := range r.Steps {
		switch {
		case s.State == status.Broken:
			return s.Name + ": " + s.Error
		case s.State == status.Running && s.WaitingFor != "":
			return s.Name + ": " + s.WaitingFor
		}
	}
	return ""
}

// worse are the other nodes that are not as well as they were.
func worse(now, before overview.Overview, but string) (out []string) {
	for _, was := range before.Nodes {
		if was.Name == but || was.Report == nil || was.Report.State != status.Ready {
			continue
		}
		is, _ := now.Node(was.Name)
		switch {
		case is.Report == nil:
			out = append(out, was.Name+": "+is.Problem)
		case is.Report.State != status.Ready:
			out = append(out, fmt.Sprintf("%s is %s", was.Name, is.Report.State))
		}
	}
	return out
}

// abandon has a node go back that is not ready in time with its new version.
func (r *restarter) abandon(ctx context.Context, node, version, missing string, say func(string)) error {
	out := fault.New(fault.Failed, "%s is not well with version %s after %s: %s", node, version, r.patience, missing).WithMend("see slipway status")
	now, err := r.look(ctx)
	if err != nil {
		return out
	}
	if n, _ := now.Node(node); n.Report == nil || n.Report.Version != version || !n.Report.Trial {
		return out
	}
	say(node + " goes back to the version that worked")
	var back versions.Back
	if err := r.c.Act(ctx, node, versions.RollbackAction, versions.RollbackArgs{Abandon: version}, &back, say); err != nil {
		return fault.New(fault.Failed, "%w; and it could not be made to go back: %w", out, err)
	}
	return out.WithMend("it goes back to version %s; see slipway status", back.To)
}
