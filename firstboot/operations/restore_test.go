package operations

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

const restoreTo = "2026-11-20T12:00:00Z"

// restorable is a cluster of two sites with a repository, and what its nodes say.
func restorable() (*Cluster, overview.Overview) {
	p := &plan.Plan{Cluster: "orders", Backup: &plan.Backup{Repository: "keep"},
		Sites: []plan.Site{{Name: "a", Bootstrap: "a1"}, {Name: "b", Bootstrap: "b1", StandbyOf: "a"}},
		Nodes: []plan.Node{{Name: "a1", Role: "db-master", Site: "a"}, {Name: "a2", Role: "db-replica", Site: "a"}, {Name: "b1", Role: "db-master", Site: "b"}, {Name: "keep", Role: "repository", Site: "a"}}}
	now := overview.Overview{At: time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)}
	near := []status.DatabaseMember{{Node: "a1", Role: "replica", State: "streaming"}, {Node: "a2", Role: "leader", State: "running"}}
	far := []status.DatabaseMember{{Node: "b1", Role: "standby_leader", State: "streaming"}}
	for _, n := range p.Nodes {
		c := &status.Cluster{Node: n.Name}
		switch n.Name {
		case "keep":
			stop := time.Date(2026, 11, 20, 2, 0, 0, 0, time.UTC)
			c.Backup = &status.Backup{Where: "keep", Sets: []status.BackupSet{{Label: "20261120-013000F", Type: "full", Stop: stop}}}
		case "b1":
			c.Database = &status.Database{Standby: true, Members: far}
		default:
			c.Database = &status.Database{Members: near}
		}
		now.Nodes = append(now.Nodes, overview.Node{Name: n.Name, Role: n.Role, Site: n.Site, Report: &status.Report{State: status.Ready, Cluster: c}})
	}
	return &Cluster{Plan: p}, now
}

// at has a node say how far it is with a restore.
func at(now overview.Overview, name string, r status.Restore) {
	r.Target, r.Node = restoreTo, "a2"
	for _, n := range now.Nodes {
		if n.Name == name {
			n.Report.Cluster.Database.Restore = &r
			if !r.Taken {
				n.Report.Cluster.Database.Members = nil
			}
		}
	}
}

// over has a node remember that a restore has ended.
func over(now overview.Overview, name string, round int) {
	for _, n := range now.Nodes {
		if n.Name == name {
			n.Report.Cluster.Restored = &status.Restored{Target: restoreTo, Node: "a2", Round: round, At: now.At.Add(-time.Hour)}
		}
	}
}

func left(op *Operation) (words []string) {
	for _, s := range op.Steps {
		if !s.Done {
			words = append(words, s.What)
		}
	}
	return words
}

func TestARestoreGoesOnWhereItWas(t *testing.T) {
	all := []string{
		"stop the database on a1 and keep its data beside", "stop the database on b1 and keep its data beside", "stop the database on a2 and keep its data beside",
		"restore and recover on a2", "give up the way back on every database node", "have etcd of site a forget who led", "have etcd of site b forget who led",
		"have a2 lead", "clone the database to a1", "clone the database to b1",
		"delete the former data on a1", "delete the former data on a2", "delete the former data on b1",
	}
	aside, back, taken := status.Restore{Aside: true}, status.Restore{Aside: true, Back: true}, status.Restore{Aside: true, Taken: true}
	bound := status.Restore{Aside: true, Back: true, Committed: true}
	for _, c := range []struct {
		why  string
		said map[string]status.Restore
		want []string
	}{
		{"nothing is done", nil, all},
		{"one has stepped aside", map[string]status.Restore{"a1": aside}, slices.Delete(slices.Clone(all), 0, 1)},
		{"all have", map[string]status.Restore{"a1": aside, "a2": aside, "b1": aside}, all[3:]},
		{"the data are back", map[string]status.Restore{"a1": aside, "a2": back, "b1": aside}, all[4:]},
		{"one may not go back", map[string]status.Restore{"a1": bound, "a2": back, "b1": aside}, all[4:]},
		{"none may", map[string]status.Restore{"a1": bound, "a2": bound, "b1": bound}, all[5:]},
		{"it leads", map[string]status.Restore{"a1": bound, "a2": taken, "b1": bound}, all[7:]},
		{"one has tidied", map[string]status.Restore{"a2": taken, "b1": taken}, []string{all[7], all[9], all[11], all[12]}},
	} {
		cluster, now := restorable()
		for name, r := range c.said {
			at(now, name, r)
		}
		if c.why == "one has tidied" {
			over(now, "a1", 0)
		}
		op, err := Restore(cluster, database.Request{Target: restoreTo}, false)(t.Context(), now)
		if err != nil {
			t.Errorf("%s: %v", c.why, err)
			continue
		}
		if got := left(op); !slices.Equal(got, c.want) {
			t.Errorf("%s: left is\n%s\nwant\n%s", c.why, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
		if op.Word != "orders" {
			t.Errorf("whoever agrees types %q", op.Word)
		}
		if missing := op.Check(now); (len(missing) == 0) != (c.said == nil) {
			t.Errorf("%s: missing is %q", c.why, missing)
		}
	}
}

func TestAnotherClustersDatabaseIsTakenForOnesOwnBeforeAnythingIsDeleted(t *testing.T) {
	cluster, now := restorable()
	at(now, "a1", status.Restore{Aside: true, From: "north"})
	op, err := Restore(cluster, database.Request{Target: restoreTo, From: "north"}, false)(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	words := left(op)
	take := slices.Index(words, "have keep archive the database for cluster orders from now on, and make a first backup")
	if take < slices.Index(words, "clone the database to b1") || take+1 != slices.Index(words, "delete the former data on a1") {
		t.Errorf("the steps are\n%s", strings.Join(words, "\n"))
	}
	if !strings.Contains(op.Title, "overwrite the database with that of the cluster north") || op.Word != "orders" || op.Again != "slipway restore --to "+restoreTo+" --from north" ||
		!strings.Contains(op.Warnings[0], "all that it holds now is gone") {
		t.Errorf("it is shown as %+v", op)
	}
	// One node has tidied: the repository has taken it.
	cluster, now = restorable()
	at(now, "a2", status.Restore{Taken: true, From: "north"})
	over(now, "a1", 0)
	now.Nodes[0].Report.Cluster.Restored.From = "north"
	if op, err = Restore(cluster, database.Request{Target: restoreTo, From: "north"}, false)(t.Context(), now); err != nil || slices.Contains(left(op), words[take]) {
		t.Errorf("%v, left is %q", err, left(op))
	}
}

func TestARestoreIsRefusedWithItsReason(t *testing.T) {
	for _, c := range []struct {
		want  string
		ask   database.Request
		spoil func(*Cluster, *overview.Overview)
	}{
		{"is no time", database.Request{Target: "yesterday"}, nil},
		{"is no label", database.Request{Target: restoreTo, Set: "../x"}, nil},
		{"no such backup was complete by", database.Request{Target: "2026-11-20T01:00:00Z"}, nil},
		{"no such backup was complete by", database.Request{Target: restoreTo, Set: "20261113-013000F"}, nil},
		{"has not come yet", database.Request{Target: "2027-01-01T00:00:00Z"}, nil},
		{"b1 is no database node of site a", database.Request{Target: restoreTo, Node: "b1"}, nil},
		{"makes no backups", database.Request{Target: restoreTo}, func(c *Cluster, _ *overview.Overview) { c.Plan.Backup = nil }},
		{"there is no backup yet", database.Request{Target: restoreTo}, func(_ *Cluster, now *overview.Overview) { now.Nodes[3].Report.Cluster.Backup.Sets = nil }},
		{"a1 does not answer", database.Request{Target: restoreTo}, func(_ *Cluster, now *overview.Overview) { now.Nodes[0].Report = nil }},
		{"knows of no backups that another cluster made", database.Request{Target: restoreTo, From: "north"}, nil},
		{"knows of backups that south made", database.Request{Target: restoreTo, From: "north"}, func(c *Cluster, _ *overview.Overview) { c.Plan.Backup.From = &plan.Source{Cluster: "south"} }},
		{"a restore to " + restoreTo + " on a2 is under way", database.Request{Target: restoreTo, From: "north"}, func(_ *Cluster, now *overview.Overview) { at(*now, "a1", status.Restore{Aside: true}) }},
		{"a restore to " + restoreTo + " on a2 is under way", database.Request{Target: database.Latest}, func(_ *Cluster, now *overview.Overview) { at(*now, "a1", status.Restore{Aside: true}) }},
	} {
		cluster, now := restorable()
		if c.spoil != nil {
			c.spoil(cluster, &now)
		}
		_, err := Restore(cluster, c.ask, false)(t.Context(), now)
		if err == nil || !strings.Contains(err.Error(), c.want) || fault.Of(err) == fault.Internal {
			t.Errorf("%+v: %v, want %q", c.ask, err, c.want)
		}
	}
	for _, late := range []status.Restore{{Aside: true, Committed: true}, {Aside: true, Taken: true}} {
		cluster, now := restorable()
		at(now, "a1", status.Restore{Aside: true})
		at(now, "b1", late)
		if _, err := RestoreUndo(cluster)(t.Context(), now); fault.Of(err) != fault.Failed || !strings.Contains(fault.Mend(err), restoreTo) {
			t.Errorf("undone too late: %v", err)
		}
	}
}

func TestARestoreThatHasEndedIsNotDoneAgainUnlessThatIsMeant(t *testing.T) {
	cluster, now := restorable()
	for _, name := range []string{"a1", "a2", "b1"} {
		over(now, name, 0)
	}
	want := database.Request{Target: restoreTo}
	var said []string
	r := Runner{Cluster: cluster, Say: func(line string) { said = append(said, line) }, Pause: time.Millisecond,
		Look: func(context.Context) (overview.Overview, error) { return now, nil },
		Agree: func(context.Context, string) error {
			t.Error("somebody was asked to lose what was written since")
			return errors.New("no")
		}}
	result, err := r.Run(t.Context(), Restore(cluster, want, false))
	if err != nil || !result.Verified || !strings.Contains(said[0], "Nothing to do") || !strings.Contains(said[0], "slipway restore --to "+restoreTo+" --again") {
		t.Errorf("%+v, %v; said %q", result, err, said)
	}
	for _, other := range []database.Request{{Target: database.Latest}, {Target: restoreTo, Set: "20261120-013000F"}} {
		if op, err := Restore(cluster, other, false)(t.Context(), now); err != nil || len(left(op)) != len(op.Steps) {
			t.Errorf("%+v: %v, left is %q", other, err, left(op))
		}
	}
	op, err := Restore(cluster, want, true)(t.Context(), now)
	if err != nil || len(left(op)) != len(op.Steps) {
		t.Errorf("once more: %v, left is %q", err, left(op))
	}
	if got := round(now, want); got != 1 {
		t.Errorf("the round is %d", got)
	}
	// Interrupted, it goes on: what the others remember is the round before.
	at(now, "a1", status.Restore{Aside: true, Round: 1})
	if op, err = Restore(cluster, want, false)(t.Context(), now); err != nil || len(left(op)) != len(op.Steps)-1 {
		t.Errorf("once more, interrupted: %v, left is %q", err, left(op))
	}
}

func TestAReplicaThatFollowsFromTheArchiveIsBroughtBack(t *testing.T) {
	cluster, now := restorable()
	for _, n := range now.Nodes[:2] {
		n.Report.Cluster.Database.Members[0].State = "in archive recovery"
	}
	op, err := Restore(cluster, database.Request{Target: restoreTo}, false)(t.Context(), now)
	if err != nil || len(op.Check(now)) > 0 {
		t.Errorf("%v, missing is %q", err, op.Check(now))
	}
}

func TestWhatThereIsOfBackups(t *testing.T) {
	cluster, now := restorable()
	last := time.Date(2026, 11, 20, 23, 0, 0, 0, time.UTC)
	now.Nodes[1].Report.Cluster.Database.Archiver = &status.Archiver{Last: last}
	kept, err := Backups(cluster.Plan, now)
	if err != nil || len(kept.Sets) != 1 || !kept.To.Equal(last) || !kept.From.Equal(kept.Sets[0].Stop) {
		t.Errorf("%+v, %v", kept, err)
	}
	now.Nodes[3].Report = nil
	if _, err := Backups(cluster.Plan, now); fault.Of(err) != fault.Network {
		t.Errorf("nobody tells of backups: %v", err)
	}
	if who, err := maker(cluster.Plan, now); who != "keep" || err != nil {
		t.Errorf("%s makes backups, %v", who, err)
	}
	cluster.Plan.Backup = &plan.Backup{S3: &plan.S3{}}
	if who, err := maker(cluster.Plan, now); who != "a2" || err != nil {
		t.Errorf("with S3 %s makes backups, %v", who, err)
	}
}
