package operations

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// world is a cluster as its nodes tell it: two sites, the second one follows; at the
// first, a-db1 leads and a-lb1 has the address.
type world struct {
	plan  *plan.Plan
	nodes map[string]*status.Report
}

func build() *world {
	w := &world{&plan.Plan{
		Cluster: "shop",
		Sites: []plan.Site{
			{Name: "a", Consensus: []string{"a-db1", "a-db2", "a-db3"}, Patroni: plan.Patroni{MaximumLag: 1 << 20}},
			{Name: "b", Consensus: []string{"b-db1"}, StandbyOf: "a", Patroni: plan.Patroni{MaximumLag: 1 << 20}},
		},
		VIPs: []plan.VIP{{Name: "db", Site: "a", On: plan.OnBalancers}},
	}, map[string]*status.Report{}}
	for i, name := range []string{"a-db1", "a-db2", "a-db3", "a-lb1", "a-lb2", "b-db1"} {
		role := "db-replica"
		if strings.Contains(name, "lb") {
			role = "balancer"
		}
		w.plan.Nodes = append(w.plan.Nodes, plan.Node{Name: name, Role: role, Site: name[:1], Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})})
		w.nodes[name] = &status.Report{State: status.Ready, Cluster: &status.Cluster{Node: name}}
	}
	for _, name := range []string{"a-db1", "a-db2", "a-db3"} {
		w.nodes[name].Cluster.Consensus = &status.Consensus{Quorum: true, Members: []status.ConsensusMember{
			{Node: "a-db1", Healthy: true}, {Node: "a-db2", Healthy: true}, {Node: "a-db3", Healthy: true}}}
	}
	w.nodes["b-db1"].Cluster.Consensus = &status.Consensus{Quorum: true, Members: []status.ConsensusMember{{Node: "b-db1", Healthy: true}}}
	w.leads("a-db1")
	w.nodes["b-db1"].Cluster.Database = &status.Database{Standby: true, Members: []status.DatabaseMember{{Node: "b-db1", Role: "standby_leader", State: "running"}}}
	w.holds("a-lb1")
	return w
}

// leads has a node lead, and everybody know.
func (w *world) leads(leader string) {
	for _, n := range w.plan.DatabaseNodes("a") {
		d := &status.Database{}
		for i, m := range w.plan.DatabaseNodes("a") {
			lag := int64(100 * i)
			v := status.DatabaseMember{Node: m.Name, Role: "quorum_standby", State: "streaming", Lag: &lag}
			if m.Name == leader {
				v = status.DatabaseMember{Node: m.Name, Role: "leader", State: "running"}
			}
			d.Members = append(d.Members, v)
		}
		w.nodes[n.Name].Cluster.Database = d
	}
	for _, b := range w.plan.Balancers("a") {
		var backends []status.Backend
		for _, n := range w.plan.DatabaseNodes("a") {
			backends = append(backends, status.Backend{Name: "read-write", Server: n.Name, Up: n.Name == leader},
				status.Backend{Name: "read-only", Server: n.Name, Up: n.Name != leader})
		}
		w.nodes[b.Name].Cluster.Backends = backends
	}
}

func (w *world) holds(holder string) {
	for _, b := range w.plan.Balancers("a") {
		w.nodes[b.Name].Cluster.VIPs = []status.VIP{{Name: "db", Held: b.Name == holder}}
	}
}

// every changes what everybody at site a says of a member.
func (w *world) every(member string, change func(*status.DatabaseMember)) {
	for _, n := range w.plan.DatabaseNodes("a") {
		for i := range w.nodes[n.Name].Cluster.Database.Members {
			if m := &w.nodes[n.Name].Cluster.Database.Members[i]; m.Node == member {
				change(m)
			}
		}
	}
}

// maintain puts a node into maintenance, as it would do itself.
func (w *world) maintain(name string) {
	w.nodes[name].Maintenance, w.nodes[name].State = &node.Maintenance{Since: time.Now()}, status.Maintenance
	w.every(name, func(m *status.DatabaseMember) { m.Role, m.NoFailover = "replica", true })
	for _, b := range w.plan.Balancers("a") {
		for i := range w.nodes[b.Name].Cluster.Backends {
			if s := &w.nodes[b.Name].Cluster.Backends[i]; s.Server == name && s.Name == "read-only" {
				s.Up = false
			}
		}
	}
}

func (w *world) off(name string) { w.nodes[name] = nil }

func (w *world) look(context.Context) (overview.Overview, error) {
	o := overview.Overview{Cluster: "shop"}
	for _, n := range w.plan.Nodes {
		one := overview.Node{Name: n.Name, Role: n.Role, Site: n.Site}
		if r := w.nodes[n.Name]; r != nil {
			copied := r.Clone()
			one.Report = &copied
		} else {
			one.Problem = "no answer"
		}
		o.Nodes = append(o.Nodes, one)
	}
	return o, nil
}

func (w *world) prepare(t *testing.T, p Prepare) (*Operation, error) {
	t.Helper()
	now, err := w.look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p(t.Context(), now)
}

func (w *world) cluster() *Cluster { return &Cluster{Plan: w.plan} }

// runner does operations without asking, and keeps what it says.
func (w *world) runner(said *[]string) *Runner {
	return &Runner{Cluster: w.cluster(), Look: w.look, Pause: time.Millisecond,
		Say:   func(line string) { *said = append(*said, line) },
		Agree: func(context.Context, string) error { return nil }}
}

// three is an operation of three steps on a number; stops is where it is cut short.
func three(number, stops *int, asked *[]int) Prepare {
	return func(context.Context, overview.Overview) (*Operation, error) {
		op := &Operation{Name: "count", Title: "count to three", Patience: time.Minute,
			Check: func(overview.Overview) (left []string) {
				for i := *number; i < 3; i++ {
					left = append(left, "a number")
				}
				return left
			}}
		for i := range 3 {
			op.Steps = append(op.Steps, Step{What: "count", Done: *number > i, Do: func(context.Context, func(string)) error {
				*asked = append(*asked, i)
				if i == *stops {
					return errors.New("the power went")
				}
				*number++
				return nil
			}})
		}
		return op, nil
	}
}

func outcomes(r *Result) (all []Outcome) {
	for _, s := range r.Steps {
		all = append(all, s.Outcome)
	}
	return all
}

func TestAnOperationGoesOnAfterAnInterruptionAndThenHasNothingToDo(t *testing.T) {
	w, said := build(), []string{}
	number, stops, asked := 0, 1, []int{}
	r := w.runner(&said)
	result, err := r.Run(t.Context(), three(&number, &stops, &asked))
	if err == nil || result.Verified || !slices.Equal(outcomes(result), []Outcome{Done, Failed, Left}) {
		t.Errorf("cut short: %+v, %v", result, err)
	}
	// The step that was cut short is left as well.
	if got := said[len(said)-2:]; !slices.Equal(got, []string{"Left: count", "Left: count"}) {
		t.Errorf("said %q", said)
	}
	stops = -1
	result, err = r.Run(t.Context(), three(&number, &stops, &asked))
	if err != nil || !result.Verified || !slices.Equal(outcomes(result), []Outcome{Already, Done, Done}) {
		t.Errorf("again: %+v, %v", result, err)
	}
	if !slices.Equal(asked, []int{0, 1, 1, 2}) {
		t.Errorf("did %v", asked)
	}
	r.Agree = func(context.Context, string) error { return errors.New("it asks, with nothing to do") }
	if result, err = r.Run(t.Context(), three(&number, &stops, &asked)); err != nil || !result.Verified || len(asked) != 4 {
		t.Errorf("a third time: %+v, %v", result, err)
	}
}

func TestNothingIsDoneWithoutAgreementNorInADryRun(t *testing.T) {
	w, said := build(), []string{}
	number, stops, asked := 0, -1, []int{}
	r := w.runner(&said)
	r.Agree = func(context.Context, string) error { return fault.New(fault.Usage, "nobody agreed") }
	if result, err := r.Run(t.Context(), three(&number, &stops, &asked)); fault.Of(err) != fault.Usage || result.Verified {
		t.Errorf("%+v, %v", result, err)
	}
	r.DryRun = true
	r.Agree = func(context.Context, string) error { return errors.New("a dry run asks") }
	result, err := r.Run(t.Context(), three(&number, &stops, &asked))
	if err != nil || result.Verified || !result.DryRun || !slices.Equal(outcomes(result), []Outcome{Left, Left, Left}) || len(result.Left) != 3 {
		t.Errorf("dry run: %+v, %v", result, err)
	}
	if len(asked) > 0 || !slices.Contains(said, "  2. count") {
		t.Errorf("did %v, said %q", asked, said)
	}
}

func TestAnOperationSaysClearlyWhatIsLeft(t *testing.T) {
	w, said := build(), []string{}
	result, err := w.runner(&said).Run(t.Context(), func(context.Context, overview.Overview) (*Operation, error) {
		return &Operation{Name: "x", Title: "do it", Patience: time.Nanosecond, Again: "slipway x --again",
			Steps: []Step{{What: "do it", Do: func(context.Context, func(string)) error { return nil }}},
			Check: func(overview.Overview) []string { return []string{"a-db1 does not stream yet"} }}, nil
	})
	if fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "a-db1 does not stream yet") || result.Verified || result.Steps[0].Outcome != Done {
		t.Errorf("%+v, %v", result, err)
	}
	// All is done: the command would do it once more, or something else.
	if strings.Contains(strings.Join(said, "\n"), "To go on") || fault.Mend(err) != "see slipway status" {
		t.Errorf("said %q, and %q", said, fault.Mend(err))
	}
	for why, c := range map[string]struct {
		ctx  func() context.Context
		want string
	}{
		"failed":      {t.Context, ""},
		"interrupted": {func() context.Context { ctx, stop := context.WithCancel(t.Context()); stop(); return ctx }, "to go on: slipway x --again"},
	} {
		said = nil
		_, err = w.runner(&said).Run(c.ctx(), func(context.Context, overview.Overview) (*Operation, error) {
			return &Operation{Name: "x", Title: "do it", Again: "slipway x --again",
				Steps: []Step{{What: "do it", Do: func(context.Context, func(string)) error { return errors.New("no") }}}}, nil
		})
		if err == nil || fault.Mend(err) != c.want || slices.Contains(said, "To go on: slipway x --again") != (c.want == "") {
			t.Errorf("%s: %v, %q; said %q", why, err, fault.Mend(err), said)
		}
	}
}

func TestAnInterruptedOperationEndsBeforeItsNextStep(t *testing.T) {
	w, said := build(), []string{}
	ctx, stop := context.WithCancel(t.Context())
	did := 0
	step := Step{What: "x", Do: func(context.Context, func(string)) error {
		did++
		stop()
		return nil
	}}
	_, err := w.runner(&said).Run(ctx, func(context.Context, overview.Overview) (*Operation, error) {
		return &Operation{Name: "x", Title: "x", Steps: []Step{step, step}}, nil
	})
	if !errors.Is(err, context.Canceled) || did != 1 {
		t.Errorf("%d steps, %v", did, err)
	}
	// One that is interrupted while it looks says what it waited for.
	ctx, stop = context.WithCancel(t.Context())
	_, err = w.runner(&said).Run(ctx, func(context.Context, overview.Overview) (*Operation, error) {
		return &Operation{Name: "x", Title: "x", Steps: []Step{{What: "x", Do: func(context.Context, func(string)) error { return nil }}}, Check: func(overview.Overview) []string {
			if did++; did > 3 {
				stop()
			}
			return []string{"a-db1 does not stream yet"}
		}}, nil
	})
	if !errors.Is(err, context.Canceled) || said[len(said)-1] != "Done, and not seen to be as it should be yet: a-db1 does not stream yet" {
		t.Errorf("%v; said %q", err, said)
	}
}
