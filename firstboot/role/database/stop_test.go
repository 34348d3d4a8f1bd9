package database

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

// A replica that stops in good order has the primary leave it out first (Patroni,
// ha.py, while_not_sync_standby): commits on a pair would wait for it until the
// primary looks the next time.
func TestTheOnlyReplicaIsNotWaitedForOnceItHasStopped(t *testing.T) {
	p := keptPlan()
	p.Nodes, p.Backup = p.Nodes[:2], nil
	p.Sites[0].Patroni = plan.Patroni{TTL: 30, LoopWait: 10, RetryTimeout: 10, PrimaryStartTimeout: 15, MaximumLag: 1 << 20}
	members := roletest.Members(t, p)
	first, second := boot(t, members["a-db1"]), boot(t, members["a-db2"])
	all(t, first, second)
	second.role(t, "quorum_standby")
	first.sql(t, "CREATE TABLE beats (n int)")
	if got := first.sql(t, "SHOW synchronous_standby_names"); !strings.Contains(got, "a-db2") {
		t.Fatalf("commits wait for %q", got)
	}
	ctx, stop := context.WithCancel(t.Context())
	var longest time.Duration
	var writer sync.WaitGroup
	writer.Go(func() {
		for ctx.Err() == nil {
			begun := time.Now()
			if _, err := psql(t.Context(), first.Node.Node.Node, "INSERT INTO beats VALUES (1);"); err != nil {
				t.Errorf("a client: %v", err)
			}
			longest = max(longest, time.Since(begun))
		}
	})
	begun := time.Now()
	second.StopUnit(Unit)
	got := first.sql(t, "SHOW synchronous_standby_names")
	t.Logf("the replica stopped within %.1f s", time.Since(begun).Seconds())
	if got != "" {
		t.Errorf("commits still wait for %q\n%s", got, second.Log(Unit))
	}
	stop()
	writer.Wait()
	t.Logf("no commit took longer than %v", longest)
}
