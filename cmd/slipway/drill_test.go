package main

import (
	"context"
	"encoding/json"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/drill/checker"
	"github.com/slipwayhq/slipway/qemu-tests/drill/rehearsal"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
)

func TestADrillIsListedAndPlannedWithoutAMachine(t *testing.T) {
	pair := filepath.Join("..", "..", "examples", "postgres-pair", "cluster.yaml")
	code, out, _ := call(t, "drill", "--list")
	if code != 0 || !strings.Contains(out, "power-cut") || !strings.Contains(out, "what was not flushed") {
		t.Errorf("%d: %s", code, out)
	}
	code, out, _ = call(t, "drill", pair, "--dry-run", "--seed", "42", "--rounds", "3", "--fault", "pause")
	if code != 0 || !strings.HasPrefix(out, "seed 42\n") || strings.Count(out, " pause ") != 3 {
		t.Errorf("%d: %s", code, out)
	}
	var planned struct {
		Seed   uint64           `json:"seed"`
		Rounds []schedule.Round `json:"rounds"`
	}
	code, out, _ = call(t, "drill", pair, "--dry-run", "--json")
	if err := json.Unmarshal([]byte(out), &planned); code != 0 || err != nil || len(planned.Rounds) < 15 {
		t.Errorf("%d: %v: %s", code, err, out)
	}
	code, out, _ = call(t, "drill", pair, "--dry-run", "--rounds", "4", "--fault", "power-cut", "--target", "primary")
	if code != 0 || strings.Count(out, "power-cut  primary") != 4 || strings.Count(out, "power-cut") != 4 {
		t.Errorf("%d: %s", code, out)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{pair, "--fault", "flood"}, 2, "power-cut"},
		{[]string{pair, "--target", "everything"}, 2, "one primary holder"},
		{[]string{pair, "--target", "all", "--fault", "power-cut"}, 2, "--list"},
		{[]string{pair, "--target", "all", "--fault", "power-cut", "--fault", "latency"}, 2, "not every fault"},
		{[]string{pair, "--restore", "--target", "one"}, 2, "takes no --target"},
		{[]string{pair, "db1"}, 2, "the whole cluster"},
		{[]string{pair, "--rounds", "0"}, 2, "rounds"},
		{[]string{pair, "--restore"}, 2, "there is nothing to restore"},
		{[]string{pair, "--restore", "--fault", "pause"}, 2, "takes no --fault"},
		{[]string{filepath.Join(t.TempDir(), "none.yaml")}, 3, "none.yaml"},
	} {
		if code, _, said := call(t, append([]string{"drill"}, c.args...)...); code != c.code || !strings.Contains(said, c.says) {
			t.Errorf("%q: %d: %s", c.args, code, said)
		}
	}
}

// What the documentation adds to an example makes a cluster that can be restored.
func TestTheDocumentedExampleCanBeRestored(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "drill.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, lines, _ := strings.Cut(string(page), "```yaml\n")
	lines, _, _ = strings.Cut(lines, "```")
	pair, err := os.ReadFile(filepath.Join("..", "..", "examples", "postgres-pair", "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	top, mistakes := topology.Parse("cluster.yaml", append(pair, lines...))
	if err := mistakes.Err(); err != nil {
		t.Fatal(err)
	}
	if err := rehearsal.Check(top.Plan()); err != nil {
		t.Error(err)
	}
}

func TestWhatDidNotHoldInADrillIsAnError(t *testing.T) {
	good := &drill.Result{Cluster: "shop"}
	bad := &drill.Result{Cluster: "shop", Seed: 42, Verdict: checker.Verdict{Claims: []checker.Claim{{Name: "nothing-lost"}}}}
	if err := drilled(t.Context(), good); err != nil {
		t.Error(err)
	}
	if err := drilled(t.Context(), bad); fault.Of(err) != fault.Failed || !strings.Contains(fault.Mend(err), "--seed 42") {
		t.Errorf("%v; %s", err, fault.Mend(err))
	}
}

func TestAnInterruptedDrillTellsWhatItHasSeen(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for want, verdict := range map[string]checker.Verdict{
		"rounds made: 1, and all held; not begun: 3":               {},
		"rounds made: 1, and something did not hold; not begun: 3": {Claims: []checker.Claim{{Name: "nothing-lost"}}},
	} {
		err := drilled(ctx, &drill.Result{Rounds: make([]drill.Round, 1), Skipped: 3, Verdict: verdict})
		if fault.ExitCode(err) != 130 || fault.Mend(err) != want {
			t.Errorf("%d, %q, want %q", fault.ExitCode(err), fault.Mend(err), want)
		}
	}
}

func TestOneInterruptLetsADrillEndAndTwoEndIt(t *testing.T) {
	for name, signals := range map[string][]syscall.Signal{
		"Ctrl-C twice": {syscall.SIGINT, syscall.SIGINT},
		"SIGTERM":      {syscall.SIGTERM},
	} {
		outer, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
		told := make(chan bool, 2)
		lasting, end := untilSecondInterrupt(outer, func() { told <- true })
		for i, s := range signals {
			if lasting.Err() != nil {
				t.Errorf("%s: it ended before signal %d", name, i+1)
			}
			if err := syscall.Kill(os.Getpid(), s); err != nil {
				t.Fatal(err)
			}
			if i < len(signals)-1 {
				<-told
				<-outer.Done()
			}
		}
		<-lasting.Done()
		if len(told) > 0 {
			t.Errorf("%s: whoever cannot wait any more is told to", name)
		}
		end()
		stop()
	}
}
