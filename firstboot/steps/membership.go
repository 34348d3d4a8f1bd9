package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/mirror"
	"github.com/slipwayhq/slipway/internal/fault"
)

// held are the units that a node of a cluster must not start by itself: what
// they need has to be there first, and a node that does not know who it is must
// not run them at all.
var held = []string{"etcd.service", "patroni.service", "haproxy.service", "keepalived.service", "pgbackrest.service", mirror.Unit}

// Membership finds out which node of which cluster this is. It never changes who
// the node is: a block for another node or another cluster is refused, and the
// node stays what it was.
type Membership struct {
	Store *member.Store
	Now   func() time.Time
	// Unknown reports whether metadata are to come that cannot be read before the
	// network is up; nil if there are none of that kind.
	Unknown func() bool
	// Untimely is why the block counts later or no more, going by the clock; nil
	// if it counts now.
	Untimely error
	// unusable is what is wrong with the credentials that were handed over.
	unusable error
}

func (*Membership) Name() string { return "membership" }

func (s *Membership) Apply(ctx context.Context, n *node.Node) error {
	n.Member, s.Untimely, s.unusable = nil, nil, nil
	kept, keptErr := s.Store.Load()
	given := ""
	if n.Seed != nil {
		given = n.Seed.Slipway
	}
	if given == "" && kept == nil {
		if n.Seed == nil || s.Unknown != nil && s.Unknown() {
			// It may turn out to be a member. A database that it made on its own until then
			// would stand in that one's way.
			return errors.Join(keptErr, hold(ctx, n))
		}
		return errors.Join(keptErr, alone(ctx, n))
	}
	if err := hold(ctx, n); err != nil {
		return err
	}
	m, err := s.decide(n, given, kept)
	if m == nil {
		return errors.Join(err, keptErr)
	}
	var upgradeErr error
	if kept != nil {
		m, upgradeErr = m.Upgrade(kept)
	}
	retired, retiredErr := s.Store.Retirement()
	m.Retire(retired)
	keptErr = errors.Join(keptErr, retiredErr, s.unusable)
	n.Member = m
	if err != nil {
		return errors.Join(err, upgradeErr) // what is kept stays as it is
	}
	machine, err := n.Read("/etc/machine-id")
	if err != nil {
		return err
	}
	next := member.Kept{ID: m.Plan.ID, Cluster: m.Plan.Cluster, Node: m.Node, Machine: strings.TrimSpace(string(machine)), Block: given, Plan: &m.Block.Plan}
	if m.Removed > 0 {
		next.Without = &m.Newest
	}
	if given == "" {
		next.Block = kept.Block
	}
	return errors.Join(keptErr, upgradeErr, s.Store.Save(next))
}

// decide is who the node is, going by what it is given and what it kept. The
// error says why what it is given does not count; there may be a member
// nevertheless, the one that it was before.
func (s *Membership) decide(n *node.Node, given string, kept *member.Kept) (*member.Member, error) {
	var former *member.Member
	var formerErr error
	if kept != nil {
		former, formerErr = s.parse(kept.Block)
		if formerErr != nil {
			former = nil
		}
	}
	if given == "" {
		if formerErr != nil {
			return nil, s.untimely(formerErr)
		}
		n.Warn("metadata", "slipway", "it is gone; the node stays %s of cluster %s. To take it out of the cluster, remove %s", kept.Node, kept.Cluster, member.Dir)
		return former, nil
	}
	m, err := s.parse(given)
	if m != nil && kept != nil && (m.Plan.ID != kept.ID || m.Node != kept.Node) {
		return former, foreign(m, kept)
	}
	switch {
	case err == nil:
		return m, nil
	case former != nil:
		return former, fmt.Errorf("the block slipway in the meta-data cannot be used, so the former one is: %w", err)
	case member.OfTime(err):
		return nil, s.untimely(err)
	}
	return nil, fmt.Errorf("the block slipway in the meta-data cannot be used: %w", err)
}

// parse is member.Parse with the credentials that were handed over since, which
// may be valid where those of the block are not any more.
func (s *Membership) parse(text string) (*member.Member, error) {
	m, err := member.Parse(text, s.Now())
	if m == nil {
		return nil, err
	}
	newer, credentialsErr := s.Store.Credentials()
	next, withErr := m.With(newer, s.Now())
	if next != m {
		return next, withErr
	}
	s.unusable = errors.Join(credentialsErr, withErr)
	return m, err
}

// Refuses tells why a block is not for this machine; nil if it is, or if that
// cannot be told. Nothing else of a seed that is somebody else's may count
// either: it has another node's name and addresses.
func (s *Membership) Refuses(block string) error {
	kept, err := s.Store.Load()
	if err != nil || kept == nil || block == "" {
		return nil
	}
	m, _ := member.Parse(block, s.Now())
	if m == nil || m.Plan.ID == kept.ID && m.Node == kept.Node {
		return nil
	}
	return foreign(m, kept)
}

// untimely keeps an error that may end by itself. A clock that is behind is
// nothing that went wrong here: time comes with the network.
func (s *Membership) untimely(err error) error {
	if !member.OfTime(err) {
		return err
	}
	s.Untimely = err
	var expired *member.ExpiredError
	if errors.As(err, &expired) {
		return fmt.Errorf("%w; write its seed anew, or set the clock", err)
	}
	return nil
}

// foreign says that a block is somebody else's.
func foreign(m *member.Member, kept *member.Kept) error {
	what := fmt.Sprintf("node %s of cluster %s", m.Node, m.Plan.Cluster)
	was := fmt.Sprintf("node %s of cluster %s", kept.Node, kept.Cluster)
	if m.Plan.Cluster == kept.Cluster && m.Plan.ID != kept.ID {
		what += " (another cluster of that name: its authority differs)"
	}
	return fault.New(fault.Input, "the seed is for %s, but this machine is %s: attach the seed of %s; or, to make it forget who it is with all that it knows of its cluster, remove %s and restart it",
		what, was, kept.Node, member.Dir)
}

// hold keeps back the units of a member that do not run yet.
func hold(ctx context.Context, n *node.Node) error {
	running := map[string]bool{}
	if list, err := n.Units.Units(ctx, held); err == nil {
		for _, u := range list {
			running[u.Name] = slices.Contains([]string{"active", "reloading", "activating"}, u.Active)
		}
	}
	for _, unit := range held {
		if running[unit] {
			continue
		}
		if err := n.Hold(unit); err != nil {
			return err
		}
	}
	return nil
}

// alone lets go of all units on a node that stands alone.
func alone(ctx context.Context, n *node.Node) error {
	for _, unit := range held {
		if !n.Held(unit) {
			continue
		}
		if !slices.Contains(n.Role.Services, unit) {
			if err := n.Unhold(unit); err != nil {
				return err
			}
			continue
		}
		if err := n.Release(ctx, unit); err != nil {
			return err
		}
	}
	return nil
}

// clockPause is how often a node whose clock is wrong looks at it.
const clockPause = 3 * time.Second

// Time waits until the clock says a time at which the node's certificates are
// valid, and has the node begin anew then.
type Time struct {
	Membership *Membership
	Again      func(why string)
}

func (Time) Name() string { return "time" }

func (s Time) Apply(ctx context.Context, n *node.Node) error {
	why := s.Membership.Untimely
	if why == nil {
		return nil
	}
	n.Waiting("waiting for time from NTP servers, or a new seed: %v", why)
	tick := time.NewTicker(clockPause)
	defer tick.Stop()
	told := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if !told && s.Membership.timely(n) {
			told = true
			s.Again("the clock was set")
		}
	}
}

// timely reports whether what was untimely is so no more.
func (s *Membership) timely(n *node.Node) bool {
	text := ""
	if n.Seed != nil {
		text = n.Seed.Slipway
	}
	if kept, err := s.Store.Load(); text == "" && err == nil && kept != nil {
		text = kept.Block
	}
	_, err := s.parse(text)
	return !member.OfTime(err)
}
