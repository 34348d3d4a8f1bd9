package member

import "slices"

// Units that the plan gives to some nodes of a role and not to others.
const (
	etcdUnit   = "etcd.service"
	backupUnit = "pgbackrest.service"
)

// Services are the units that make a node's role up, out of those that the
// image's role marker lists. etcd counts where the plan gives the node a vote,
// pgBackRest where the node has others to speak to about backups, whatever their
// roles, and nowhere else. A node that stands alone (nil) goes by the marker, but
// for pgBackRest, which speaks to nobody without certificates.
func (m *Member) Services(marked []string) []string {
	services := slices.DeleteFunc(slices.Clone(marked), func(unit string) bool { return unit == etcdUnit && m != nil || unit == backupUnit })
	if m == nil {
		return services
	}
	if m.Plan.Votes(m.Self.Name) {
		services = append([]string{etcdUnit}, services...)
	}
	if len(m.Plan.BackupPeers(m.Self.Name)) > 0 {
		services = append(services, backupUnit)
	}
	return services
}
