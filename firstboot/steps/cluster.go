package steps

import (
	"context"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/role/balancer"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/role/mirror"
	"github.com/slipwayhq/slipway/firstboot/role/product"
	"github.com/slipwayhq/slipway/firstboot/role/swarm"
	"github.com/slipwayhq/slipway/firstboot/role/vip"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// Observer is a step that can tell how what it brought up is doing. It is asked
// every few seconds as long as the node runs, also while the step is still being
// applied, one observer after the other and each with a deadline.
type Observer interface {
	Step
	// Observe fills in its own part of the report and returns what is wrong now,
	// in words for people, or nil. What earlier observers filled in can be read.
	Observe(ctx context.Context, n *node.Node, c *status.Cluster) error
}

// Task is a step that may wait for other machines, for as long as it takes. It
// is applied beside all other steps, begun once those that it comes After are
// done, and begun again after a pause when it fails.
type Task struct {
	Step
	After []string // names of tasks
}

// Describe begins the report on the cluster with what the member itself knows.
func Describe(m *member.Member) *status.Cluster {
	return &status.Cluster{
		Name: m.Plan.Cluster, ID: m.Plan.ID, Node: m.Self.Name, Site: m.Site.Name,
		Generation: m.Plan.Generation, Expires: m.Expires, Issue: m.Issue, Retired: m.Retired,
	}
}

// Cluster are the tasks by which a node takes its part in a cluster. On a node
// that stands alone each has nothing to do. again begins a new round.
func Cluster(m *Membership, among peers.Task, again func(why string)) []Task {
	return []Task{
		{Step: Time{m, again}},
		{Step: Addresses{again}, After: []string{"time"}},
		{Step: among, After: []string{"addresses"}},
		{Step: &consensus.Start{}, After: []string{"peers"}},
		{Step: &database.Start{Agrees: among.Service.Agrees}, After: []string{"consensus"}},
		// After the database in this list, since it reads what that has observed.
		{Step: &backup.Start{}, After: []string{"peers"}},
		{Step: balancer.Start{}, After: []string{"peers"}},
		{Step: vip.Start{}, After: []string{"peers"}},
		{Step: &product.Start{Peers: among.Service}, After: []string{"peers"}},
		{Step: &swarm.Start{Peers: among.Service}, After: []string{"peers"}},
		{Step: mirror.Start{}, After: []string{"addresses"}},
	}
}
