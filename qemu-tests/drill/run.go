package drill

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/drill/checker"
	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
	"github.com/slipwayhq/slipway/qemu-tests/drill/load"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
)

// Ground is a cluster that is drilled.
type Ground interface {
	// Nodes and VIPs are the names of all there are.
	Nodes() []string
	VIPs() []string
	// Look is what the nodes say now; the time of it is the drill's to fill in.
	Look(ctx context.Context) checker.Sample
	// Watch tells of each frame that a node sends from a virtual address, until stop.
	Watch(seen func(vip, node string)) (stop func())
}

// Fault is something that is done to nodes, and undone.
type Fault interface {
	// Plan is what the schedule is worked out from.
	Plan() schedule.Fault
	// Inject begins it. It returns when the fault is in effect.
	Inject(ctx context.Context, nodes []string, seed uint64) error
	// Heal ends it: no more than what the fault has taken away is given back.
	Heal(ctx context.Context, nodes []string) error
}

// Config is a drill. What has no default must be there.
type Config struct {
	Cluster  string
	Version  string
	Seed     uint64
	Schedule []schedule.Round
	Faults   []Fault
	Ground   Ground
	Load     load.Config // without its history
	History  io.Writer
	// Minimum is how many acknowledged operations there must be; default 20 for each round.
	Minimum int
	// Until bounds the drill: no round is begun later. 0: there is no bound.
	Until time.Duration
	// Stop ends the drill early when it is closed: the fault that is held is ended, no
	// other is made, and what there is is judged. Before the first fault nothing is.
	Stop <-chan struct{}
	// Recover bounds the wait for the cluster after a fault; default 20 minutes, for
	// machines that are emulated.
	Recover time.Duration
	// Settle is how long all must be well without a break; default 20 s, since what
	// agents say may be 14 s old.
	Settle time.Duration
	// Look is the pause between two looks; default 2 s.
	Look time.Duration
	Log  logrus.FieldLogger
}

// run is a drill under way.
type run struct {
	Config
	history *history.Writer

	mu      sync.Mutex
	samples []checker.Sample
	frames  map[string][]checker.Sighting
}

// Run drills a cluster that is whole. An error is one of the drill itself; what the
// cluster did wrong is in the result. When ctx ends, so does the drill, with the
// error of ctx and without a verdict.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	r := &run{Config: cfg, frames: map[string][]checker.Sighting{}}
	for d, or := range map[*time.Duration]time.Duration{&r.Recover: 20 * time.Minute, &r.Settle: 20 * time.Second, &r.Look: 2 * time.Second} {
		if *d == 0 {
			*d = or
		}
	}
	var err error
	if r.history, err = history.NewWriter(cfg.History, cfg.Cluster); err != nil {
		return nil, err
	}
	r.Load.History, r.Load.Seed = r.history, cfg.Seed
	defer r.Ground.Watch(r.sighted)()
	watching, stopWatching := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() { r.watch(watching) })
	defer watcher.Wait()
	defer stopWatching()
	if err := r.prepare(ctx); err != nil {
		if r.stopped() || ctx.Err() != nil { // which is why, whatever it says
			return nil, context.Canceled
		}
		return nil, err
	}
	clients := load.Start(ctx, r.Load)
	result, err := r.rounds(ctx)
	clients.Stop()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	r.judge(ctx, result)
	if err := r.history.Flush(); err != nil {
		return nil, fault.New(fault.Space, "the history: %w", err)
	}
	return result, ctx.Err()
}

// prepare waits until the cluster is whole and makes what the clients need.
func (r *run) prepare(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-r.Stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	if _, err := r.whole(ctx, 0); err != nil {
		return err
	}
	bounded, cancelBounded := context.WithTimeout(ctx, r.Recover)
	defer cancelBounded()
	if err := load.Prepare(bounded, r.Load); err != nil {
		return err
	}
	// What that has cost the machines is over before the clients begin.
	_, err := r.whole(ctx, r.history.Now())
	return err
}

// rounds carries out the schedule.
func (r *run) rounds(ctx context.Context) (*Result, error) {
	result := &Result{Format: Format, Cluster: r.Cluster, Version: r.Version, Began: r.history.Began().UTC(), Seed: r.Seed, ScheduleFormat: schedule.Format, Rounds: []Round{}}
	for i, s := range r.Schedule {
		if err := pause(ctx, s.Rest, r.Stop); err != nil {
			return nil, err
		}
		if r.stopped() || r.Until > 0 && r.history.Now() > r.Until {
			result.Skipped = len(r.Schedule) - i
			break
		}
		round, err := r.round(ctx, s)
		if err != nil {
			return nil, err
		}
		result.Rounds = append(result.Rounds, round)
		if round.Whole == 0 {
			result.Problem = fmt.Sprintf("after round %d the cluster did not recover", round.Number)
			result.Skipped = len(r.Schedule) - i - 1
			break
		}
	}
	if len(result.Rounds) == 0 && r.stopped() {
		return nil, context.Canceled
	}
	// The last gap ends with an answer.
	return result, pause(ctx, 2*time.Second, nil)
}

// round is one fault: inject, hold, heal, wait until all is well again.
func (r *run) round(ctx context.Context, s schedule.Round) (Round, error) {
	round := Round{Round: s, Hit: s.Nodes}
	i := slices.IndexFunc(r.Faults, func(f Fault) bool { return f.Plan().Name == s.Fault })
	if i < 0 {
		return round, fault.New(fault.Usage, "there is no fault %q", s.Fault)
	}
	f := r.Faults[i]
	before := r.last()
	round.Primary = strings.Join(before.Primaries, ", ")
	switch s.Target {
	case schedule.Primary:
		round.Hit = before.Primaries
	case schedule.Holder:
		round.Hit = before.Holders[r.Ground.VIPs()[0]]
	}
	if len(round.Hit) == 0 {
		round.Problem = "nobody was " + s.Whom()
		return round, r.recover(ctx, &round)
	}
	r.Log.Infof("round %d: %s of %s", s.Number, s.Fault, strings.Join(round.Hit, ", "))
	round.Injected = r.history.Now()
	err := f.Inject(ctx, round.Hit, s.Seed)
	if err != nil {
		round.Problem = "the fault could not be made: " + err.Error()
	} else if err := pause(ctx, s.Hold, r.Stop); err != nil {
		return round, err
	}
	// What has failed half way is healed too.
	if err := f.Heal(ctx, round.Hit); err != nil && round.Problem == "" {
		round.Problem = "the fault could not be ended: " + err.Error()
	}
	round.Healed = r.history.Now()
	return round, r.recover(ctx, &round)
}

// recover waits until the service is back, and then until the cluster is whole, with
// nobody's help.
func (r *run) recover(ctx context.Context, round *Round) error {
	whole, err := r.whole(ctx, r.history.Now())
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		round.Problem = strings.TrimPrefix(round.Problem+"; "+err.Error(), "; ")
	default:
		round.Whole = whole
	}
	ops := r.history.Ops()
	for _, o := range ops {
		if o.Wrote() && o.Direct == "" && o.Invoked >= round.Injected && (round.Served == 0 || o.Completed < round.Served) {
			round.Served = o.Completed
		}
	}
	round.Gap = checker.Longest(ops, round.Injected, r.history.Now())
	if round.Problem != "" {
		r.Log.Warnf("round %d: %s", round.Number, round.Problem)
	}
	if round.Whole > 0 {
		r.Log.Infof("round %d: writes again after %.1f s, whole %.1f s after the fault was over", round.Number, round.Gap.Length().Seconds(), (round.Whole - round.Healed).Seconds())
	}
	return nil
}

// whole waits until all has been well for some time, not before a moment, and
// says since when.
func (r *run) whole(ctx context.Context, notBefore time.Duration) (time.Duration, error) {
	deadline := r.history.Now() + r.Recover
	for {
		var since time.Duration
		found := false
		r.mu.Lock()
		for i := len(r.samples) - 1; i >= 0 && r.samples[i].Whole && r.samples[i].At >= notBefore; i-- {
			since, found = r.samples[i].At, true
		}
		r.mu.Unlock()
		now := r.history.Now()
		if found && now-since >= r.Settle && r.servedSince(max(notBefore, since)) {
			return since, nil
		}
		if now > deadline {
			return 0, fault.New(fault.Failed, "after %v the cluster is not whole: %s", r.Recover, r.last().Words())
		}
		if err := pause(ctx, r.Look/4, nil); err != nil {
			return 0, err
		}
	}
}

// servedSince says whether clients are served, once they are at work.
func (r *run) servedSince(at time.Duration) bool {
	ops := r.history.Ops()
	for i := len(ops) - 1; i >= 0 && ops[i].Completed >= at; i-- {
		if ops[i].Wrote() && ops[i].Direct == "" && ops[i].Invoked >= at {
			return true
		}
	}
	return len(ops) == 0
}

// watch looks at the cluster again and again.
func (r *run) watch(ctx context.Context) {
	for {
		at := r.history.Now()
		s := r.Ground.Look(ctx)
		if ctx.Err() != nil {
			return
		}
		s.At = at
		r.mu.Lock()
		r.samples = append(r.samples, s)
		r.mu.Unlock()
		if pause(ctx, r.Look, nil) != nil {
			return
		}
	}
}

// sightedAgain is how often a node is noted down that goes on sending.
const sightedAgain = 500 * time.Millisecond

func (r *run) sighted(vip, node string) {
	now := r.history.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.frames[vip]
	if n := len(seen); n > 0 && seen[n-1].Node == node && now-seen[n-1].At < sightedAgain {
		return
	}
	r.frames[vip] = append(seen, checker.Sighting{At: now, Node: node})
}

func (r *run) last() checker.Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.samples) == 0 {
		return checker.Sample{}
	}
	return r.samples[len(r.samples)-1]
}

// judge reads what the databases hold and has all of it checked.
func (r *run) judge(ctx context.Context, result *Result) {
	bounded, cancel := context.WithTimeout(ctx, min(r.Recover, 5*time.Minute))
	defer cancel()
	sets, primary, err := load.Final(bounded, r.Load)
	if err != nil {
		result.Problem = strings.TrimPrefix(result.Problem+"; "+err.Error(), "; ")
	}
	r.mu.Lock()
	addresses := checker.Addresses{Frames: maps.Clone(r.frames), Samples: r.samples}
	r.mu.Unlock()
	minimum := r.Minimum
	if minimum == 0 {
		minimum = 20 * len(result.Rounds)
	}
	ops := r.history.Ops()
	result.Length = r.history.Now()
	result.Verdict = checker.Check(checker.Input{Ops: ops, Final: sets, Primary: primary, Addresses: addresses, Minimum: minimum})
	if result.Outcome = "failed"; result.Held() {
		result.Outcome = "held"
	}
	result.Picture = picture(r.Ground.Nodes(), r.Ground.VIPs(), ops, addresses, result.Length)
}

func (r *run) stopped() bool {
	select {
	case <-r.Stop:
		return true
	default:
		return false
	}
}

// pause waits, but no longer than until ctx ends, which is an error, or stop is closed.
func pause(ctx context.Context, d time.Duration, stop <-chan struct{}) error {
	select {
	case <-time.After(d):
	case <-stop:
	case <-ctx.Done():
	}
	return ctx.Err()
}
