package database

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/mtls"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// switchover has a node's agent do a switchover, and others hear what it says.
func (n *running) switchover(t *testing.T, from, to *running, others ...func(said string)) (*SwitchoverResult, error) {
	t.Helper()
	args, err := json.Marshal(SwitchoverArgs{Leader: from.Member.Self.Name, Candidate: to.Member.Self.Name})
	if err != nil {
		t.Fatal(err)
	}
	e := actions.NewEnv(*n.Node.Node.Node, actions.Caller{Name: "ann@desk"}, nil, func(text string) {
		t.Log(text)
		for _, hear := range others {
			hear(text)
		}
	})
	result, err := Switchover.Run(t.Context(), e, args)
	got, _ := result.(*SwitchoverResult)
	return got, err
}

// until waits for what a node tells of the database cluster.
func (n *running) until(t *testing.T, what string, is func(status.Database) bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		rest, err := dial(n.Member)
		if err != nil {
			t.Fatal(err)
		}
		d, err := rest.cluster(t.Context())
		rest.mtls.Close()
		if err == nil && is(d) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: waited for %s: %+v, %v\n%s", n.Member.Self.Name, what, d, err, n.Log(Unit))
		}
	}
}

// role waits until a node is a member with a role, in good order.
func (n *running) role(t *testing.T, role string) {
	t.Helper()
	n.until(t, "the role "+role, func(d status.Database) bool {
		m, _ := d.Member(n.Member.Self.Name)
		return m.Role == role && (m.Leads() || m.Streams())
	})
}

// switchedOver hands over from the first node to the second and refuses what would
// not be in good order.
func switchedOver(t *testing.T, first, second, elsewhere *running) {
	second.role(t, "quorum_standby")
	first.sql(t, "CREATE TABLE handed (n int); INSERT INTO handed SELECT generate_series(1, 1000)")
	for want, ask := range map[string]struct{ from, to *running }{
		second.Member.Self.Name + " does not lead any more: " + first.Member.Self.Name + " does": {second, elsewhere},
		elsewhere.Member.Self.Name + " is no member":                                             {first, elsewhere},
	} {
		if _, err := first.switchover(t, ask.from, ask.to); fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	first.Output(t, patronictl, "pause", "--wait")
	if _, err := first.switchover(t, first, second); err == nil || !strings.Contains(err.Error(), "Patroni is paused") || !strings.Contains(fault.Mend(err), "resume") {
		t.Errorf("while Patroni is paused: %v", err)
	}
	first.Output(t, patronictl, "resume", "--wait")

	begun := time.Now()
	got, err := first.switchover(t, first, second)
	if err != nil || *got != (SwitchoverResult{Leader: second.Member.Self.Name, Changed: true}) {
		t.Fatalf("switched over to %+v, %v", got, err)
	}
	t.Logf("switched over in %.1f s", time.Since(begun).Seconds())
	if log := first.File(t, "/"+Unit+".log"); !strings.Contains(log, second.Member.Self.Name+" leads: going on") {
		t.Errorf("the former primary slept for as long as Patroni does:\n%s", first.Log(Unit))
	}
	if n := second.sql(t, "SELECT count(*), pg_is_in_recovery() FROM handed"); n != "1000|f" {
		t.Errorf("the new leader has %s", n)
	}
	first.role(t, "quorum_standby")
	for _, n := range []*running{first, second} { // whoever is asked again
		if got, err := n.switchover(t, first, second); err != nil || got.Changed || got.Leader != second.Member.Self.Name {
			t.Errorf("again: %+v, %v", got, err)
		}
	}
}

// answers asks what balancers ask.
func (n *running) answers(t *testing.T, path string) int {
	t.Helper()
	at := rest(n.Member.Self)
	rest, err := dial(n.Member)
	if err != nil {
		t.Fatal(err)
	}
	defer rest.mtls.Close()
	err = rest.mtls.JSON(t.Context(), http.MethodGet, at+path, nil, nil)
	var refused *mtls.Refused
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &refused):
		return refused.Status
	}
	t.Fatal(err)
	return 0
}

// inMaintenance has a replica give up what others can do, until it is told to take
// part again.
func inMaintenance(t *testing.T, leader, replica *running) {
	own := replica.Node.Node.Node
	replica.role(t, "quorum_standby")
	if got := replica.answers(t, "/replica"); got != http.StatusOK {
		t.Errorf("before, /replica answers %d", got)
	}
	if err := own.BeginMaintenance(node.Maintenance{Since: time.Now(), By: "ann@desk"}); err != nil {
		t.Fatal(err)
	}
	if err := (Configure{}).Apply(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	replica.role(t, "replica") // no commit waits for it
	replica.until(t, "the tag", func(d status.Database) bool {
		m, _ := d.Member(replica.Member.Self.Name)
		return m.NoFailover
	})
	if got := replica.answers(t, "/replica"); got != http.StatusServiceUnavailable {
		t.Errorf("in maintenance, /replica answers %d", got)
	}
	if _, err := leader.switchover(t, leader, replica); err == nil || !strings.Contains(err.Error(), "it is in maintenance") {
		t.Errorf("a switchover to it: %v", err)
	}
	if leads, err := Leads(t.Context(), leader.Member); err != nil || !leads {
		t.Errorf("the leader leads: %v, %v", leads, err)
	}
	// A restart of Patroni, as at a boot, changes nothing.
	replica.StopUnit(Unit)
	replica.Said.Reset()
	if err := (Configure{}).Apply(t.Context(), own); err != nil || len(replica.Said.Changes) > 0 {
		t.Errorf("at the next boot: %q, %v", replica.Said.Changes, err)
	}
	replica.StartUnit(Unit)
	replica.until(t, "the tag after a restart", func(d status.Database) bool {
		m, _ := d.Member(replica.Member.Self.Name)
		return m.NoFailover && m.Streams()
	})
	if err := own.EndMaintenance(); err != nil {
		t.Fatal(err)
	}
	if err := (Configure{}).Apply(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	replica.role(t, "quorum_standby")
	if got := replica.answers(t, "/replica"); got != http.StatusOK {
		t.Errorf("afterwards, /replica answers %d", got)
	}
}
