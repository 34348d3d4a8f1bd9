//go:build long

package database

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// asked has a node do what an administrator asks for.
func (n *running) asked(t *testing.T, a actions.Action, args, result any) error {
	t.Helper()
	data, err := n.act(t, a, args)
	if err == nil && result != nil {
		err = json.Unmarshal(data, result)
	}
	return err
}

// hears has nodes go by a plan.
func hears(t *testing.T, p *plan.Plan, nodes ...*running) {
	t.Helper()
	for _, n := range nodes {
		m := *n.Member
		m.Plan = p
		var err error
		if m.Site, err = p.Site(m.Self.Site); err != nil {
			t.Fatal(err)
		}
		n.Member = &m
		if err := (Configure{}).Apply(t.Context(), n.Node.Node.Node); err != nil {
			t.Fatal(err)
		}
	}
}

// turn is a newer plan by which a site takes the writes.
func turn(t *testing.T, last *plan.Plan, site string) *plan.Plan {
	t.Helper()
	next := *last
	next.Sites = slices.Clone(last.Sites)
	next.Generation++
	if err := next.Promote(site, next.Generation); err != nil {
		t.Fatal(err)
	}
	return &next
}

// shows waits until a query on a node has this answer.
func (n *running) shows(t *testing.T, query, want string) {
	t.Helper()
	got := ""
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		out, err := psql(t.Context(), n.Node.Node.Node, query)
		if got = strings.TrimSpace(out); err == nil && got == want {
			return
		}
	}
	t.Fatalf("%s: %s is %q, want %q\n%s", n.Member.Self.Name, query, got, want, n.Log(Unit))
}

// tells waits for what a node's report says of the database.
func (n *running) tells(t *testing.T, what string, is func(status.Database) bool) {
	t.Helper()
	var c status.Cluster
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		c = status.Cluster{}
		n.start.Observe(t.Context(), n.Node.Node.Node, &c)
		if c.Database != nil && is(*c.Database) {
			return
		}
	}
	t.Fatalf("%s does not tell of %s: %+v\n%s", n.Member.Self.Name, what, c.Database, n.Log(Unit))
}

const rows = "SELECT string_agg(n::text, ',' ORDER BY n) FROM kept"

func TestSitesTakeTurns(t *testing.T) {
	p := roletest.Plan()
	p.Sites[0].Consensus = []string{"a-db1"}
	p.Nodes = slices.DeleteFunc(p.Nodes, func(n plan.Node) bool { return n.Name == "a-db3" })
	members := roletest.Members(t, p)
	first, second, far := boot(t, members["a-db1"]), boot(t, members["a-db2"]), boot(t, members["b-db1"])
	nodes := []*running{first, second, far}
	all(t, nodes...)
	first.sql(t, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")
	far.shows(t, rows, "1")

	next := aPlannedSwitchLosesNothing(t, p, first, second, far)
	aLostSiteComesBackAsAStandby(t, next, first, second, far)
	aDemotionThatLostItsPowerGoesOn(t, first, second, far)
	nothingLogsASecret(t, nodes)
}

func aPlannedSwitchLosesNothing(t *testing.T, p *plan.Plan, first, second, far *running) *plan.Plan {
	next := turn(t, p, "b")
	if err := far.asked(t, PromoteSite, PromoteSiteArgs{Turn: next.Turn}, nil); err == nil || !strings.Contains(err.Error(), "has site a take the writes") {
		t.Fatalf("promoted without a plan that says so: %v", err)
	}
	if err := second.asked(t, DemoteSite, DemoteSiteArgs{To: "b"}, nil); err == nil || !strings.Contains(err.Error(), "is not the primary") {
		t.Fatalf("demoted by a replica: %v", err)
	}
	first.sql(t, "INSERT INTO kept VALUES (2)")
	if err := first.asked(t, DemoteSite, DemoteSiteArgs{To: "b"}, nil); err != nil {
		t.Fatalf("%v\n%s", err, first.Log(Unit))
	}
	var end PositionResult
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		err := first.asked(t, Position, struct{}{}, &end)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	t.Logf("site a's log ends at %s", end.At)
	if stopped, err := parseLSN(end.Stopped); err != nil || end.Primary {
		t.Errorf("the primary tells %+v, %v", end, err)
	} else if at, err := parseLSN(end.At); err != nil || at < stopped {
		t.Errorf("the primary stopped at %s, and its log ends at %s, %v", stopped, at, err)
	}
	aStoppedStandbyTellsItsEnd(t, second, end)
	hears(t, next, first, second, far)
	beyond, err := parseLSN(end.At)
	if err != nil {
		t.Fatal(err)
	}
	if err := far.asked(t, PromoteSite, PromoteSiteArgs{Turn: next.Turn, AtLeast: end.At}, nil); err != nil {
		t.Fatalf("%v\n%s", err, far.Log(Unit))
	}
	if at, goesOn, err := position(t.Context(), far.Node.Node.Node); err != nil || at <= beyond || !goesOn {
		t.Errorf("site b goes on at %s, %v; site a's log ended at %s", at, err, end.At)
	}
	if got := far.sql(t, rows); got != "1,2" {
		t.Errorf("after a planned switch there is %s", got)
	}
	far.sql(t, "INSERT INTO kept VALUES (3)")
	all(t, first, second, far)
	for _, n := range []*running{first, second} {
		n.shows(t, rows, "1,2,3")
		n.shows(t, "SELECT pg_is_in_recovery()", "t")
		if aside := keptAside(n.Node.Node.Node); len(aside) > 0 {
			t.Fatalf("%s put %q aside, where nothing was to be lost: %q", n.Member.Self.Name, aside, n.Said.Changes)
		}
	}
	if d := first.healthy(t); !d.Standby {
		t.Errorf("site a is %+v", d)
	}
	if d := far.healthy(t); d.Standby || d.Leader() != "b-db1" {
		t.Errorf("site b is %+v", d)
	}
	return next
}

// aStoppedStandbyTellsItsEnd is what a fenced node does that waits for the other site.
func aStoppedStandbyTellsItsEnd(t *testing.T, n *running, want PositionResult) {
	if err := standStill(t.Context(), n.Node.Node.Node); err != nil {
		t.Fatal(err)
	}
	var got PositionResult
	if err := n.asked(t, Position, struct{}{}, &got); err != nil {
		t.Fatal(err)
	}
	at, err := parseLSN(got.At)
	end, endErr := parseLSN(want.At)
	if err != nil || endErr != nil || at > end || got.Stopped != want.Stopped || got.Primary {
		t.Errorf("%s tells %+v once it is stopped, and the primary %+v", n.Member.Self.Name, got, want)
	}
	t.Logf("the log of %s, which is stopped, ends at %s", n.Member.Self.Name, got.At)
}

// aDemotionThatLostItsPowerGoesOn cuts the power of site a's primary when Patroni is
// paused and PostgreSQL has not stopped yet.
func aDemotionThatLostItsPowerGoesOn(t *testing.T, first, second, far *running) {
	lead, replica := first, second
	if d := first.healthy(t); d.Leader() == "a-db2" {
		lead, replica = second, first
	}
	name := lead.Member.Self.Name
	rest, err := dial(lead.Member)
	if err != nil {
		t.Fatal(err)
	}
	defer rest.mtls.Close()
	if err := rest.patchConfig(t.Context(), tree{"pause": true, demotedKey: tree{"node": name}}); err != nil {
		t.Fatal(err)
	}
	if err := rest.sees(t.Context(), "it is paused", func(o own) bool { return o.Pause }); err != nil {
		t.Fatal(err)
	}
	lead.sql(t, "INSERT INTO kept VALUES (6)")
	lead.Output(t, "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", binDir+"/pg_ctl", "-D", dataDir, "-s", "-w", "-m", "immediate", "stop")
	replica.tells(t, "the demotion", func(d status.Database) bool { return d.Demoting == name && d.Leader() == "" })
	if err := replica.asked(t, DemoteSite, DemoteSiteArgs{To: "b"}, nil); err == nil || !strings.Contains(err.Error(), "is not the primary") {
		t.Errorf("another node goes on with it: %v", err)
	}
	if err := lead.asked(t, DemoteSite, DemoteSiteArgs{To: "b"}, nil); err != nil {
		t.Fatalf("%v\n%s", err, lead.Log(Unit))
	}
	back := first
	lead.tells(t, "a site that follows", func(d status.Database) bool {
		if d.Leader() == "a-db2" {
			back = second
		}
		return d.Standby && !d.Paused && d.Demoting == ""
	})
	far.shows(t, rows, "1,2,3,4,5,6")
	var end PositionResult
	if err := replica.asked(t, Position, struct{}{}, &end); err != nil || end.Stopped == "" {
		t.Errorf("%s does not tell where the primary stopped: %+v, %v", replica.Member.Self.Name, end, err)
	}
	// By its plan it may take the writes again, and has all that it had.
	if err := back.asked(t, PromoteSite, PromoteSiteArgs{Turn: back.Member.Plan.Turn, AtLeast: end.Stopped}, nil); err != nil {
		t.Fatalf("%v\n%s", err, back.Log(Unit))
	}
	if got := back.sql(t, rows); got != "1,2,3,4,5,6" {
		t.Errorf("after an interrupted demotion there is %s", got)
	}
	var now PositionResult
	if err := back.asked(t, Position, struct{}{}, &now); err != nil || now.Stopped != "" || !now.Primary {
		t.Errorf("a site that takes writes again tells %+v, %v", now, err)
	}
}

func aLostSiteComesBackAsAStandby(t *testing.T, p *plan.Plan, first, second, far *running) {
	far.Link(false)
	// Of a site that nobody sees, PostgreSQL goes on.
	if out, err := far.On("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", binDir+"/psql", "-XAtqc", "INSERT INTO kept VALUES (666)", "-h", "/run/postgresql"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	next := turn(t, p, "a")
	hears(t, next, first, second)
	lead := first
	var d status.Cluster
	first.start.Observe(t.Context(), first.Node.Node.Node, &d)
	if d.Database.Leader() == "a-db2" {
		lead = second
	}
	if err := lead.asked(t, PromoteSite, PromoteSiteArgs{Turn: next.Turn}, nil); err != nil {
		t.Fatalf("%v\n%s", err, lead.Log(Unit))
	}
	lead.sql(t, "INSERT INTO kept VALUES (4)")
	if got := lead.sql(t, rows); got != "1,2,3,4" {
		t.Errorf("the promoted site has %s", got)
	}

	// It is seen again, and hears of the plan.
	far.Link(true)
	hears(t, next, far)
	begun := time.Now()
	all(t, far)
	t.Logf("fenced and cloned within %.1f s", time.Since(begun).Seconds())
	far.shows(t, rows, "1,2,3,4")
	far.shows(t, "SELECT pg_is_in_recovery()", "t")
	aside := keptAside(far.Node.Node.Node)
	if len(aside) != 1 {
		t.Fatalf("kept aside: %q", aside)
	}
	var c status.Cluster
	if err := far.start.Observe(t.Context(), far.Node.Node.Node, &c); err == nil || !strings.Contains(err.Error(), aside[0]) {
		t.Errorf("the report says %v; it does not tell of %s", err, aside[0])
	}
	if c.Database == nil || !c.Database.Standby {
		t.Errorf("site b is %+v", c.Database)
	}
	out := far.Output(t, "sh", "-c", fmt.Sprintf("rm -f %[2]s/standby.signal; echo 'SELECT n FROM kept' | setpriv --reuid=postgres --regid=postgres --init-groups %[1]s/postgres --single -D %[2]s postgres 2>&1", binDir, aside[0]))
	if !strings.Contains(out, `"666"`) || strings.Contains(out, `"4"`) {
		t.Errorf("what was kept aside holds:\n%s", out)
	}
	lead.sql(t, "INSERT INTO kept VALUES (5)")
	far.shows(t, rows, "1,2,3,4,5")
}
