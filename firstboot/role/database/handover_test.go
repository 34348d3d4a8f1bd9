package database

import (
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// Were both lost with one machine, the election would come before the lock runs out.
func TestWhoeverLeadsPostgreSQLDoesNotLeadEtcd(t *testing.T) {
	first, second := two(t)
	all(t, first, second)
	etcd := &consensus.Start{}
	look := func() (leads string, seen status.Cluster) {
		t.Helper()
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			seen = status.Cluster{}
			_ = etcd.Observe(t.Context(), first.Node.Node.Node, &seen) // a-db3 is away, of which it complains
			for _, v := range seen.Consensus.Members {
				if v.Leader {
					return v.Node, seen
				}
			}
		}
		t.Fatal("etcd has no leader")
		return "", seen
	}
	leads, seen := look()
	if leads == "a-db2" {
		if err := consensus.HandOver(t.Context(), second.Member, seen.Consensus); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(patience); leads != "a-db1"; leads, seen = look() {
		if time.Now().After(deadline) {
			t.Fatalf("%s leads etcd", leads)
		}
	}
	_ = second.start.Observe(t.Context(), second.Node.Node.Node, &seen) // a replica leaves etcd alone
	if leads, _ := look(); leads != "a-db1" {
		t.Fatalf("%s leads etcd", leads)
	}
	_, seen = look()
	_ = first.start.Observe(t.Context(), first.Node.Node.Node, &seen)
	for deadline := time.Now().Add(patience); leads != "a-db2"; leads, _ = look() {
		if time.Now().After(deadline) {
			t.Fatalf("%s still leads etcd, and PostgreSQL", leads)
		}
	}
}
