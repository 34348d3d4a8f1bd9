package consensus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// former ends the name of the data directory of a member that was taken out.
const former = ".former"

// dismissed stops the etcd of a node to which the plan gives no vote any more, once
// the others do not count on it. Until then it goes on: they may need it.
func dismissed(ctx context.Context, n *node.Node, m *member.Member) error {
	if m == nil || checkScope(m.Site.Scope) != nil || !hasData(n, m) || !mine(n, m) {
		return nil
	}
	client, err := Dial(m)
	if err != nil {
		return nil // it never was a member of this cluster
	}
	defer client.Close()
	known, err := client.listed(ctx)
	if err != nil {
		return fmt.Errorf("the plan gives this node no vote, and etcd does not tell whether it still counts on it: %w", err)
	}
	own := url(m.Self.Address, plan.EtcdPeerPort)
	if slices.ContainsFunc(known, func(l listed) bool { return slices.Contains(l.PeerURLs, own) }) {
		return errors.New("etcd still counts on this node, to which the plan gives no vote: slipway remove or slipway add takes the vote")
	}
	if err := n.Hold(Unit); err != nil {
		return err
	}
	if n.Exists("/run/systemd/system") {
		if _, err := n.Command(ctx, "systemctl", "stop", "--no-block", Unit); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(n.Path(memberDir(m)) + former); err != nil {
		return err
	}
	if err := os.Rename(n.Path(memberDir(m)), n.Path(memberDir(m))+former); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	n.Changed("stopped etcd: this node has no vote any more")
	return nil
}

// mine reports whether the data directory is that of this member.
func mine(n *node.Node, m *member.Member) bool {
	found, err := readOwner(n, m)
	return err == nil && found == owner{Cluster: m.Plan.ID, Node: m.Self.Name}
}
