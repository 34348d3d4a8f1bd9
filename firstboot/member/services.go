package member

import "slices"

// etcdUnit is the one unit that the plan gives to some nodes of a role and not to
// others.
const etcdUnit = "etcd.service"

// Services are the units that make a node's role up, out of those that the
// image's role marker lists. etcd counts where the plan gives the node a vote,
// whatever its role, and nowhere else. A node that stands alone (nil) goes by the
// marker.
func (m *Member) Services(marked []string) []string {
	if m == nil {
		return marked
	}
	services := slices.DeleteFunc(slices.Clone(marked), func(unit string) bool { return unit == etcdUnit })
	if m.Plan.Votes(m.Self.Name) {
		services = append([]string{etcdUnit}, services...)
	}
	return services
}
