package consensus

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

// lookAgain is how often members are asked while a quorum is missing.
const lookAgain = 2 * time.Second

// Start starts the member, unless its data belongs to somebody else, and waits
// until it is part of a quorum.
type Start struct{ observer observer }

// Name implements steps.Step.
func (*Start) Name() string { return "consensus" }

// Apply implements steps.Step.
func (s *Start) Apply(ctx context.Context, n *node.Node) error {
	m := n.Member
	if !votes(m) {
		return nil // Observe sees to an etcd that is left over
	}
	if err := claim(n, m); err != nil {
		return err
	}
	client, err := Dial(m)
	if err != nil {
		return err
	}
	defer client.Close()
	if !hasData(n, m) {
		if err := join(ctx, n, m, client); err != nil {
			return err
		}
	}
	if err := n.Release(ctx, Unit); err != nil {
		return err
	}
	for {
		c := look(ctx, client, m)
		grow(ctx, n, m, client, c)
		if c.Quorum && !slices.ContainsFunc(c.Members, func(v consensusMember) bool { return v.Node == m.Self.Name && !v.Healthy }) {
			n.Waiting("")
			return nil
		}
		n.Waiting("%s", missing(c))
		if !node.Sleep(ctx, lookAgain) {
			return ctx.Err()
		}
	}
}

// join prepares the first start of a member. Where the others have formed a
// cluster already, it is asked whether it counts on this one, so that a member
// that was added to the plan later comes in, and one that has lost its disk does
// not vote a second time on what it has voted on before. Where the plan knows that
// they have, it waits until one of them answers: a node whose network is not up yet
// would begin a cluster of its own.
func join(ctx context.Context, n *node.Node, m *member.Member, client *Client) error {
	for {
		answered, err := joinOthers(ctx, n, m, client)
		if answered || err != nil || !m.Site.Formed {
			return err
		}
		n.Waiting("waiting for a member of site %s's etcd, which has formed and takes this one in; if all of them are lost for good: slipway seed --anew %s", m.Site.Name, m.Site.Name)
		if !node.Sleep(ctx, lookAgain) {
			return ctx.Err()
		}
	}
}

// joinOthers is join with those that answer now, if any does.
func joinOthers(ctx context.Context, n *node.Node, m *member.Member, client *Client) (answered bool, err error) {
	own := url(m.Self.Address, plan.EtcdPeerPort)
	for _, at := range client.urls {
		if at == Endpoint(m.Self) {
			continue
		}
		known, err := client.members(ctx, at)
		if err != nil {
			continue
		}
		i := slices.IndexFunc(known, func(l listed) bool { return slices.Contains(l.PeerURLs, own) })
		switch {
		case i >= 0 && len(known[i].ClientURLs) > 0:
			return true, fault.New(fault.Integrity, "etcd is not started: its data directory %s is empty, while the cluster knows this member (%s) as one that has voted", memberDir(m), known[i].ID).
				WithMend("if its disk is lost: etcdctl member remove %s, on another member; it then joins anew by itself", hexadecimal(known[i].ID))
		case i >= 0 && known[i].Name != "":
			return true, nil // one of those that form the cluster, and has not been started yet
		case i < 0:
			for {
				if known, err = client.add(ctx, at, own); err == nil {
					break
				}
				// etcd takes no new member while another comes or goes.
				n.Waiting("joining the others' etcd: %s", noanswer.Words(err))
				if !node.Sleep(ctx, lookAgain) {
					return true, ctx.Err()
				}
			}
			n.Changed("joined etcd as a further member")
		}
		text, err := render(m, bootstrap{cluster: runningCluster(m, own, known), state: "existing"})
		if err != nil {
			return true, err
		}
		_, err = n.Ensure(envPath, 0o644, text)
		return true, err
	}
	return false, nil
}

// grow has this member vote once it has learned what the others know.
func grow(ctx context.Context, n *node.Node, m *member.Member, client *Client, c status.Consensus) {
	if !c.Quorum || !slices.ContainsFunc(c.Members, func(v consensusMember) bool { return v.Node == m.Self.Name && v.Problem == learning }) {
		return
	}
	own := url(m.Self.Address, plan.EtcdPeerPort)
	for _, at := range client.urls {
		if at == Endpoint(m.Self) {
			continue // a learner answers no such questions
		}
		known, err := client.members(ctx, at)
		if err != nil {
			continue
		}
		i := slices.IndexFunc(known, func(l listed) bool { return slices.Contains(l.PeerURLs, own) })
		if i < 0 || !known[i].Learner {
			return
		}
		if client.promote(ctx, at, known[i].ID) == nil {
			n.Changed("has a vote in etcd")
			return
		}
	}
}

// runningCluster are the members of a cluster that runs, with this one among them.
func runningCluster(m *member.Member, own string, known []listed) string {
	var members []string
	for _, l := range known {
		for _, peer := range l.PeerURLs {
			name := l.Name
			if peer == own {
				name = m.Self.Name
			}
			members = append(members, name+"="+peer)
		}
	}
	slices.Sort(members)
	return strings.Join(members, ",")
}
