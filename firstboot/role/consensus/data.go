package consensus

import (
	"encoding/json"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

// memberDir is the member's data directory. Each scope has its own, so that a
// node which once stood alone keeps what it had.
func memberDir(m *member.Member) string { return dataDir + "/" + m.Site.Scope }

// ownerPath says beside the data directory whose it is; etcd itself keeps that
// in its log, as numbers that only it understands.
func ownerPath(m *member.Member) string { return memberDir(m) + ".json" }

// owner is the cluster and the node that a data directory belongs to.
type owner struct {
	Cluster string `json:"cluster"` // the plan's ID
	Node    string `json:"node"`
}

// hasData reports whether there is something in the data directory to lose.
func hasData(n *node.Node, m *member.Member) bool { return n.Exists(memberDir(m) + "/member") }

// readOwner is whose the data directory is, as far as is known.
func readOwner(n *node.Node, m *member.Member) (owner, error) {
	text, err := n.Read(ownerPath(m))
	var found owner
	if json.Unmarshal(text, &found) != nil {
		found = owner{}
	}
	return found, err
}

// claim marks an empty data directory as this member's, and refuses one that
// belongs to somebody else. It never touches data.
func claim(n *node.Node, m *member.Member) error {
	found, err := readOwner(n, m)
	if err != nil {
		return err
	}
	want := owner{Cluster: m.Plan.ID, Node: m.Self.Name}
	if found == want {
		return nil
	}
	if hasData(n, m) {
		return refused(m, found)
	}
	mark, err := json.Marshal(want)
	if err != nil {
		return err
	}
	_, err = n.Write(ownerPath(m), 0o600, append(mark, '\n'))
	return err
}

func refused(m *member.Member, found owner) error {
	whose := "of which nothing says whose it is"
	switch {
	case found.Cluster != "" && found.Cluster != m.Plan.ID:
		whose = "of another cluster (" + short(found.Cluster) + "; this is " + short(m.Plan.ID) + ")"
	case found.Node != "":
		whose = "of another member (" + found.Node + ")"
	}
	return fault.New(fault.Integrity, "etcd is not started: %s holds data %s; nothing was changed", memberDir(m), whose).
		WithMend("move %s away, and this node begins with an empty one", memberDir(m))
}

// short is the start of a cluster's identity, enough to tell two apart.
func short(id string) string { return id[:min(len(id), 12)] }
