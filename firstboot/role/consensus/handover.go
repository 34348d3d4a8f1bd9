package consensus

import (
	"context"
	"net/http"
	"slices"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// HandOver has another member lead etcd if the node's own does and another is well. What
// leads etcd has all leases in its memory; when it is lost, its successor gives each its whole
// time once more (etcd, server/lease/lessor.go, Promote). A node that holds a lock and
// leads etcd would so be waited for by an election longer than its lock lives.
//
// found is what Observe has seen last.
func HandOver(ctx context.Context, m *member.Member, found *status.Consensus) error {
	to := successor(m, found)
	if to == "" {
		return nil
	}
	client, err := Dial(m)
	if err != nil {
		return err
	}
	defer client.Close()
	known, err := client.members(ctx, Endpoint(m.Self))
	if err != nil {
		return err
	}
	i := slices.IndexFunc(known, func(l listed) bool { return l.Name == to && !l.Learner })
	if i < 0 {
		return nil
	}
	return client.mtls.JSON(ctx, http.MethodPost, Endpoint(m.Self)+"/v3/maintenance/transfer-leadership", map[string]any{"targetID": known[i].ID}, nil)
}

// successor is who is to lead etcd instead of the node itself: one without a database,
// which will not come to hold the lock, else any that is well.
func successor(m *member.Member, found *status.Consensus) (name string) {
	if found == nil || !found.Quorum {
		return ""
	}
	leads := false
	databases := m.Plan.DatabaseNodes(m.Site.Name)
	for _, v := range found.Members {
		has := slices.ContainsFunc(databases, func(d plan.Node) bool { return d.Name == v.Node })
		switch {
		case v.Node == m.Self.Name:
			leads = v.Leader
		case v.Healthy && (name == "" || !has):
			name = v.Node
		}
	}
	if !leads {
		return ""
	}
	return name
}
