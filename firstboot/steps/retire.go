package steps

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/role/mirror"
	"github.com/slipwayhq/slipway/internal/fault"
)

// RetireAction is the name of the action that Leave makes.
const RetireAction = "retire"

// RetireArgs say how far a node is to retire.
type RetireArgs struct {
	// Votes leaves etcd running: others have to take its vote over first.
	Votes bool `json:"votes,omitempty"`
	// Leads has it retire although its database leads: there is no other one.
	Leads bool `json:"leads,omitempty"`
}

// retiring are the units of a member in the order in which they stop: first what
// clients are led here by, then what they are led to.
var retiring = []string{"keepalived.service", "haproxy.service", database.Unit, "pgbackrest.service", mirror.Unit, consensus.Unit}

// stopLimit is how long a service may take to stop: PostgreSQL writes a checkpoint.
const stopLimit = 3 * time.Minute

// Leave has a node stop all that it does for its cluster, for good: it stays so when
// it starts again.
func Leave(m *Membership) actions.Action {
	return actions.Action{Name: RetireAction, Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
		var a RetireArgs
		if err := actions.Decode(args, &a); err != nil {
			return nil, err
		}
		self := e.Node.Member
		if leads, err := database.Leads(ctx, self); err == nil && leads && !a.Leads {
			return nil, fault.New(fault.Failed, "the database of %s leads", self.Self.Name).WithMend("have another one lead first: slipway switchover")
		}
		record := member.Retirement{Cluster: self.Plan.ID, Node: self.Self.Name, Generation: max(self.Plan.Generation, self.Removed), Votes: a.Votes}
		if err := m.Store.SaveRetirement(record); err != nil {
			return nil, err
		}
		retired := *self
		retired.Retired, retired.KeepsVote = member.TakenOut, a.Votes
		if err := leave(ctx, e.Node, &retired, true); err != nil {
			return nil, err
		}
		e.Again(member.TakenOut)
		return struct{}{}, nil
	}}
}

// Retire stops and holds the services of a node that does nothing for its cluster
// any more.
type Retire struct{}

// Name implements Step.
func (Retire) Name() string { return "retire" }

// Apply implements Step.
func (Retire) Apply(ctx context.Context, n *node.Node) error {
	if n.Member == nil || n.Member.Retired == "" {
		return nil
	}
	return leave(ctx, n, n.Member, false)
}

// leave holds and stops units; wait has it wait until they have stopped.
func leave(ctx context.Context, n *node.Node, m *member.Member, wait bool) error {
	for _, unit := range retiring {
		if unit == consensus.Unit && m.KeepsVote || !slices.Contains(held, unit) {
			continue
		}
		if err := n.Hold(unit); err != nil {
			return err
		}
		if !n.UnitActive(ctx, unit) {
			continue
		}
		argv := []string{"systemctl", "stop", unit}
		if !wait {
			argv = []string{"systemctl", "stop", "--no-block", unit}
		}
		if _, err := n.Execute(ctx, node.Command{Argv: argv, Timeout: stopLimit}); err != nil {
			return err
		}
		n.Changed("stopped %s", unit)
	}
	return nil
}

// Serving are the tasks that are left to a node: one that has retired still tells
// how it is, and nothing else.
func Serving(m *member.Member, tasks []Task) []Task {
	if m == nil || m.Retired == "" {
		return tasks
	}
	return slices.DeleteFunc(slices.Clone(tasks), func(t Task) bool {
		return !slices.Contains([]string{"time", "addresses", "peers"}, t.Name())
	})
}
