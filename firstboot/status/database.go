package status

import (
	"fmt"
	"slices"
)

// Excused reports whether a node may be away without anything being wrong: when it
// last answered it was in maintenance.
func (c *Cluster) Excused(node string) bool {
	return slices.ContainsFunc(c.Peers, func(p Peer) bool { return p.Name == node && p.State == Maintenance })
}

// Leader is who leads, of this site's database cluster; "" if nobody does.
func (d *Database) Leader() string {
	if d == nil {
		return ""
	}
	for _, m := range d.Members {
		if m.Leads() {
			return m.Node
		}
	}
	return ""
}

// Member finds a member by its node.
func (d *Database) Member(node string) (DatabaseMember, bool) {
	if d == nil {
		return DatabaseMember{}, false
	}
	i := slices.IndexFunc(d.Members, func(m DatabaseMember) bool { return m.Node == node })
	if i < 0 {
		return DatabaseMember{}, false
	}
	return d.Members[i], true
}

// Leads reports whether a member is the primary, or leads a standby site.
func (m DatabaseMember) Leads() bool { return m.Role == "leader" || m.Role == "standby_leader" }

// Streams reports whether a member follows its leader.
func (m DatabaseMember) Streams() bool {
	return !m.Leads() && (m.State == "streaming" || m.State == "in archive recovery")
}

// Synchronous reports whether a member has every commit that was acknowledged, or
// is one of those of whom enough have.
func (m DatabaseMember) Synchronous() bool {
	return m.Role == "sync_standby" || m.Role == "quorum_standby"
}

// Unfit says why a node cannot take over as the leader in good order, in words that
// follow its name; "" if it can. most is how many bytes it may lag behind.
func (d *Database) Unfit(node string, most int64) string {
	m, ok := d.Member(node)
	switch {
	case !ok:
		return "is no member of the database cluster now"
	case m.Leads():
		return "leads already"
	case m.NoFailover:
		return "must not lead: it is in maintenance"
	case !m.Streams():
		return fmt.Sprintf("does not stream (%s)", m.State)
	case !d.Standby && !m.Synchronous():
		return "is no synchronous standby: it may lack what was acknowledged"
	case m.Lag == nil:
		return "does not tell how far it lags behind"
	case *m.Lag > most:
		return "lags behind by " + Bytes(*m.Lag)
	}
	return ""
}
