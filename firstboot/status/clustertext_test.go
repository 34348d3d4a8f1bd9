package status

import (
	"strings"
	"testing"
	"time"
)

// shop is what a database node says of its cluster while a balancer is missing.
func shop() *Cluster {
	at := time.Date(2026, 11, 20, 12, 3, 0, 0, time.UTC)
	lag := int64(65536)
	return &Cluster{
		Name: "shop", ID: "0123", Node: "a-db1", Site: "a", Generation: 3, Expires: at.AddDate(2, 0, 0),
		Peers: []Peer{
			{Name: "a-db2", Role: "db-replica", Answers: true, State: Ready},
			{Name: "a-lb1", Role: "balancer", Since: at, Problem: "connection refused"},
		},
		Consensus: &Consensus{Quorum: true, Members: []ConsensusMember{{Node: "a-db1", Healthy: true, Leader: true}, {Node: "a-db2", Healthy: true}, {Node: "a-lb1"}}},
		Database: &Database{Scope: "shop-a", Members: []DatabaseMember{
			{Node: "a-db1", Role: "leader", State: "running", Timeline: 2}, {Node: "a-db2", Role: "quorum_standby", State: "streaming", Timeline: 2, Lag: &lag},
		}},
		VIPs:     []VIP{{Name: "db", Address: "10.77.1.10/24", Held: true}},
		Backends: []Backend{{Name: "read-write", Server: "a-db1", Up: true}, {Name: "read-only", Server: "a-db2", Check: "L4CON"}},
		Problems: []string{"peers: a-lb1 (10.77.1.21): connection refused, since 12:03:00 UTC", "consensus: a-lb1 is not healthy"},
	}
}

func TestTheClusterIsShownToPeople(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 5, 0, 0, time.UTC)
	r := Report{State: Degraded, Since: now, Role: "db-master", Cluster: shop()}
	want := `  cluster      shop: node a-db1 at site a, plan 3, certificates until 2028-11-20
  peers        a-db2 ready, missing: a-lb1
  consensus    quorum, a-db1 leader, a-db2, a-lb1 not healthy
  database     a-db1 leader TL 2, a-db2 quorum_standby TL 2 lag 64 KiB
  virtual IPs  db 10.77.1.10/24 here
  backends     read-write a-db1 up, read-only a-db2 down L4CON
`
	text := r.Text(now, Plain)
	if !strings.Contains(text, want) {
		t.Errorf("got:\n%s\nwant:\n%s", text, want)
	}
	if !strings.Contains(text, "! peers: a-lb1 (10.77.1.21): connection refused") {
		t.Errorf("no problems in:\n%s", text)
	}
	// What a step waits for is not told twice.
	r.Steps = []Step{{Name: "consensus", State: Running, WaitingFor: "no quorum: a-lb1 is away"}}
	if text := r.Text(now, Plain); strings.Contains(text, "! consensus") || !strings.Contains(text, "no quorum: a-lb1 is away") {
		t.Errorf("got:\n%s", text)
	}
	// Text of others does not steer the terminal.
	r.Cluster.Peers[0].State = "\x1b[2J"
	if text := r.Text(now, Plain); strings.Contains(text, "\x1b") {
		t.Errorf("got: %q", text)
	}
}

func TestACloneOfTheReportSharesNothing(t *testing.T) {
	r := Report{Cluster: shop()}
	c := r.Clone()
	c.Cluster.Peers[0].Name, c.Cluster.Consensus.Members[0].Node, *c.Cluster.Database.Members[1].Lag = "x", "x", 7
	if r.Cluster.Peers[0].Name == "x" || r.Cluster.Consensus.Members[0].Node == "x" || *r.Cluster.Database.Members[1].Lag == 7 {
		t.Errorf("%+v", r.Cluster)
	}
}
