// Package faults is what a drill does to the machines of a lab: each fault with
// its name, whom it may hit, what makes it and what undoes it.
//
// In go a lab's cluster and the nodes that are hit, out comes harm; what an
// administrator does on purpose is rehearsed with it. The mechanics
// are those of package lab (its faults.go, faults_disk.go, faults_network.go); here
// stands which of them make a fault that happens in the world, and how strong.
package faults

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
)

// Fault is a kind of harm.
type Fault struct {
	schedule.Fault
	About string // one line for people

	inject func(ctx context.Context, s strike) error
	heal   func(ctx context.Context, s strike) error // nil: nothing is to be undone
}

// strike is a fault that hits some nodes.
type strike struct {
	cluster *lab.Cluster
	nodes   []string
	random  *rand.Rand
	admin   *operations.Cluster // nil without an administrator's certificate
}

// others are the nodes that are not hit.
func (s strike) others() (names []string) {
	for _, n := range s.cluster.Nodes() {
		if !slices.Contains(s.nodes, n.Name) {
			names = append(names, n.Name)
		}
	}
	return names
}

// each does something to all nodes that are hit, at the same time.
func (s strike) each(do func(m *lab.Machine) error) error {
	errs := make([]error, len(s.nodes))
	var group sync.WaitGroup
	for i, name := range s.nodes {
		group.Go(func() {
			m, err := s.cluster.Node(name)
			if err == nil {
				err = do(m)
			}
			errs[i] = err
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// each is a fault of single machines.
func each(do func(m *lab.Machine, ctx context.Context) error) func(context.Context, strike) error {
	return func(ctx context.Context, s strike) error {
		return s.each(func(m *lab.Machine) error { return do(m, ctx) })
	}
}

// Named are the faults with these names, in the order of All; all without any.
func Named(names []string) ([]Fault, error) {
	if len(names) == 0 {
		return All(), nil
	}
	var known []string
	var chosen []Fault
	for _, f := range All() {
		known = append(known, f.Name)
		if slices.Contains(names, f.Name) {
			chosen = append(chosen, f)
		}
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fault.New(fault.Usage, "there is no fault %q", name).WithMend("the faults are %s", strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

// At are those of the faults that may hit the target, and hit nothing else.
func At(target schedule.Target, all []Fault) (aimed []Fault, err error) {
	if !slices.Contains(schedule.Targets, target) {
		return nil, fault.New(fault.Usage, "there is no target %q", target).WithMend("the targets are %v", schedule.Targets)
	}
	for _, f := range all {
		if slices.Contains(f.Targets, target) {
			f.Targets = []schedule.Target{target}
			aimed = append(aimed, f)
		}
	}
	if len(aimed) == 0 {
		return nil, fault.New(fault.Usage, "none of these faults hits the target %q", target).WithMend("slipway drill --list tells which fault has which targets")
	}
	return aimed, nil
}

// Schedule is what the schedule knows of faults.
func Schedule(all []Fault) (out []schedule.Fault) {
	for _, f := range all {
		out = append(out, f.Fault)
	}
	return out
}

const (
	// limit bounds what is asked of a guest; a guest that is emulated is slow.
	limit = 3 * time.Minute
	// operationLimit bounds what is asked of the whole cluster: an operation checks for
	// up to ten minutes whether all is as it should be.
	operationLimit = 12 * time.Minute
)

// within bounds how long making the fault may take.
func (f Fault) within() time.Duration {
	if f.Name == switchoverName {
		return operationLimit
	}
	return limit
}

// Inject makes the fault on nodes of a cluster, without an administrator's
// certificate. What chance it needs comes from the seed.
func (f Fault) Inject(ctx context.Context, cluster *lab.Cluster, nodes []string, seed uint64) error {
	return f.hit(ctx, strike{cluster: cluster, nodes: nodes}, seed)
}

func (f Fault) hit(ctx context.Context, s strike, seed uint64) error {
	s.random = rand.New(rand.NewPCG(seed, 0))
	bounded, cancel := context.WithTimeout(ctx, f.within())
	defer cancel()
	return f.inject(bounded, s)
}

// Lasts reports whether there is something to heal afterwards.
func (f Fault) Lasts() bool { return f.heal != nil }

// Heal undoes what Inject has done with the same nodes; a Fault keeps nothing itself.
func (f Fault) Heal(ctx context.Context, cluster *lab.Cluster, nodes []string) error {
	if f.heal == nil {
		return nil
	}
	// Not bounded: a machine that is given power has it for as long as this context lives.
	return f.heal(ctx, strike{cluster: cluster, nodes: nodes})
}

// On has faults hit the machines of a cluster.
func On(l *drill.Lab, all []Fault) (out []drill.Fault) {
	for _, f := range all {
		out = append(out, bound{f, l})
	}
	return out
}

// bound is a fault and its cluster.
type bound struct {
	fault Fault
	lab   *drill.Lab
}

// Plan implements drill.Fault.
func (b bound) Plan() schedule.Fault { return b.fault.Fault }

// Inject implements drill.Fault.
func (b bound) Inject(ctx context.Context, nodes []string, seed uint64) error {
	return b.fault.hit(ctx, strike{cluster: b.lab.Cluster, nodes: nodes, admin: b.lab.Operations()}, seed)
}

// Heal implements drill.Fault.
func (b bound) Heal(ctx context.Context, nodes []string) error {
	return b.fault.Heal(ctx, b.lab.Cluster, nodes)
}
