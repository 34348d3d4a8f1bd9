package native

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/drill/report"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
)

// deafLoss has the replicas fall behind without a word, and then takes the primary
// away for good: PostgreSQL and Patroni are killed and do not come back until the
// end. What the primary alone has written by then is on no disk that is left.
type deafLoss struct {
	*cluster
	behind time.Duration
}

func (deafLoss) Plan() schedule.Fault {
	return schedule.Fault{Name: "deaf-loss", Targets: []schedule.Target{schedule.Primary}, Shortest: 40 * time.Second, Longest: 40 * time.Second}
}

func (f deafLoss) Inject(ctx context.Context, nodes []string, _ uint64) error {
	gone := nodes[0]
	var deaf []int
	for _, name := range f.databases() {
		if name != gone {
			deaf = append(deaf, f.processes(name, "walreceiver")...)
		}
	}
	if len(deaf) != len(f.databases())-1 {
		return fmt.Errorf("%d replicas receive, not %d", len(deaf), len(f.databases())-1)
	}
	for _, pid := range deaf {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return err
		}
		// It ends as soon as it runs on, before it reads what has piled up at its socket.
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			return err
		}
	}
	select { // clients write meanwhile
	case <-time.After(f.behind):
	case <-ctx.Done():
	}
	for _, pid := range f.processes(gone, "patroni") {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	f.nodes[gone].StopUnit(database.Unit) // its systemd would start it anew
	// Whoever was a child of the first process killed is one of the test afterwards.
	f.killAll(gone, "postgres")
	for _, pid := range deaf {
		syscall.Kill(pid, syscall.SIGCONT)
	}
	return ctx.Err()
}

func (f deafLoss) Heal(_ context.Context, nodes []string) error {
	f.nodes[nodes[0]].StartUnit(database.Unit)
	return nil
}

// stopping is a fault with which somebody loses patience when it is over.
type stopping struct {
	drill.Fault
	last func() bool
	stop chan<- struct{}
}

func (f stopping) Heal(ctx context.Context, nodes []string) error {
	if f.last() {
		close(f.stop)
	}
	return f.Fault.Heal(ctx, nodes)
}

func rounds(t *testing.T, c *cluster, count int, faults ...drill.Fault) drill.Config {
	t.Helper()
	var plans []schedule.Fault
	for _, f := range faults {
		plans = append(plans, f.Plan())
	}
	all, err := schedule.New(c.plan, plans, count, 7)
	if err != nil {
		t.Fatal(err)
	}
	return drill.Config{Seed: 7, Schedule: all, Faults: faults}
}

func TestAClusterAsSlipwayBuildsItLosesNothing(t *testing.T) {
	c := form(t)
	stop := make(chan struct{})
	healed := atomic.Int32{}
	until := func(f drill.Fault) drill.Fault { return stopping{f, func() bool { return healed.Add(1) == 4 }, stop} }
	cfg := rounds(t, c, 3, until(c.fault("kill-postgres", schedule.Primary)), until(deafLoss{c, 4 * time.Second}))
	cfg.Stop = stop
	r := c.drill(cfg)
	t.Log("\n" + report.Text(r))
	if !r.Held() || len(r.Rounds) != 4 || r.Skipped != 2 {
		t.Errorf("held %t, %d rounds, %d skipped, %s", r.Held(), len(r.Rounds), r.Skipped, r.Problem)
	}
	for _, round := range r.Rounds {
		if round.Served == 0 || round.Gap.Open || round.Gap.Length() <= 0 {
			t.Errorf("round %d: %+v", round.Number, round)
		}
	}
	if r.Verdict.Counts.Unknown == 0 {
		t.Error("no operation of unknown outcome: the fault did not hit clients")
	}
	if len(r.Picture.Writers) < 2 {
		t.Errorf("who wrote: %+v", r.Picture.Writers)
	}
	if !slices.ContainsFunc(r.Picture.Holders, func(s drill.Stretch) bool { return s.Node == "a-lb1" }) {
		t.Errorf("nobody was seen to have the virtual address: %+v", r.Picture.Holders)
	}
}

// Without synchronous replication, and without a failsafe, acknowledged writes are
// where the primary is, and go with it. A checker that does not see this sees nothing.
func TestABrokenClusterIsSeenToLose(t *testing.T) {
	c := form(t)
	c.set("--set", "synchronous_mode=off", "--set", "failsafe_mode=false")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		out, err := c.nodes["a-db1"].On("runuser", "-u", "postgres", "--", "/usr/lib/postgresql/17/bin/psql", "-XAtc", "show synchronous_standby_names")
		if err == nil && strings.TrimSpace(out) == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("replication is still synchronous: %q, %v", out, err)
		}
	}
	r := c.drill(rounds(t, c, 1, deafLoss{c, 4 * time.Second}))
	t.Log("\n" + report.Text(r))
	if lost := r.Verdict.Claim("nothing-lost"); lost.Held || r.Verdict.Counts.Lost < 5 || r.Held() {
		t.Errorf("a cluster that loses was not seen to: %+v", lost)
	}
	if !strings.Contains(strings.Join(r.Verdict.Claim("nothing-lost").Evidence, "\n"), "by a-db1 on timeline 1") {
		t.Error("the evidence does not say who had acknowledged what is lost")
	}
	// All else went well: the loss is silent, which is what makes it bad.
	if len(r.Rounds) != 1 || r.Rounds[0].Problem != "" || r.Problem != "" {
		t.Errorf("%+v, %s", r.Rounds, r.Problem)
	}
}
