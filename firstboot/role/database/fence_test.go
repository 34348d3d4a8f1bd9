package database

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// turnedTo is a node of the test's plan after a site was promoted.
func turnedTo(t *testing.T, name, site string) *member.Member {
	t.Helper()
	m := at(t, name)
	if err := m.Plan.Promote(site, 5); err != nil {
		t.Fatal(err)
	}
	var err error
	if m.Site, err = m.Plan.Site(m.Self.Site); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestOnlyAPromotionMakesANodeLookAtItsData(t *testing.T) {
	for _, c := range []struct {
		node, site string
		record     int64
		want       bool
	}{
		{"a-db1", "b", 0, true}, {"a-db1", "b", 5, false}, {"a-db1", "b", 4, true},
		{"b-db1", "b", 0, false}, {"a-db1", "a", 0, false}, {"b-db1", "a", 0, true},
	} {
		if got := turned(turnedTo(t, c.node, c.site), record{Turn: c.record}); got != c.want {
			t.Errorf("%s after site %s was promoted, last looked at in turn %d: %v", c.node, c.site, c.record, got)
		}
	}
	if turned(at(t, "b-db1"), record{}) {
		t.Error("a standby site that was one from the beginning looks at its data")
	}
}

func TestWhatThePromotedSiteLacksIsTold(t *testing.T) {
	f := fork{Timeline: 2, At: 0x5000}
	for _, c := range []struct {
		tip  tip
		want bool
	}{
		{tip{2, 0x4fff}, false}, {tip{2, 0x5000}, true}, {tip{2, 0x5001}, true},
		{tip{1, 0x9000}, false}, // of a node that its own site has left behind
		{tip{3, 0x10}, true},    // the site went on by itself
	} {
		if got := f.lacks(c.tip); got != c.want {
			t.Errorf("a log that ends at %v, of which the site has %v: %v", c.tip, f, got)
		}
	}
}

func TestPlacesInTheLogAreReadAsPostgreSQLWritesThem(t *testing.T) {
	for text, want := range map[string]lsn{"0/0": 0, "0/3000148": 0x3000148, "A/F0000000": 0xAF0000000, "16/B374D848": 0x16B374D848} {
		got, err := parseLSN(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "1", "/", "g/1", "0/123456789", "0/1; x", "-1/0"} {
		if got, err := parseLSN(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestAFencedSiteFollowsAndObeys(t *testing.T) {
	before := at(t, "a-db1")
	running, err := canonical(initial(before))
	if err != nil {
		t.Fatal(err)
	}
	running["pause"], running["loop_wait"] = true, 3.0
	text, err := json.Marshal(running)
	if err != nil {
		t.Fatal(err)
	}
	m := turnedTo(t, "a-db1", "b")
	next, err := fenced(string(text), m)
	if err != nil {
		t.Fatal(err)
	}
	var got tree
	if err := json.Unmarshal([]byte(next), &got); err != nil {
		t.Fatal(err)
	}
	follow, _ := got["standby_cluster"].(tree)
	if follow["host"] != "10.77.2.14" || follow["primary_slot_name"] != "standby_a" {
		t.Errorf("it follows %v", follow)
	}
	if _, paused := got["pause"]; paused {
		t.Error("Patroni stays paused, and would not obey")
	}
	if _, slots := got["slots"]; slots {
		t.Errorf("it keeps WAL back for a site that does not follow it any more: %v", got["slots"])
	}
	if got["loop_wait"] != 3.0 || got["synchronous_mode"] != "quorum" {
		t.Errorf("what an operator had set is gone: %v", got)
	}
	if again, err := fenced(next, m); err != nil || again != "" {
		t.Errorf("a second time: %s, %v", again, err)
	}
	if _, err := fenced("[", m); err == nil {
		t.Error("garbage was taken for a configuration")
	}
}

func TestPatroniDoesNotRewindWhatWasNotLookedAt(t *testing.T) {
	for _, c := range []struct {
		unchecked bool
		want      int
	}{{true, 1}, {false, 0}} {
		text, err := render(withSecrets(t), 2048, false, c.unchecked)
		if err != nil || strings.Count(text, "use_pg_rewind: false") != c.want {
			t.Errorf("not looked at: %v: %v\n%s", c.unchecked, err, text)
		}
	}
}

func withSecrets(t *testing.T) *member.Member {
	m := turnedTo(t, "a-db1", "b")
	m.Secrets = map[string]string{plan.SuperuserPassword: "one", plan.ReplicationPassword: "two", plan.RewindPassword: "three"}
	return m
}

// listener takes what a step says.
type listener struct{ waits, changes []string }

func (l *listener) Waiting(why string)     { l.waits = append(l.waits, why) }
func (l *listener) Changed(what string)    { l.changes = append(l.changes, what) }
func (l *listener) Warn(node.Warning)      {}
func (l *listener) Say(string)             {}
func (l *listener) HostKey(string, string) {}
func (l *listener) Login(string)           {}

func TestASiteStartsAloneOnlyAfterItHasAskedTheOther(t *testing.T) {
	c := membertest.New(t)
	c.Plan.Sites = append(c.Plan.Sites, c.Plan.Sites[0])
	c.Plan.Sites[1].Name, c.Plan.Sites[1].Scope, c.Plan.Sites[1].StandbyOf, c.Plan.Sites[1].Consensus = "b", "shop-b", "a", nil
	far := c.Plan.Nodes[0]
	far.Name, far.Site, far.Address = "b-db1", "b", far.Address.Next().Next().Next()
	c.Plan.Nodes = append(c.Plan.Nodes, far)
	heard := func(name string, ctx context.Context, alone time.Duration, agrees func(string) bool) (*listener, error) {
		said := &listener{}
		m := c.Member(t, name)
		rest, err := dial(m)
		if err != nil {
			t.Fatal(err)
		}
		s := &Start{Agrees: agrees, Alone: alone}
		return said, s.heard(ctx, &node.Node{Root: t.TempDir(), Member: m, Report: said}, rest)
	}
	asked := ""
	said, err := heard("a-db1", t.Context(), time.Hour, func(site string) bool { asked += site; return asked == "bb" })
	if err != nil || asked != "bb" || len(said.waits) != 1 || len(said.changes) != 0 {
		t.Errorf("once the other site has answered: %v, asked for %q, %+v", err, asked, said)
	}
	said, err = heard("a-db1", t.Context(), time.Millisecond, func(string) bool { return false })
	if err != nil || !strings.Contains(strings.Join(said.changes, ""), "without a word from another site") {
		t.Errorf("where nobody answers: %v, %+v", err, said)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = heard("a-db1", ended, time.Hour, func(string) bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("when a newer plan comes while it waits: %v", err)
	}
	if _, err = heard("b-db1", t.Context(), time.Hour, func(string) bool { t.Error("a standby site asks whether it may start"); return true }); err != nil {
		t.Error(err)
	}
}

func TestWhatIsPutAsideCountsAsNoLossAtOnce(t *testing.T) {
	const ours = "7500000000000000001"
	n := &node.Node{Root: t.TempDir(), Member: turnedTo(t, "a-db1", "b")}
	if err := writeRecord(n, n.Member, record{System: ours, Turn: 3}); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(n.Path(dataDir+"/base"), 0o700); err != nil {
		t.Fatal(err)
	}
	name := divergedPrefix + "20261121T004500Z"
	if err := putAside(n, name); err != nil {
		t.Fatal(err)
	}
	// Here the power goes: nothing else is written down.
	if got := keptAside(n); !slices.Equal(got, []string{name}) {
		t.Errorf("kept aside: %q", got)
	}
	d, err := inspect(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	r, err := readRecord(n, n.Member)
	if err != nil || !turned(n.Member, r) {
		t.Errorf("%+v, %v: the node would not be fenced once more", r, err)
	}
	if what, err := decide(n.Member, d, r, "", false); err != nil || what != begin {
		t.Errorf("%v, %v: the node does not clone the promoted site", what, err)
	}
}

func TestTheEndOfALogThatDoesNotRunIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		state   string
		running bool
		want    lsn
	}{
		"a primary that was shut down":           {"shut down", false, 0x5000029},
		"a standby that was shut down":           {"shut down in recovery", false, 0x5000101},
		"one that was shut down, and starts now": {"shut down in recovery", true, 0x5000101},
		"a primary that lost its power":          {"in production", false, 0x5000101},
		"a standby that lost its power":          {"in archive recovery", false, 0x5000101},
		"a primary that may be running":          {"in production", true, 0},
		"a standby that may be running":          {"in archive recovery", true, 0},
	} {
		n := &node.Node{Root: t.TempDir(), Run: tools{c.state}}
		files := []string{dataDir + "/pg_wal/000000010000000000000005", "/usr/bin/env", "/usr/bin/sh", "/usr/bin/setpriv"}
		if c.running {
			files = append(files, postmasterPID)
		}
		for _, f := range files {
			if err := os.MkdirAll(filepath.Dir(n.Path(f)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(n.Path(f), nil, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := endOfLog(t.Context(), n); (err == nil) != (c.want != 0) || err == nil && got != c.want {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
		if got, primary, err := position(t.Context(), n); (err == nil) != (c.want != 0) || primary {
			t.Errorf("%s: %v, goes on: %v, %v", name, got, primary, err)
		}
	}
}

// tools answer for those of PostgreSQL on a data directory of which no server is to be
// reached.
type tools struct{ state string }

func (r tools) Run(_ context.Context, c node.Command) (string, error) {
	switch line := strings.Join(c.Argv, " "); {
	case strings.Contains(line, "pg_controldata"):
		return "Database cluster state:               " + r.state + `
Latest checkpoint location:           0/5000028
Latest checkpoint's REDO location:    0/5000028
Latest checkpoint's TimeLineID:       1
`, nil
	case strings.Contains(line, "pg_waldump"):
		return "rmgr: Standby len (rec/tot): 50/50, tx: 0, lsn: 0/05000100, prev 0/05000028, desc: RUNNING_XACTS\n", nil
	}
	return "", errors.New("no server")
}

func TestADemotionIsReadFromTheRunningConfiguration(t *testing.T) {
	follows := tree{"host": "10.77.2.14"}
	for name, c := range map[string]struct {
		running tree
		want    demoted
	}{
		"none":                            {tree{"pause": true}, demoted{}},
		"one under way":                   {tree{"pause": true, demotedKey: tree{"node": "a-db1"}}, demoted{Node: "a-db1"}},
		"one that somebody ended":         {tree{demotedKey: tree{"node": "a-db1"}}, demoted{}},
		"one that is done":                {tree{"standby_cluster": follows, demotedKey: tree{"node": "a-db1", "at": "0/5000029", "turn": 5.0}}, demoted{At: "0/5000029", Turn: 5}},
		"one of a site that writes again": {tree{demotedKey: tree{"node": "a-db1", "at": "0/5000029"}}, demoted{}},
		"a site that was fenced instead":  {tree{"standby_cluster": follows, demotedKey: tree{"node": "a-db1"}}, demoted{}},
	} {
		if got := demotionIn(c.running); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestWhatWasKeptAsideIsToldUntilItIsGone(t *testing.T) {
	n := &node.Node{Root: t.TempDir()}
	if got := asideProblems(n); len(got) != 0 {
		t.Errorf("%q", got)
	}
	names := []string{divergedPrefix + "20261121T004500Z", divergedPrefix + "20261122T004500Z"}
	for _, name := range names {
		if err := os.MkdirAll(n.Path(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if got := keptAside(n); !slices.Equal(got, names) {
		t.Errorf("%q", got)
	}
	if got := asideProblems(n); len(got) != 2 || !strings.Contains(got[0], names[0]) {
		t.Errorf("%q", got)
	}
	if err := os.Remove(filepath.Join(n.Root, names[0])); err != nil {
		t.Fatal(err)
	}
	if got := asideProblems(n); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

func TestALogThatWentOnAsThePromotedSitesDidLacksNothing(t *testing.T) {
	n := &node.Node{Root: t.TempDir(), Run: waldump{}}
	for name, text := range map[string]string{
		dataDir + "/pg_wal/00000002.history": "1\t0/50220D0\tno recovery target specified\n",
		dataDir + "/pg_wal/00000003.history": "1\t0/50220D0\tx\n\n2\t0/6000000\tx\n",
		"/usr/bin/env":                       "",
	} {
		if err := os.MkdirAll(filepath.Dir(n.Path(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(n.Path(name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	begins := "lsn: 0/50220D0, -t 2, desc: END_OF_RECOVERY tli 2; prev tli 1"
	for name, c := range map[string]struct {
		fork fork
		tip  tip
		want bool
	}{
		"the site's own timeline":                {fork{1, 0x50220D0, begins}, tip{2, 0x5022108}, true},
		"one that came of it":                    {fork{1, 0x50220D0, begins}, tip{3, 0x6000100}, true},
		"the same number, from another node":     {fork{1, 0x50220D0, begins + " and later"}, tip{2, 0x5022108}, false},
		"one that does not come from the common": {fork{2, 0x50220D0, begins}, tip{2, 0x5022108}, false},
		"a beginning that nobody knows any more": {fork{1, 0x50220D0, unknown}, tip{2, 0x5022108}, false},
		"no history":                             {fork{1, 0x50220D0, begins}, tip{4, 0x5022108}, false},
	} {
		if got := c.fork.went(t.Context(), n, c.tip); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// waldump answers for pg_waldump(1): a promotion wherever it is asked.
type waldump struct{ node.Runner }

func (waldump) Run(_ context.Context, c node.Command) (string, error) {
	arg := func(flag string) string { return c.Argv[slices.Index(c.Argv, flag)+1] }
	return fmt.Sprintf("lsn: %s, -t %s, desc: END_OF_RECOVERY tli 2; prev tli 1\n", arg("-s"), arg("-t")), nil
}

func TestATimelineBeginsWhereItsHistorySays(t *testing.T) {
	n := &node.Node{Root: t.TempDir()}
	file := n.Path(dataDir + "/pg_wal/0000000A.history")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("1\t0/3000000\tno recovery target specified\n\n9\t0/5000A28\tbefore 2026\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := branch(n, 10); err != nil || got != 0x5000A28 {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := branch(n, 11); err == nil {
		t.Error("a history that is not there was read")
	}
}
