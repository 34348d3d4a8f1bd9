package operations

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Runner does operations.
type Runner struct {
	Cluster *Cluster
	// Look asks the cluster how it is; nil is Cluster.Look.
	Look func(ctx context.Context) (overview.Overview, error)
	// Say takes lines for whoever watches.
	Say func(line string)
	// Agree asks whether to go on. word has to be typed, unless it is "".
	Agree func(ctx context.Context, word string) error
	// DryRun ends after the steps were shown.
	DryRun bool
	// Pause is the time between two looks; 0 is two seconds.
	Pause time.Duration
}

const (
	defaultPause = 2 * time.Second
)

// Run works an operation out, shows it, asks, does it and verifies it. The result
// is nil where the operation was refused. An operation that is done already changes
// nothing and asks nothing. The error is nil only if the cluster was seen to be as
// wanted, or for a dry run.
func (r *Runner) Run(ctx context.Context, prepare Prepare) (*Result, error) {
	now, err := r.look(ctx)
	if err != nil {
		return nil, err
	}
	op, err := prepare(ctx, now)
	if err != nil {
		return nil, err
	}
	result := &Result{Operation: op.Name, Cluster: r.Cluster.Plan.Cluster, Title: op.Title, DryRun: r.DryRun, Left: []string{}, Steps: []StepResult{}}
	toDo := 0
	for _, s := range op.Steps {
		outcome := Left
		if s.Done {
			outcome = Already
		} else {
			toDo++
		}
		result.Steps = append(result.Steps, StepResult{What: s.What, Outcome: outcome})
	}
	result.Left = op.check(now)
	if toDo == 0 && len(result.Left) == 0 {
		result.Verified = true
		r.Say(fmt.Sprintf("Nothing to do, done already: %s.", op.Title))
		return result, nil
	}
	r.show(op)
	if r.DryRun {
		return result, nil
	}
	if toDo > 0 {
		if err := r.Agree(ctx, op.Word); err != nil {
			return result, err
		}
	}
	begun := time.Now()
	err = r.do(ctx, op, result)
	if err == nil {
		err = r.verify(ctx, op, result)
	}
	result.Seconds = time.Since(begun).Seconds()
	return result, r.last(ctx, op, result, err)
}

func (r *Runner) look(ctx context.Context) (overview.Overview, error) {
	if r.Look != nil {
		return r.Look(ctx)
	}
	return r.Cluster.Look(ctx)
}

func (o *Operation) check(now overview.Overview) []string {
	if o.Check == nil {
		return []string{}
	}
	return append([]string{}, o.Check(now)...)
}

// show tells what is going to be done.
func (r *Runner) show(op *Operation) {
	r.Say(fmt.Sprintf("Cluster %s: %s.", r.Cluster.Plan.Cluster, op.Title))
	for i, s := range op.Steps {
		mark := ""
		if s.Done {
			mark = " (done already)"
		}
		r.Say(fmt.Sprintf("  %d. %s%s", i+1, s.What, mark))
	}
	for _, w := range op.Warnings {
		r.Say("  ! " + w)
	}
}

// do does the steps that are to be done.
func (r *Runner) do(ctx context.Context, op *Operation, result *Result) error {
	for i, s := range op.Steps {
		if s.Done {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		r.Say(fmt.Sprintf("%d/%d %s", i+1, len(op.Steps), s.What))
		err := s.Do(ctx, func(line string) { r.Say("    " + line) })
		if err != nil {
			result.Steps[i].Outcome, result.Steps[i].Error = Failed, err.Error()
			return fmt.Errorf("%s: %w", s.What, err)
		}
		result.Steps[i].Outcome = Done
	}
	return nil
}

// verify looks until the cluster is as wanted.
func (r *Runner) verify(ctx context.Context, op *Operation, result *Result) error {
	patience, pause := op.Patience, r.Pause
	if patience == 0 {
		patience = roundLimit
	}
	if pause == 0 {
		pause = defaultPause
	}
	until := time.Now().Add(patience)
	for {
		now, err := r.look(ctx)
		if err != nil {
			return err
		}
		before := result.Left
		if result.Left = op.check(now); len(result.Left) == 0 {
			result.Verified = true
			return nil
		}
		if !slices.Equal(before, result.Left) {
			r.Say("    waiting: " + strings.Join(result.Left, "; "))
		}
		if op.Lost != nil {
			if err := op.Lost(now); err != nil {
				return err
			}
		}
		if time.Now().After(until) {
			// Nothing is left to be done: the same command might do it all once more.
			return fault.New(fault.Failed, "not all is as it should be after %s: %s", patience, strings.Join(result.Left, "; ")).
				WithMend("see slipway status")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// last says how it ended.
func (r *Runner) last(ctx context.Context, op *Operation, result *Result, err error) error {
	if err == nil {
		r.Say(fmt.Sprintf("Done and verified in %.1f s: %s.", result.Seconds, op.Title))
		return nil
	}
	did := true
	for _, s := range result.Steps {
		if s.Outcome == Left || s.Outcome == Failed {
			did = false
			r.Say("Left: " + s.What)
		}
	}
	stopped := errors.Is(ctx.Err(), context.Canceled)
	switch {
	case did && stopped:
		r.Say("Done, and not seen to be as it should be yet: " + strings.Join(result.Left, "; "))
		return fault.New(fault.Failed, "%w", ctx.Err()).WithMend("see slipway status")
	case did || op.Again == "":
		return err
	case stopped:
		return fault.New(fault.Failed, "%w", ctx.Err()).WithMend("to go on: %s", op.Again)
	}
	r.Say("To go on: " + op.Again)
	return err
}
