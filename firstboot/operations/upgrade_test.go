package operations

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/export"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/versions"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestARollingUpgradeGoesOneAtATimeAndThePrimaryLast(t *testing.T) {
	w := newFleet(t)
	result, said, err := w.do(t, Upgrade(w.cluster(t), w.releases(t, "v2", ""), nil, 0))
	if err != nil || !result.Verified {
		t.Fatalf("%v\n%s", err, said)
	}
	want := []string{
		"a-lb1 starts v2", // the only balancer has nobody to stand in for it
		"a-db2 maintenance true", "a-db2 starts v2", "a-db2 maintenance false",
		"a-db3 maintenance true", "a-db3 starts v2", "a-db3 maintenance false",
		"a-db2 leads", "a-db1 maintenance true", "a-db1 starts v2", "a-db1 maintenance false",
	}
	if got := w.told(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	// A connection is lost in the middle; base and kernel are sent to nobody, and nothing twice.
	if w.cuts != 0 || !strings.Contains(said, "trying again") || w.taken > 4*301_000 {
		t.Errorf("%d cuts left, %d bytes taken\n%s", w.cuts, w.taken, said)
	}
	result, said, err = w.do(t, Upgrade(w.cluster(t), w.releases(t, "v2", ""), nil, 0))
	if err != nil || !result.Verified || !strings.Contains(said, "Nothing to do") || len(w.told()) != len(want) {
		t.Errorf("once more: %v, %q\n%s", err, w.told(), said)
	}
}

func TestAnUpgradeEndsAtTheFirstNodeThatGoesBackAndGoesOnLater(t *testing.T) {
	w := newFleet(t)
	w.broken = map[string]bool{"a-db2": true}
	result, said, err := w.do(t, Upgrade(w.cluster(t), w.releases(t, "v2", ""), nil, 0))
	if fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "version v2 did not come up on a-db2, which has gone back to v1 by itself: it did not get as far as its agent") {
		t.Fatalf("%v\n%s", err, said)
	}
	if last := result.Steps[len(result.Steps)-1]; last.Outcome != Left || !strings.Contains(said, "Left: "+last.What) || !strings.Contains(last.What, "hand over from a-db1") {
		t.Errorf("%+v\n%s", result.Steps, said)
	}
	if got := w.told(); slices.Contains(got, "a-db1 starts v2") {
		t.Errorf("it went on: %q", got)
	}
	if got := w.told(); !slices.Contains(got, "a-db2 maintenance false") {
		t.Errorf("it does not take part again: %q", got)
	}
	w.broken = nil
	if result, said, err := w.do(t, Upgrade(w.cluster(t), w.releases(t, "v2", ""), nil, 0)); err != nil || result.Steps[4].Outcome != Already {
		t.Errorf("run again: %v\n%s", err, said)
	}
}

func TestAVersionThatIsNeverReadyIsAbandoned(t *testing.T) {
	w := newFleet(t)
	w.stuck = map[string]bool{"a-lb1": true}
	c := w.cluster(t)
	r := newRestarter(c)
	r.patience, r.pause = 2*time.Second, 50*time.Millisecond
	all := w.releases(t, "v2", "")
	release := all[slices.IndexFunc(all, func(r *Release) bool { return r.Role == "balancer" })]
	n, _ := c.Plan.Node("a-lb1")
	say := func(string) {}
	if err := c.install(t.Context(), n.Name, release, 0, say); err != nil {
		t.Fatal(err)
	}
	err := r.try(t.Context(), n, release, say)
	if fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "a-lb1 is converging, on trial: role: waits for ever") || !strings.Contains(fault.Mend(err), "goes back to version v1") {
		t.Fatalf("%v; %s", err, fault.Mend(err))
	}
	if err := r.arrive(t.Context(), "a-lb1", "v1", overview.Overview{}, say); err != nil {
		t.Error(err)
	}
}

func TestARollbackGoesToTheVersionBeforeAndEndsAFailedTrial(t *testing.T) {
	w := newFleet(t)
	if _, _, err := w.do(t, Rollback(w.cluster(t), "a-lb1", "")); err == nil || !strings.Contains(err.Error(), "no other version") {
		t.Errorf("nothing to go back to: %v", err)
	}
	if _, said, err := w.do(t, Upgrade(w.cluster(t), w.releases(t, "v2", "18"), []string{"a-lb1", "a-db2"}, 0)); err != nil || !strings.Contains(said, "! a-db2 has PostgreSQL 17 and the image brings 18") {
		t.Fatalf("%v\n%s", err, said)
	}
	if _, _, err := w.do(t, Rollback(w.cluster(t), "a-db2", "v0")); err == nil || !strings.Contains(err.Error(), "would go back to version v1, not to v0") {
		t.Errorf("to a version that is not there: %v", err)
	}
	if result, said, err := w.do(t, Rollback(w.cluster(t), "a-db2", "")); err != nil || !result.Verified || !strings.Contains(said, "! version v1 has PostgreSQL 17, which cannot read the data of PostgreSQL 18") {
		t.Errorf("%v\n%s", err, said)
	}
	if got := w.versions(t, "a-db2"); got != "v1: runs, good; v2: previous" {
		t.Error(got)
	}
	// Whoever was interrupted and runs the command that was shown does not take it forward again.
	if result, said, err := w.do(t, Rollback(w.cluster(t), "a-db2", "v1")); err != nil || !result.Verified || !strings.HasPrefix(said, "Nothing to do") {
		t.Errorf("a second time: %v\n%s", err, said)
	}
	if _, _, err := w.do(t, MaintenanceOn(w.cluster(t), "a-db2", true)); err != nil {
		t.Fatal(err)
	}
	if result, said, err := w.do(t, Rollback(w.cluster(t), "a-db2", "v1")); err != nil || !result.Verified || !strings.Contains(said, "have a-db2 take part again") {
		t.Errorf("interrupted in maintenance: %v\n%s", err, said)
	}
	if got := w.versions(t, "a-db2"); got != "v1: runs, good; v2: previous" {
		t.Error(got)
	}
	w.broken = map[string]bool{"a-lb1": true}
	if _, _, err := w.do(t, Upgrade(w.cluster(t), w.releases(t, "v3", ""), []string{"a-lb1"}, 0)); err == nil {
		t.Fatal("a broken version is taken")
	}
	if got := w.versions(t, "a-lb1"); !strings.Contains(got, "v2: runs, good") || !strings.Contains(got, "v3: failed") {
		t.Error(got)
	}
	if result, said, err := w.do(t, Rollback(w.cluster(t), "a-lb1", "")); err != nil || !result.Verified || !strings.Contains(said, "end the trial") {
		t.Errorf("%v\n%s", err, said)
	}
	if got := w.versions(t, "a-lb1"); strings.Contains(got, "failed") || !strings.Contains(got, "v2: runs, good") {
		t.Error(got)
	}
}

func TestAFactoryResetIsRefusedWhereTheClusterCountsOnTheData(t *testing.T) {
	w := newFleet(t)
	for name, want := range map[string]string{"a-db1": "votes in the site's etcd", "a-lb1": "votes in the site's etcd"} {
		if _, _, err := w.do(t, FactoryReset(w.cluster(t), name, true)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		// The node says so itself, whoever asks.
		err := w.cluster(t).Act(t.Context(), name, versions.ResetAction, versions.ResetArgs{Node: name, Data: true}, nil, func(string) {})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s, asked itself: %v", name, err)
		}
	}
	if result, said, err := w.do(t, FactoryReset(w.cluster(t), "a-db1", false)); err != nil || !result.Verified {
		t.Errorf("%v\n%s", err, said)
	}
	if got := w.told(); !slices.Equal(got, []string{"a-db2 leads", "a-db1 maintenance true", "a-db1 starts v1", "a-db1 maintenance false"}) {
		t.Errorf("%q", got)
	}
	w.plan.Sites[0].Consensus = []string{"a-db1", "a-db2"}
	w.plan.Generation++
	w = newFleetOf(t, w.Cluster)
	if result, said, err := w.do(t, FactoryReset(w.cluster(t), "a-lb1", true)); err != nil || !result.Verified || w.machines["a-lb1"].reset != "data" {
		t.Errorf("%v\n%s", err, said)
	}
}

func TestANodeIsResetAsOftenAsThatIsAskedFor(t *testing.T) {
	w := newFleet(t)
	w.slow = 2
	story := []string{"a-db2 maintenance true", "a-db2 starts v1", "a-db2 maintenance false"}
	for range 2 { // with no other start in between
		w.story = nil
		if result, said, err := w.do(t, FactoryReset(w.cluster(t), "a-db2", false)); err != nil || !result.Verified {
			t.Fatalf("%v\n%s", err, said)
		}
		if got := w.told(); !slices.Equal(got, story) {
			t.Errorf("%q, want %q", got, story)
		}
	}
	// Cut off after the node came back: nobody knows whether more was written since.
	for _, prepare := range []Prepare{MaintenanceOn(w.cluster(t), "a-db2", false), func(context.Context, overview.Overview) (*Operation, error) {
		return &Operation{Name: "x", Title: "x", Steps: []Step{{What: "x", Do: func(ctx context.Context, say func(string)) error {
			return w.cluster(t).Act(ctx, "a-db2", versions.ResetAction, versions.ResetArgs{Node: "a-db2"}, nil, say)
		}}}, Check: func(now overview.Overview) []string { return wasReset(now, "a-db2", "system", "a-db2-2") }}, nil
	}} {
		if _, said, err := w.do(t, prepare); err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
	}
	w.story = nil
	result, said, err := w.do(t, FactoryReset(w.cluster(t), "a-db2", false))
	if err != nil || !result.Verified || !slices.Equal(outcomes(result), []Outcome{Already, Done}) || !slices.Equal(w.told(), story[2:]) {
		t.Errorf("gone on: %+v, %v, %q\n%s", result, err, w.told(), said)
	}
}

func TestAnImageThatDoesNotFitIsRefused(t *testing.T) {
	w := newFleet(t)
	for why, c := range map[string]struct {
		names []string
		roles []string
		want  string
	}{
		"another role": {[]string{"a-db1"}, []string{"balancer"}, "a-db1 is a db-master, and the image is for balancer"},
		"no such node": {[]string{"nobody"}, []string{"balancer"}, `no node "nobody"`},
	} {
		var some []*Release
		for _, r := range w.releases(t, "v2", "") {
			if slices.Contains(c.roles, r.Role) {
				some = append(some, r)
			}
		}
		if _, _, err := w.do(t, Upgrade(w.cluster(t), some, c.names, 0)); fault.Of(err) != fault.Usage || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", why, err)
		}
	}
	file := filepath.Join(t.TempDir(), "x.raw")
	im := w.disk(t, "balancer", "v2", "17", func(name string, b []byte) []byte {
		if strings.HasPrefix(name, "layers/") {
			b = slices.Clone(b)
			b[len(b)/2] ^= 1
		}
		return b
	})
	f, err := os.Create(file)
	if err == nil {
		err = errors.Join(export.Raw(t.Context(), f, im), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReleases(t.Context(), file); fault.Of(err) != fault.Integrity {
		t.Errorf("a damaged image: %v", err)
	}
	if _, err := OpenReleases(t.Context(), t.TempDir()); fault.Of(err) != fault.Usage {
		t.Errorf("an empty directory: %v", err)
	}
}

// do runs an operation, fast, and says yes.
func (w *fleet) do(t *testing.T, prepare Prepare) (*Result, string, error) {
	t.Helper()
	var lines []string
	runner := &Runner{
		Cluster: w.cluster(t), Say: func(line string) { lines = append(lines, line) },
		Agree: func(context.Context, string) error { return nil }, Pause: 50 * time.Millisecond,
	}
	result, err := runner.Run(t.Context(), prepare)
	return result, strings.Join(lines, "\n"), err
}

func (w *fleet) versions(t *testing.T, node string) string {
	t.Helper()
	now, err := w.cluster(t).Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n, _ := now.Node(node)
	if n.Report == nil {
		t.Fatalf("%s: %s", node, n.Problem)
	}
	var words []string
	for _, v := range n.Report.Versions {
		words = append(words, fmt.Sprintf("%s: %s", v.Version, v.What()))
	}
	return strings.Join(words, "; ")
}

var _ status.Watcher = (*versions.Recorder)(nil)
