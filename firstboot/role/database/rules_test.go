package database

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/mtls"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

// at is a node of the test's plan, without certificates.
func at(t *testing.T, name string) *member.Member {
	t.Helper()
	p := roletest.Plan()
	self, err := p.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	site, err := p.Site(self.Site)
	if err != nil {
		t.Fatal(err)
	}
	return &member.Member{Plan: p, Self: self, Site: site}
}

func TestPatroniStartsOnlyOnDataThatIsTheClusters(t *testing.T) {
	const ours, other = "7500000000000000001", "7500000000000000002"
	whole := func(id string) data { return data{version: version, system: id} }
	half := data{version: version}
	empty := data{empty: true}
	absent, making := "-", "" // of etcd's key
	for _, c := range []struct {
		story  string
		node   string
		data   data
		record record
		key    string
		want   any // a deed, or a part of the refusal
	}{
		{"the first start of all", "a-db1", empty, record{}, absent, begin},
		{"a replica before the database is made", "a-db2", empty, record{}, absent, begin},
		{"a replica that clones", "a-db2", empty, record{}, ours, begin},
		{"the power went before anything was written", "a-db2", empty, record{Begun: true}, ours, start},
		{"the power went while the database was made", "a-db1", half, record{Begun: true}, making, reopen},
		{"it went before Patroni's first file", "a-db1", empty, record{Begun: true}, making, reopen},
		{"another node is making the database", "a-db2", empty, record{Begun: true}, making, start},
		{"the power went during a clone", "a-db2", half, record{Begun: true}, ours, tidy},
		{"it went during a clone on the node that once made the database", "a-db1", half, record{Begun: true}, ours, tidy},
		{"every later boot", "a-db2", whole(ours), record{System: ours}, ours, start},
		{"the agent died before it could note that the clone is whole", "a-db2", whole(ours), record{Begun: true}, ours, start},
		{"etcd lost all, the node did not", "a-db1", whole(ours), record{System: ours}, absent, start},
		{"the record was lost, the data are the cluster's", "a-db2", whole(ours), record{}, ours, start},
		{"another cluster's disk", "a-db2", whole(other), record{}, ours, "another database"},
		{"a stand-alone node's data on the first start of all", "a-db1", whole(other), record{}, absent, "nothing says that it is this cluster's"},
		{"another disk under a node that ran before", "a-db2", whole(other), record{System: ours}, ours, "another database"},
		{"files of somebody", "a-db2", data{}, record{}, ours, "no whole database"},
		{"an older PostgreSQL", "a-db2", data{version: "15", system: ours}, record{System: ours}, ours, "PostgreSQL 15"},
		{"both the disk and etcd are lost", "a-db1", empty, record{System: ours}, absent, "does not know the database"},
		{"the power went after the data were put aside", "a-db1", empty, record{Begun: true, System: ours}, absent, begin},
		{"it went so on another node", "a-db2", empty, record{Begun: true, System: ours}, ours, begin},
		{"it went just before, and this site takes the writes again", "a-db1", whole(ours), record{Begun: true, System: ours}, absent, start},
		{"it went just before, and the data cannot be read any more", "a-db1", half, record{Begun: true, System: ours}, absent, "no whole database"},
		{"a disk lost, replaced, etcd there", "a-db1", empty, record{System: ours}, ours, begin},
	} {
		key, found := c.key, c.key != absent
		if !found {
			key = ""
		}
		got, err := decide(at(t, c.node), c.data, c.record, key, found)
		switch want := c.want.(type) {
		case deed:
			if err != nil || got != want {
				t.Errorf("%s: %v, %v; want %v", c.story, got, err, want)
			}
		case string:
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, %v; want it refused: %s", c.story, got, err, want)
			}
		}
	}
}

func TestAPlansChangeMovesOnlyWhatThePlanChanged(t *testing.T) {
	m := at(t, "a-db1")
	running, err := canonical(initial(m))
	if err != nil {
		t.Fatal(err)
	}
	if change, err := patch(running, m); err != nil || change != nil {
		t.Errorf("a cluster as the plan made it: %v, %v", change, err)
	}
	// By hand.
	running["ttl"], running["synchronous_mode"] = 60.0, false
	running["postgresql"].(tree)["parameters"].(tree)["work_mem"] = "1GB"

	m.Site.Postgres.Parameters = map[string]string{"jit": "off"}
	m.Site.Patroni.RetryTimeout = 4
	change, err := patch(running, m)
	if err != nil {
		t.Fatal(err)
	}
	moved := tree{"retry_timeout": 4.0, "postgresql": tree{"parameters": tree{"jit": "off"}}}
	want := merged(moved, tree{appliedKey: moved})
	if !reflect.DeepEqual(change, want) {
		t.Errorf("%v, want %v", change, want)
	}
	// What the plan gives up is taken back.
	running = merged(running, change)
	m.Site.Postgres.Parameters = nil
	if change, err = patch(running, m); err != nil || !reflect.DeepEqual(change["postgresql"], tree{"parameters": tree{"jit": nil}}) {
		t.Errorf("%v, %v", change, err)
	}
}

func TestAPromotedSiteDoesNotFollowAgain(t *testing.T) {
	m := at(t, "b-db1")
	running, err := canonical(initial(m))
	if err != nil {
		t.Fatal(err)
	}
	standby := running["standby_cluster"].(tree)
	if standby["host"] != "10.77.1.11,10.77.1.12,10.77.1.13" || standby["primary_slot_name"] != "standby_b" {
		t.Errorf("%v", standby)
	}
	delete(running, "standby_cluster")
	m.Plan.Nodes[0].Address = m.Plan.Nodes[0].Address.Next()
	if change, err := patch(running, m); err != nil || change != nil {
		t.Errorf("%v, %v", change, err)
	}
	running["standby_cluster"] = standby
	if change, err := patch(running, m); err != nil || change["standby_cluster"] == nil {
		t.Errorf("a primary's new address: %v, %v", change, err)
	}
}

func TestTheSuperuserAndReplicationHaveTheirOwnWaysIn(t *testing.T) {
	rules := access(roletest.Plan())
	text := strings.Join(rules, "\n")
	for _, want := range []string{
		"local all postgres peer", "host all postgres all reject",
		"hostssl replication replicator 10.77.2.14/32 scram-sha-256", // the other site
		"hostssl all all 10.77.9.0/24 scram-sha-256",
	} {
		if !slices.Contains(rules, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if strings.Contains(text, "trust") || strings.Contains(text, "md5") || strings.Contains(text, "0.0.0.0") {
		t.Errorf("too wide:\n%s", text)
	}
	if slices.Index(rules, "host all replicator,rewind all reject") > slices.Index(rules, "hostssl all all 10.77.9.0/24 scram-sha-256") {
		t.Error("replication's roles get in where everybody does")
	}
}

func TestMemoryFollowsTheMachine(t *testing.T) {
	p := plan.Postgres{MaxConnections: 100, Parameters: map[string]string{"work_mem": "8MB"}}
	for total, want := range map[mebibytes]map[string]string{
		512:   {"shared_buffers": "128MB", "effective_cache_size": "307MB", "maintenance_work_mem": "32MB"},
		4096:  {"shared_buffers": "1024MB", "effective_cache_size": "2457MB", "maintenance_work_mem": "256MB"},
		65536: {"shared_buffers": "16384MB", "effective_cache_size": "39321MB", "maintenance_work_mem": "1024MB"},
	} {
		if got := memorySettings(total, p); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", total, got, want)
		}
	}
}

// The example of RFC 7677, section 3, gives what both keys come to.
func TestVerifiersAreThoseOfTheSpecification(t *testing.T) {
	const stored = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
	if !verifies(stored, "pencil") || verifies(stored, "pen") || verifies("md5abc", "pencil") || verifies("SCRAM-SHA-256$", "pencil") {
		t.Error("the example does not verify, or something else does")
	}
	if hash, err := verifier("pencil"); err != nil || !verifies(hash, "pencil") || hash == stored {
		t.Errorf("%s, %v", hash, err)
	}
}

func TestProblemsAreToldInWords(t *testing.T) {
	m := at(t, "a-db1")
	var w whole
	text := `{"members": [{"name": "a-db1", "role": "leader", "state": "running", "timeline": 3},
		{"name": "a-db2", "role": "quorum_standby", "state": "streaming", "lag": 9000000}, {"name": "a-db4", "role": "replica", "state": "start failed", "lag": "unknown"}], "pause": true}`
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		t.Fatal(err)
	}
	d := w.report(m.Site.Scope)
	if d.Members[2].Lag != nil || *d.Members[1].Lag != 9000000 {
		t.Errorf("%+v", d)
	}
	all := strings.Join(problems(m, d, own{Role: "primary"}, nobody), "\n")
	for _, want := range []string{"a-db2 lags behind by 8 MiB", "a-db4 does not stream (start failed)", "a-db3 is missing", "Patroni is paused"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not told:\n%s", want, all)
		}
	}
	d.Members[0].Role = "replica"
	if all := strings.Join(problems(m, d, own{}, nobody), "\n"); !strings.Contains(all, "there is no leader") {
		t.Error(all)
	}
}

// nobody is excused.
func nobody(string) bool { return false }

func TestASwitchoverOfWhichPatroniDoesNotKnowYetHowItEndsIsNotRefused(t *testing.T) {
	for _, c := range []struct {
		err     error
		refused bool
	}{
		{&mtls.Refused{Status: 503, Said: "Switchover status unknown"}, false},
		{fmt.Errorf("asking: %w", &mtls.Refused{Status: 503, Said: "Switchover status unknown"}), false},
		{&mtls.Refused{Status: 503, Said: "Switchover failed"}, true},
		{&mtls.Refused{Status: 412, Said: "candidate name does not match with sync_standby"}, true},
		{errors.New("no answer"), false},
		{nil, false},
	} {
		if got := refusal(c.err); (got != nil) != c.refused {
			t.Errorf("%v: refused: %v", c.err, got)
		}
	}
}
