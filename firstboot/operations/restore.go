package operations

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Restore brings the whole database back to what it was at a time. One node
// restores, all others clone it. What is under way already goes on where it was, and
// what has ended is not done again, unless again is set: nobody loses what was written
// since by running a command a second time.
func Restore(c *Cluster, want database.Request, again bool) Prepare {
	return func(ctx context.Context, now overview.Overview) (*Operation, error) {
		p := c.Plan
		if p.Backup == nil {
			_, err := maker(p, now)
			return nil, err
		}
		if err := want.Check(); err != nil {
			return nil, err
		}
		s, err := writable(p, now)
		if err != nil {
			return nil, err
		}
		if want.Node, err = restorer(p, now, s, want); err != nil {
			return nil, err
		}
		if err := allAnswer(p, now); err != nil {
			return nil, err
		}
		if n, _ := now.Node(want.Node); n.Report.Maintenance != nil {
			return nil, fault.New(fault.Failed, "%s is in maintenance, and would not lead", want.Node).
				WithMend("name another node with --on, or end it: slipway maintenance off %s", want.Node)
		}
		done := restored(now)
		if underWay(now) != nil || again || !same(done, want) {
			done = nil
		}
		want.Round = round(now, want)
		if underWay(now) == nil && done == nil {
			if err := reaches(ctx, c, now, want); err != nil {
				return nil, err
			}
		}
		title := "bring the database back to " + want.Target + " on " + want.Node
		gone := "what was written since " + want.Target + " is gone from it"
		if want.From != "" {
			title = "overwrite the database with that of the cluster " + want.From + ", as it was at " + want.Target + ", on " + want.Node
			gone = "all that it holds now is gone from it, its roles and their rights too: they are those of " + want.From
		}
		op := &Operation{
			Name: "restore", Title: title, Again: want.Again(), Word: p.Cluster,
			Warnings: []string{"the database stands still meanwhile, on every site; " + gone,
				"the former data are kept on each node until the restored database is seen to run; until etcd forgets, slipway restore --undo puts them back"},
			Steps: restoreSteps(c, now, s, want),
			Check: func(now overview.Overview) []string { return broughtBack(p, now) },
		}
		if done != nil {
			op.Title += fmt.Sprintf(" (it was, on %s by %s; to do it once more: %s --again)", done.At.UTC().Format(timeForm), done.Node, want.Again())
			op.Warnings = nil
			for i := range op.Steps {
				op.Steps[i].Done = true
			}
		}
		return op, nil
	}
}

// RestoreUndo gives up a restore that has not gone too far.
func RestoreUndo(c *Cluster) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		var steps []Step
		for _, n := range c.Plan.AllDatabases() {
			r := progress(now, n.Name)
			steps = append(steps, deed(c, database.RestoreUndo, n.Name, "put the former data back on "+n.Name, r == nil, database.Request{}))
			if r != nil && (r.Committed || r.Taken) {
				return nil, fault.New(fault.Failed, "there is no way back to the former data of %s: etcd forgets who led", n.Name).WithMend("end it: %s", request(r).Again())
			}
		}
		return &Operation{
			Name: "restore", Title: "give the restore up", Again: "slipway restore --undo", Steps: steps,
			Check: func(now overview.Overview) []string { return broughtBack(c.Plan, now) },
		}, nil
	}
}

// restoreSteps are the deeds of package database on every node. Replicas step aside
// before the primary does, so that none is promoted meanwhile.
func restoreSteps(c *Cluster, now overview.Overview, s plan.Site, want database.Request) []Step {
	all := c.Plan.AllDatabases()
	lead := ""
	if d, err := databaseOf(now, s.Name); err == nil {
		lead = d.Leader()
	}
	slices.SortStableFunc(all, func(a, b plan.Node) int {
		rank := map[bool]int{true: 1}
		return rank[a.Name == lead] - rank[b.Name == lead]
	})
	ended := func(name string) bool {
		c := now.Word(name)
		return progress(now, name) == nil && c != nil && same(c.Restored, want) && c.Restored.Round == want.Round
	}
	// Nobody takes part again before all have stepped aside and etcd has forgotten.
	late := slices.ContainsFunc(all, func(n plan.Node) bool {
		r := progress(now, n.Name)
		return r != nil && r.Taken || ended(n.Name)
	})
	open := slices.ContainsFunc(all, func(n plan.Node) bool {
		r := progress(now, n.Name)
		return r == nil || !r.Committed
	})
	var steps []Step
	add := func(a actions.Action, node, what string, done bool) {
		steps = append(steps, deed(c, a, node, what, done, want))
	}
	for _, n := range all {
		r := progress(now, n.Name)
		add(database.RestoreAside, n.Name, "stop the database on "+n.Name+" and keep its data beside", late || r != nil && r.Aside)
	}
	r := progress(now, want.Node)
	add(database.RestoreBack, want.Node, "restore and recover on "+want.Node, late || r != nil && r.Back)
	steps = append(steps, Step{
		What: "give up the way back on every database node", Done: late || !open,
		Do: func(ctx context.Context, say func(string)) error {
			for _, n := range all {
				if err := c.Act(ctx, n.Name, database.RestoreCommit.Name, want, nil, say); err != nil {
					return err
				}
			}
			return nil
		},
	})
	for _, site := range c.Plan.Sites {
		nodes := c.Plan.DatabaseNodes(site.Name)
		if len(nodes) == 0 {
			continue
		}
		by := nodes[0].Name
		if site.Name == s.Name {
			by = want.Node
		}
		add(database.RestoreForget, by, "have etcd of site "+site.Name+" forget who led", late)
	}
	order := []string{want.Node}
	for _, standby := range []bool{false, true} {
		for _, n := range c.Plan.AllDatabases() {
			if n.Name != want.Node && (n.Site != s.Name) == standby {
				order = append(order, n.Name)
			}
		}
	}
	for _, name := range order {
		what := "clone the database to " + name
		if name == want.Node {
			what = "have " + name + " lead"
		}
		// One that takes part may not have come as far as streaming: it is asked again.
		add(database.RestoreJoin, name, what, ended(name))
	}
	if want.From != "" {
		maker := cmp.Or(c.Plan.Backup.Repository, want.Node)
		what := "have " + maker + " archive the database for cluster " + c.Plan.Cluster + " from now on, and make a first backup"
		// Nothing is tidied before.
		add(backup.Taking, maker, what, slices.ContainsFunc(all, func(n plan.Node) bool { return ended(n.Name) }))
	}
	for _, n := range c.Plan.AllDatabases() {
		add(database.RestoreTidy, n.Name, "delete the former data on "+n.Name, ended(n.Name))
	}
	return steps
}

// deed is a deed of a restore on a node as a step.
func deed(c *Cluster, a actions.Action, node, what string, done bool, want database.Request) Step {
	return Step{What: what, Done: done, Do: func(ctx context.Context, say func(string)) error {
		return c.Act(ctx, node, a.Name, want, nil, say)
	}}
}

// progress is how far a node is with a restore; nil if it is at none.
func progress(now overview.Overview, name string) *status.Restore {
	if c := now.Word(name); c != nil && c.Database != nil {
		return c.Database.Restore
	}
	return nil
}

// request is what was asked for.
func request(r *status.Restore) database.Request {
	return database.Request{Target: r.Target, Set: r.Set, Node: r.Node, From: r.From, Round: r.Round}
}

// restored is the restore that has ended last on any node, or nil.
func restored(now overview.Overview) (last *status.Restored) {
	for _, n := range now.Nodes {
		if c := now.Word(n.Name); c != nil && c.Restored != nil && (last == nil || c.Restored.At.After(last.At)) {
			last = c.Restored
		}
	}
	return last
}

// same reports whether a restore has brought back what is wanted, on whichever node and
// however often.
func same(r *status.Restored, want database.Request) bool {
	return r != nil && r.Target == want.Target && r.Set == want.Set && r.From == want.From
}

// round is that of the restore under way, or else one that no node has done.
func round(now overview.Overview, want database.Request) (next int) {
	if r := underWay(now); r != nil {
		return r.Round
	}
	for _, n := range now.Nodes {
		if c := now.Word(n.Name); c != nil && same(c.Restored, want) {
			next = max(next, c.Restored.Round+1)
		}
	}
	return next
}

// underWay is the restore that some node is at, or nil.
func underWay(now overview.Overview) *status.Restore {
	for _, n := range now.Nodes {
		if r := progress(now, n.Name); r != nil {
			return r
		}
	}
	return nil
}

// restorer is the node that restores: the one that is at it, the one that is named,
// the primary, or the first that there is.
func restorer(p *plan.Plan, now overview.Overview, s plan.Site, want database.Request) (string, error) {
	if r := underWay(now); r != nil {
		if r.Target != want.Target || r.Set != want.Set || r.From != want.From || want.Node != "" && want.Node != r.Node {
			return "", fault.New(fault.Failed, "a restore to %s on %s is under way", r.Target, r.Node).
				WithMend("go on with it: %s; or give it up: slipway restore --undo", request(r).Again())
		}
		return r.Node, nil
	}
	if want.Node != "" {
		n, err := p.Node(want.Node)
		if err == nil && (!plan.DatabaseRole(n.Role) || n.Site != s.Name) {
			err = fault.New(fault.Usage, "%s is no database node of site %s", n.Name, s.Name)
		}
		return want.Node, err
	}
	if d, err := databaseOf(now, s.Name); err == nil && d.Leader() != "" {
		return d.Leader(), nil
	}
	return s.Bootstrap, nil
}

// writable is the site whose database takes writes, or did.
func writable(p *plan.Plan, now overview.Overview) (plan.Site, error) {
	first := plan.Site{}
	for _, s := range p.Sites {
		if len(p.DatabaseNodes(s.Name)) == 0 {
			continue
		}
		if d, err := databaseOf(now, s.Name); err == nil && !d.Standby && d.Leader() != "" {
			return s, nil
		}
		if first.Name == "" && s.StandbyOf == "" {
			first = s
		}
	}
	if r := underWay(now); r != nil {
		if n, err := p.Node(r.Node); err == nil {
			return p.Site(n.Site)
		}
	}
	if first.Name == "" {
		return first, fault.New(fault.Input, "the plan of cluster %s has no database that takes writes", p.Cluster)
	}
	return first, nil
}

// allAnswer refuses to begin while a database node is away: what comes back later
// would bring the former data along.
func allAnswer(p *plan.Plan, now overview.Overview) error {
	var away []string
	for _, n := range p.AllDatabases() {
		if now.Word(n.Name) == nil {
			away = append(away, n.Name)
		}
	}
	if len(away) > 0 {
		return fault.New(fault.Network, "%s does not answer, and would bring its data along when it is back", strings.Join(away, ", ")).
			WithMend("start it, or take it out of the cluster first")
	}
	return nil
}

// reaches refuses a target that no backup leads to.
func reaches(ctx context.Context, c *Cluster, now overview.Overview, want database.Request) error {
	kept, err := source(ctx, c, now, want)
	if err != nil {
		return err
	}
	at, latest := want.Time()
	var sets []string
	for _, s := range kept.Sets {
		if (want.Set == "" || s.Label == want.Set) && (latest || s.CompleteBy(at)) {
			sets = append(sets, s.Label)
		}
	}
	switch {
	case len(kept.Sets) == 0 && want.From != "":
		return fault.New(fault.Failed, "there is no backup that the cluster %s made, in %s", want.From, kept.Where)
	case len(kept.Sets) == 0:
		return fault.New(fault.Failed, "there is no backup yet").WithMend("make one: slipway backup")
	case len(sets) == 0:
		return fault.New(fault.Usage, "no such backup was complete by %s; the oldest of all was on %s", want.Target, kept.From.Format(timeForm)).
			WithMend("slipway backups names them")
	case !latest && kept.To != nil && at.After(now.At):
		return fault.New(fault.Usage, "%s has not come yet", want.Target)
	}
	return nil
}

// source is what there is of backups to restore from.
func source(ctx context.Context, c *Cluster, now overview.Overview, want database.Request) (*Kept, error) {
	if want.From == "" {
		return Backups(c.Plan, now)
	}
	return BackupsFrom(ctx, c, want.Node, want.From)
}

const timeForm = "2006-01-02 15:04:05 UTC"

// broughtBack is what is missing until all databases run, and nothing is left of the
// restore.
func broughtBack(p *plan.Plan, now overview.Overview) (missing []string) {
	for _, n := range p.AllDatabases() {
		c := now.Word(n.Name)
		switch {
		case c == nil || c.Database == nil:
			missing = append(missing, n.Name+" does not tell how its database is")
			continue
		case c.Database.Restore != nil:
			missing = append(missing, n.Name+" still remembers the restore")
			continue
		case c.Database.Leader() == "":
			missing = append(missing, n.Name+" knows no leader")
			continue
		}
		if v, ok := c.Database.Member(n.Name); !ok || !v.Leads() && !v.Streams() {
			missing = append(missing, fmt.Sprintf("%s does not stream (%s)", n.Name, v.State))
		}
	}
	return missing
}
