package database

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

// Observe implements steps.Observer: it asks this node's Patroni. Whenever a node has
// come to lead, it also sees to the cluster's parameters, databases and roles.
func (s *Start) Observe(ctx context.Context, n *node.Node, c *status.Cluster) error {
	m := n.Member
	if !runs(m) {
		return nil
	}
	aside := asideProblems(n)
	restore, err := restoring(n)
	if err != nil {
		return err
	}
	last, err := ended(n)
	if err != nil {
		return err
	}
	c.Restored = last.report()
	if restore != nil { // also while Patroni does not answer
		c.Database = &status.Database{Scope: m.Site.Scope, Restore: restore.report()}
	}
	if restore != nil && !restore.Taken {
		return fmt.Errorf("the database is being brought back to %s; to go on: %s", restore.Target, restore.Again())
	}
	if n.Held(Unit) {
		return told(aside) // Start says why it is held
	}
	rest, err := s.dial(m)
	if err != nil {
		return err
	}
	o, err := rest.own(ctx, m.Self)
	if err != nil {
		return errors.New("Patroni does not answer: " + noanswer.Words(err))
	}
	d, err := rest.cluster(ctx)
	if err != nil {
		return errors.New("Patroni does not reach etcd: " + noanswer.Words(err))
	}
	if identifier.MatchString(o.System) {
		d.SystemID = o.System
	}
	if c.Database = &d; restore != nil {
		d.Restore = restore.report()
	}
	if d.Paused {
		if running, err := rest.config(ctx); err == nil {
			d.Demoting = demotionIn(running).Node
		}
	}
	wrong := append(problems(m, d, o, c.Excused), aside...)
	primary := o.Role == "primary" && o.State == "running"
	if primary || o.Role == standby && o.State == "running" && m.Site.StandbyOf != "" {
		now := reign{m.Plan, m.Issue, o.Timeline}
		done, err := s.lead(ctx, n, rest, now)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		if issue := m.Issue; done && primary {
			d.Furnished = &issue
		}
		// Should it be lost, its lock is to run out at once. If this fails, the next look tries again.
		_ = consensus.HandOver(ctx, m, c.Consensus)
	}
	if b := m.Plan.Backup; b != nil && (primary || n.Exists(droppedPath)) {
		a, err := s.watchArchive(ctx, n, primary)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		if a != nil {
			wrong = append(wrong, complaints(*a, b.WALQueue)...)
		}
		if primary {
			d.Archiver = a
		}
	}
	return told(wrong)
}

// told is what is wrong, as one error.
func told(wrong []string) error {
	if len(wrong) == 0 {
		return nil
	}
	return errors.New(strings.Join(wrong, "; "))
}

// lead tends the cluster once in each reign, beside the observer, which must not
// take long. It reports whether that was done.
func (s *Start) lead(ctx context.Context, n *node.Node, rest *patroni, now reign) (done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.tended.busy && s.tended.during != now {
		s.tended.busy = true
		own := *n
		go func() {
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
			defer cancel()
			err := tend(limited, &own, rest)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.tended = tended{err: err}
			if err == nil {
				s.tended.during = now
			}
		}()
	}
	return s.tended.during == now, s.tended.err
}

// problems is what is wrong with the cluster, as far as this node can tell. A node
// that is excused may be away.
func problems(m *member.Member, d status.Database, self own, excused func(node string) bool) []string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	lead := ""
	for _, v := range d.Members {
		switch {
		case v.Role == leader || v.Role == standby:
			if lead != "" {
				say("there are two leaders, %s and %s", lead, v.Node)
			}
			if lead = v.Node; v.State != "running" && v.State != "streaming" && v.State != "in archive recovery" {
				say("the leader %s is %s", v.Node, v.State)
			}
		case excused(v.Node):
		case v.State != "streaming" && v.State != "in archive recovery":
			say("%s does not stream (%s)", v.Node, v.State)
		case v.Lag != nil && *v.Lag > m.Site.Patroni.MaximumLag:
			say("%s lags behind by %d MiB", v.Node, *v.Lag>>20)
		}
	}
	if lead == "" {
		say("there is no leader: nothing can be written")
	}
	if self.Role == "primary" && lead != "" && lead != m.Self.Name {
		say("this node can be written to while %s leads", lead)
	}
	switch {
	case self.Role == "primary" && m.Site.StandbyOf != "":
		say("this site takes writes, which by the plan site %s does", m.Plan.WritableSite())
	case self.Role == standby && m.Site.StandbyOf == "":
		say("this site is a standby, and by the plan it takes the writes; to have it do so: slipway promote-site %s", m.Site.Name)
	}
	for _, n := range m.Plan.DatabaseNodes(m.Site.Name) {
		if !excused(n.Name) && !slices.ContainsFunc(d.Members, func(v status.DatabaseMember) bool { return v.Node == n.Name }) {
			say("%s is missing", n.Name)
		}
	}
	switch {
	case d.Demoting != "":
		say("this site is being demoted, and %s stops for that; if nobody is at it any more: slipway demote-site %s", d.Demoting, m.Site.Name)
	case d.Paused:
		say("Patroni is paused: nothing is failed over; to go on: patronictl resume")
	}
	if self.Restart {
		say("PostgreSQL wants a restart for changed parameters; to do it: patronictl restart %s %s", m.Site.Scope, m.Self.Name)
	}
	return wrong
}
