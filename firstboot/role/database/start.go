package database

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

// lookAgain is how often it is looked at what is waited for.
const lookAgain = 2 * time.Second

// Start starts Patroni, unless the data directory is not this cluster's, waits
// until this node leads or streams, and makes the plan's databases where it leads.
type Start struct {
	// Agrees reports whether a node of another site has said that no plan is newer
	// than this node's; nil asks nobody.
	Agrees func(site string) bool
	// Alone is after how long a site starts without a word from another; 0 is a minute.
	Alone time.Duration

	mu     sync.Mutex
	of     *member.Member
	rest   *patroni // with its connections, from one look to the next
	tended tended

	archived archived
}

// Name implements steps.Step.
func (*Start) Name() string { return "database" }

// Apply implements steps.Step.
func (s *Start) Apply(ctx context.Context, n *node.Node) error {
	m := n.Member
	if !runs(m) {
		return nil
	}
	rest, err := s.dial(m)
	if err != nil {
		return err
	}
	r, err := readRecord(n, m)
	if err != nil {
		return err
	}
	if turned(m, r) {
		if err := s.fence(ctx, n, rest); err != nil {
			return err
		}
	}
	if !n.UnitActive(ctx, Unit) {
		if err := s.admit(ctx, n, rest); err != nil {
			return err
		}
	}
	if err := n.Release(ctx, Unit); err != nil {
		return err
	}
	for {
		waits, leads, err := s.stage(ctx, n, rest)
		if err != nil {
			return err
		}
		if waits == "" {
			n.Waiting("")
			if leads {
				return tend(ctx, n, rest)
			}
			return nil
		}
		n.Waiting("%s", waits)
		if !node.Sleep(ctx, lookAgain) {
			return ctx.Err()
		}
	}
}

func (s *Start) dial(m *member.Member) (*patroni, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rest != nil && s.of == m {
		return s.rest, nil
	}
	rest, err := dial(m)
	if err != nil {
		return nil, err
	}
	if s.rest != nil {
		s.rest.mtls.Close()
	}
	s.of, s.rest = m, rest
	return rest, nil
}

// admit lets Patroni start on what is in the data directory, or says why not.
func (s *Start) admit(ctx context.Context, n *node.Node, rest *patroni) error {
	m := n.Member
	if err := restored(ctx, n); err != nil {
		return err
	}
	key, found, err := initialized(ctx, n)
	if err != nil {
		return err
	}
	d, err := inspect(ctx, n)
	if err != nil {
		return err
	}
	r, err := readRecord(n, m)
	if err != nil {
		return err
	}
	if v := elder(n); d.empty && v != "" {
		return refuse("%s/%s holds data of PostgreSQL %s; this image has PostgreSQL %s", baseDir, v, v, version).
			WithMend("start an image with PostgreSQL %s, or move %s/%s away", v, baseDir, v)
	}
	what, err := decide(m, d, r, key, found)
	if err != nil {
		return err
	}
	if what == tidy || what == reopen {
		if err := setAside(n, d); err != nil {
			return err
		}
		if !d.empty {
			n.Changed("took away a database that was only half made or cloned")
		}
		d.empty = true
	}
	if what == reopen {
		if err := reopened(ctx, m); err != nil {
			return err
		}
	}
	if what != start {
		if err := writeRecord(n, m, record{Begun: true}); err != nil {
			return err
		}
	}
	if !d.empty {
		return s.heard(ctx, n, rest)
	}
	if m.Site.StandbyOf != "" && m.Site.Bootstrap == m.Self.Name && !identifier.MatchString(key) {
		return primaryAnswers(ctx, n, rest)
	}
	return nil
}

// initialized reads which database is the cluster's, as soon as etcd answers.
func initialized(ctx context.Context, n *node.Node) (key string, found bool, err error) {
	client, err := consensus.Dial(n.Member)
	if err != nil {
		return "", false, err
	}
	defer client.Close()
	for {
		key, found, err := client.Get(ctx, initializeKey(n.Member))
		if err == nil {
			return key, found, nil
		}
		n.Waiting("etcd does not answer: %s", noanswer.Words(err))
		if !node.Sleep(ctx, lookAgain) {
			return "", false, ctx.Err()
		}
	}
}

// initializeKey is where Patroni keeps the cluster's system identifier.
func initializeKey(m *member.Member) string { return "/service/" + m.Site.Scope + "/initialize" }

// reopened takes away the mark of a database in the making. Only the plan's
// bootstrap node sets it, and this is that node: nobody else is at it.
func reopened(ctx context.Context, m *member.Member) error {
	client, err := consensus.Dial(m)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.DeleteEmpty(ctx, initializeKey(m))
}

// primaryAnswers waits until there is something to clone on the other site: else
// Patroni would give up and begin anew, again and again.
func primaryAnswers(ctx context.Context, n *node.Node, rest *patroni) error {
	m := n.Member
	for {
		var wrong []string
		for _, other := range m.Plan.DatabaseNodes(m.Site.StandbyOf) {
			o, err := rest.own(ctx, other)
			if err == nil && o.Role == "primary" && o.State == "running" {
				return nil
			}
			if err != nil {
				wrong = append(wrong, other.Name+": "+noanswer.Words(err))
			} else {
				wrong = append(wrong, fmt.Sprintf("%s: %s, %s", other.Name, o.Role, o.State))
			}
		}
		n.Waiting("waiting for site %s's primary: %s", m.Site.StandbyOf, strings.Join(wrong, ", "))
		if !node.Sleep(ctx, lookAgain) {
			return ctx.Err()
		}
	}
}

// stage says what the node still waits for, or "" once it leads or streams.
func (s *Start) stage(ctx context.Context, n *node.Node, rest *patroni) (waits string, leads bool, err error) {
	m := n.Member
	o, err := rest.own(ctx, m.Self)
	if err != nil {
		return "Patroni does not answer yet: " + noanswer.Words(err), false, nil
	}
	d, err := rest.cluster(ctx)
	if err != nil {
		return "Patroni does not reach etcd: " + noanswer.Words(err), false, nil
	}
	i := slices.IndexFunc(d.Members, func(v status.DatabaseMember) bool { return v.Role == leader || v.Role == standby })
	switch {
	case i < 0 && m.Site.Bootstrap == m.Self.Name && m.Site.StandbyOf == "":
		return fmt.Sprintf("this node makes or recovers the database (%s)", o.State), false, nil
	case i < 0 && m.Site.Bootstrap == m.Self.Name:
		return fmt.Sprintf("cloning from site %s (%s)", m.Site.StandbyOf, o.State), false, nil
	case i < 0:
		return fmt.Sprintf("waiting for %s, which makes the database (%s)", m.Site.Bootstrap, o.State), false, nil
	}
	lead := d.Members[i]
	switch leads = lead.Node == m.Self.Name; {
	case leads && o.State == "running" && (o.Role == "primary" || o.Role == standby):
	case !leads && o.State == "running" && (o.Replication == "streaming" || o.Replication == "in archive recovery"):
	case leads:
		return fmt.Sprintf("becoming the leader (%s)", o.State), false, nil
	case o.State == "running":
		return "waiting to stream from " + lead.Node, false, nil
	case strings.Contains(o.State, "creating replica"):
		return fmt.Sprintf("cloning from %s%s", lead.Node, cloned(n)), false, nil
	default:
		return fmt.Sprintf("joining %s (%s)", lead.Node, cmp.Or(o.State, "stopped")), false, nil
	}
	if identifier.MatchString(o.System) {
		err = writeRecord(n, m, record{System: o.System})
	}
	return "", leads && o.Role == "primary", err
}

// cloned says how much is there of a clone, so that one sees it grow.
func cloned(n *node.Node) string {
	var total int64
	entries, err := os.ReadDir(n.Path(dataDir + "/base"))
	if err != nil {
		return ""
	}
	for _, e := range entries {
		files, _ := os.ReadDir(n.Path(dataDir + "/base/" + e.Name()))
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				total += info.Size()
			}
		}
	}
	return fmt.Sprintf(" (%d MiB so far)", total>>20)
}

// tend is the leader's work on the whole cluster: its configuration, its databases.
func tend(ctx context.Context, n *node.Node, rest *patroni) error {
	changed, err := rest.follow(ctx)
	if err != nil {
		return fmt.Errorf("taking over the plan's parameters: %s", noanswer.Words(err))
	}
	if changed {
		n.Changed("told Patroni the plan's parameters")
	}
	if n.Member.Site.StandbyOf != "" {
		return nil // the other site's databases come by replication
	}
	if err := rest.complete(ctx, n); err != nil {
		return fmt.Errorf("telling how the site's own log began: %s", noanswer.Words(err))
	}
	made, err := furnish(ctx, n, n.Member)
	if err != nil {
		return fmt.Errorf("making the plan's databases and roles: %w", err)
	}
	for _, what := range made {
		n.Changed("%s", what)
	}
	return nil
}

// tended is what this node did last as the leader.
type tended struct {
	during reign // the zero value: nothing yet
	busy   bool
	err    error
}

// reign is what the leader's work holds for: a plan and the issue of the node's
// credentials, until another node was promoted, which may have had others.
type reign struct {
	plan     *plan.Plan
	issue    int64
	timeline int
}
