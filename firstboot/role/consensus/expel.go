package consensus

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

// Expel takes a member out of the site's etcd: that of a node which is dead, or
// whose vote the plan has given to another. It is asked of a member that stays.
var Expel = actions.Action{Name: "expel", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
	var a ExpelArgs
	if err := actions.Decode(args, &a); err != nil {
		return nil, err
	}
	m := e.Node.Member
	if !votes(m) || a.Node == m.Self.Name {
		return nil, fault.New(fault.Input, "%s is no member of etcd that stays", m.Self.Name)
	}
	client, err := Dial(m)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return expel(ctx, e, client, m, a)
}}

// ExpelArgs name the member.
type ExpelArgs struct {
	Node string `json:"node"`
	// Alive takes it out although it answers.
	Alive bool `json:"alive,omitempty"`
}

// ExpelResult says whether it was a member until now.
type ExpelResult struct {
	Changed bool `json:"changed"`
}

func expel(ctx context.Context, e *actions.Env, client *Client, m *member.Member, a ExpelArgs) (*ExpelResult, error) {
	at := Endpoint(m.Self)
	known, err := client.settled(ctx, at)
	if err != nil {
		return nil, fault.New(fault.Failed, "etcd of %s does not tell its members: %s", m.Self.Name, noanswer.Words(err))
	}
	i := slices.IndexFunc(known, func(l listed) bool { return named(m.Plan, l) == a.Node })
	if i < 0 {
		return &ExpelResult{}, nil
	}
	leaves := known[i]
	// What a member says of itself a moment after others have gone may be its last word
	// on that: so whether there is a quorum to decide counts, and one to go on with.
	well := func(l listed) bool {
		if len(l.ClientURLs) == 0 {
			return false
		}
		s, err := client.status(ctx, l.ClientURLs[0])
		return err == nil && s.Leader != "" && s.Leader != "0" && len(s.Errors) == 0
	}
	if !a.Alive && well(leaves) {
		return nil, fault.New(fault.Failed, "the etcd member of %s answers: it is not dead", a.Node).WithMend("switch the machine off first")
	}
	others, healthy := 0, 0
	for j, l := range known {
		if j == i || l.Learner {
			continue
		}
		if others++; well(l) {
			healthy++
		}
	}
	decide := healthy
	if well(leaves) {
		decide++
	}
	if !leaves.Learner && (healthy <= others/2 || decide <= (others+1)/2) {
		return nil, fault.New(fault.Failed, "without %s, %d of %d members of etcd would be well, which is no quorum", a.Node, healthy, others).
			WithMend("bring another member back first: see slipway status")
	}
	e.Say("taking %s (%s) out of etcd: %d of the %d that stay are well", a.Node, hexadecimal(leaves.ID), healthy, others)
	err = client.mtls.JSON(ctx, http.MethodPost, at+"/v3/cluster/member/remove", map[string]any{"ID": leaves.ID}, nil)
	if err != nil {
		return nil, fault.New(fault.Failed, "etcd does not take %s out: %s", a.Node, noanswer.Words(err)).WithMend("run the same command again")
	}
	return &ExpelResult{Changed: true}, nil
}

// named is the node of a member: by its address, since one that was never started
// has no name yet, or else by the name that it had.
func named(p *plan.Plan, l listed) string {
	for _, n := range p.Nodes {
		if slices.Contains(l.PeerURLs, url(n.Address, plan.EtcdPeerPort)) {
			return n.Name
		}
	}
	if l.Name == "" && len(l.PeerURLs) > 0 {
		return l.PeerURLs[0]
	}
	return l.Name
}

// strangers are the members that the plan gives no vote.
func strangers(m *member.Member, known []listed) []string {
	var names []string
	for _, l := range known {
		if name := named(m.Plan, l); !slices.Contains(m.Site.Consensus, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
