package database

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/mtls"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

// PromoteSite has this node's site take writes. The signed plan has to name the site;
// the action is the second half of the decision, asked of the node that leads it.
var PromoteSite = actions.Action{Name: "promote-site", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
	var a PromoteSiteArgs
	if err := actions.Decode(args, &a); err != nil {
		return nil, err
	}
	return promoteSite(ctx, e, a)
}}

// PromoteSiteArgs say which decision it is, and what must not be missing.
type PromoteSiteArgs struct {
	Turn int64 `json:"turn"` // of the plan
	// AtLeast is how far the site's log has to go (PostgreSQL's pg_lsn); "" where the
	// other site is lost.
	AtLeast string `json:"at_least,omitempty"`
}

// DemoteSite has this node's site follow another one: the primary stops in good
// order, so that whoever is connected has all that it has, and starts as a standby.
var DemoteSite = actions.Action{Name: "demote-site", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
	var a DemoteSiteArgs
	if err := actions.Decode(args, &a); err != nil {
		return nil, err
	}
	return nil, demoteSite(ctx, e, a)
}}

// DemoteSiteArgs say which site it follows then.
type DemoteSiteArgs struct {
	To string `json:"to"`
}

// Position tells how far this node's log goes. It changes nothing.
var Position = actions.Action{Name: "wal-position", Run: func(ctx context.Context, e *actions.Env, _ json.RawMessage) (any, error) {
	if !runs(e.Node.Member) {
		return nil, fault.New(fault.Input, "%s is no database node", e.Node.Member.Self.Name)
	}
	at, primary, err := position(ctx, e.Node)
	if err != nil {
		return nil, err
	}
	result := PositionResult{At: at.String(), Primary: primary}
	limited, cancel := context.WithTimeout(ctx, fenceLimit)
	defer cancel()
	if d, err := demotedBy(limited, e.Node.Member); err == nil {
		result.Stopped, result.Turn = d.At, d.Turn
	}
	return result, nil
}}

// PositionResult is the end of what the node has (PostgreSQL's pg_lsn).
type PositionResult struct {
	At string `json:"at"`
	// Primary says that this node takes writes now: its log goes on.
	Primary bool `json:"primary,omitempty"`
	// Stopped is where the log of the node's site ended when demote-site stopped its
	// primary; "" where it was not demoted in good order, or etcd does not tell. The
	// site has acknowledged nothing beyond it.
	Stopped string `json:"stopped,omitempty"`
	// Turn is that of the plan by which the site took writes until then.
	Turn int64 `json:"turn,omitempty"`
}

// ProbeSite looks for signs of life of a site, as this node sees it. It changes nothing.
var ProbeSite = actions.Action{Name: "probe-site", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
	var a ProbeSiteArgs
	if err := actions.Decode(args, &a); err != nil {
		return nil, err
	}
	return probe(ctx, e.Node.Member.Plan, a.Site), nil
}}

// ProbeSiteArgs say which.
type ProbeSiteArgs struct {
	Site string `json:"site"`
}

// ProbeSiteResult are the services that took a connection, in words.
type ProbeSiteResult struct {
	Answers []string `json:"answers"`
	// Databases are the nodes whose PostgreSQL was among them.
	Databases []string `json:"databases"`
}

const (
	probeLimit       = 3 * time.Second
	catchUpLimit     = time.Minute
	sitePromoteLimit = 3 * time.Minute // emulated nodes take minutes
	seesLimit        = 90 * time.Second
	patchAgain       = 4 // times
)

// promoteSite removes what makes the site a standby, and waits.
func promoteSite(ctx context.Context, e *actions.Env, a PromoteSiteArgs) (*SwitchoverResult, error) {
	m := e.Node.Member
	switch {
	case !runs(m):
		return nil, fault.New(fault.Input, "%s is no database node", m.Self.Name)
	case m.Plan.WritableSite() != m.Site.Name || m.Plan.Turn != a.Turn:
		return nil, fault.New(fault.Failed, "the plan that %s goes by (generation %d) has site %s take the writes", m.Self.Name, m.Plan.Generation, m.Plan.WritableSite()).
			WithMend("run the command again, when the node has the newest plan")
	}
	rest, err := dial(m)
	if err != nil {
		return nil, err
	}
	defer rest.mtls.Close()
	running, err := rest.config(ctx)
	if err != nil {
		return nil, err
	}
	if _, is := running["standby_cluster"].(tree); !is {
		return &SwitchoverResult{Leader: m.Self.Name}, rest.leads(ctx, e)
	}
	o, err := rest.own(ctx, m.Self)
	if err != nil || o.Role != standby || o.State != "running" {
		return nil, fault.New(fault.Failed, "%s does not lead its site (%s, %s)", m.Self.Name, o.Role, o.State).WithMend("see slipway status; then run the command again")
	}
	if o.Timeline == 0 { // which is none; the other site could not find where it ended
		return nil, fault.New(fault.Failed, "Patroni of %s does not tell on which timeline it is", m.Self.Name).WithMend("run the command again")
	}
	if a.AtLeast != "" {
		if err := caughtUp(ctx, e, a.AtLeast); err != nil {
			return nil, err
		}
	}
	change, err := patch(running, m)
	if err != nil {
		return nil, err
	}
	// In one step with the promotion, so that there is none without the mark.
	change = merged(change, tree{"standby_cluster": nil, demotedKey: nil, markKey: tree{"turn": a.Turn, "timeline": o.Timeline, "begins": nil}})
	e.Say("site %s takes writes from now on", m.Site.Name)
	if err := rest.patchConfig(ctx, change); err != nil {
		return nil, err
	}
	return &SwitchoverResult{Leader: m.Self.Name, Changed: true}, rest.leads(ctx, e)
}

// leads waits until this node is the primary, and marks how its own log began.
func (p *patroni) leads(ctx context.Context, e *actions.Env) error {
	limited, cancel := context.WithTimeout(ctx, sitePromoteLimit)
	defer cancel()
	for {
		o, err := p.own(limited, p.m.Self)
		if err == nil && o.Role == "primary" && o.State == "running" {
			e.Say("%s is the primary", p.m.Self.Name)
			return p.complete(ctx, e.Node)
		}
		if !node.Sleep(limited, promotePause) {
			return fault.New(fault.Failed, "%s is not the primary after %s (%s, %s)", p.m.Self.Name, sitePromoteLimit, o.Role, o.State).
				WithMend("see slipway status; then run the command again")
		}
	}
}

// caughtUp waits until the node has replayed the log up to a place.
func caughtUp(ctx context.Context, e *actions.Env, least string) error {
	want, err := parseLSN(least)
	if err != nil {
		return fault.New(fault.Input, "at_least: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	for {
		at, _, err := position(limited, e.Node)
		if err == nil && at >= want {
			e.Say("has all of the log up to %s", want)
			return nil
		}
		if !node.Sleep(limited, promotePause) {
			return fault.New(fault.Failed, "%s has the log up to %s only, and the other site's goes on to %s; it is not promoted", e.Node.Member.Self.Name, at, want).
				WithMend("to let the other site take the writes again: slipway promote-site, with its name")
		}
	}
}

// position is the end of what a node has, and whether it goes on by itself: what it
// has replayed, what it has written, or, when it does not run, the last record in its
// data directory.
func position(ctx context.Context, n *node.Node) (at lsn, primary bool, err error) {
	out, err := psql(ctx, n, "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, NOT pg_is_in_recovery();\n")
	if err == nil {
		place, is, _ := strings.Cut(strings.TrimSpace(out), "|")
		at, err = parseLSN(place)
		return at, is == "t", err
	}
	at, endErr := endOfLog(ctx, n)
	if endErr != nil {
		return 0, false, fmt.Errorf("PostgreSQL does not answer (%w), and the end of its log cannot be told: %w", err, endErr)
	}
	return at, false, nil
}

// endOfLog is the end of the log of a database that does not run. Whoever has replayed
// past the beginning of its last record has all of it.
func endOfLog(ctx context.Context, n *node.Node) (lsn, error) {
	c, err := control(ctx, n)
	if err != nil {
		return 0, err
	}
	switch state := c["Database cluster state"]; {
	case state == "shut down": // as a primary: the checkpoint is the last record
		at, err := parseLSN(c["Latest checkpoint location"])
		if err != nil {
			return 0, err
		}
		return at + 1, nil
	case state != "shut down in recovery" && n.Exists(postmasterPID):
		return 0, fmt.Errorf("it may be running (%s)", state)
	}
	end, err := lastRecord(ctx, n)
	if err != nil {
		return 0, err
	}
	return end.at + 1, nil
}

// demoted is what demote-site notes in a site's dynamic configuration: which primary
// stops, together with the pause in which it does, and where its log ended, together
// with what makes the site a standby. It is gone when the site takes writes again.
type demoted struct {
	Node string // is stopping, in a pause
	At   string // PostgreSQL's pg_lsn; "" unless the site is a standby because of it
	Turn int64  // of the plan by which the site took writes until then
}

// demotedKey is where it stands.
const demotedKey = "slipway_demoted"

// demotionIn is what a running configuration tells of one.
func demotionIn(running tree) (d demoted) {
	noted, _ := running[demotedKey].(tree)
	if _, follows := running["standby_cluster"].(tree); follows {
		d.At, _ = noted["at"].(string)
		turn, _ := noted["turn"].(float64) // a plan's generation, far below 2^53
		d.Turn = int64(turn)
	} else if running["pause"] == true {
		d.Node, _ = noted["node"].(string)
	}
	return d
}

// demotedBy reads it from etcd, which tells it also while Patroni is stopped.
func demotedBy(ctx context.Context, m *member.Member) (demoted, error) {
	client, err := consensus.Dial(m)
	if err != nil {
		return demoted{}, err
	}
	defer client.Close()
	text, found, err := client.Get(ctx, configKey(m))
	if err != nil || !found {
		return demoted{}, err
	}
	var running tree
	err = json.Unmarshal([]byte(text), &running)
	return demotionIn(running), err
}

// demoteSite stops the primary in good order and makes the site a standby. Where it was
// interrupted between the two, it goes on, on the same node.
func demoteSite(ctx context.Context, e *actions.Env, a DemoteSiteArgs) error {
	m := e.Node.Member
	if !runs(m) {
		return fault.New(fault.Input, "%s is no database node", m.Self.Name)
	}
	if a.To == m.Site.Name || len(m.Plan.DatabaseNodes(a.To)) == 0 {
		return fault.New(fault.Input, "site %s cannot follow site %q", m.Site.Name, a.To)
	}
	rest, err := dial(m)
	if err != nil {
		return err
	}
	defer rest.mtls.Close()
	running, err := rest.config(ctx)
	if err != nil {
		return err
	}
	if _, is := running["standby_cluster"].(tree); is {
		e.Say("site %s is a standby", m.Site.Name)
		return nil
	}
	o, err := rest.own(ctx, m.Self)
	if err != nil {
		return fault.New(fault.Failed, "Patroni of %s does not answer: %s", m.Self.Name, noanswer.Words(err))
	}
	if o.Role != "primary" || o.State != "running" {
		if demotionIn(running).Node == m.Self.Name && o.State != "running" {
			e.Say("goes on: PostgreSQL is stopped, and nobody takes writes")
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), standLimit+seesLimit+scanLimit)
			defer cancel()
			return rest.stands(ctx, e, a.To)
		}
		return fault.New(fault.Failed, "%s is not the primary of site %s", m.Self.Name, m.Site.Name).WithMend("run the command again")
	}
	if err := followed(ctx, e.Node, a.To); err != nil {
		return err
	}
	e.Say("PostgreSQL stops in good order; site %s gets all it has", a.To)
	// Nobody shall take over as it stops.
	if err := rest.patchConfig(ctx, tree{"pause": true, demotedKey: tree{"node": m.Self.Name, "at": nil}}); err != nil {
		return err
	}
	// From here on it comes to an end even if the administrator goes away.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), standLimit+2*seesLimit+fenceLimit)
	defer cancel()
	err = rest.sees(ctx, "it is paused", func(o own) bool { return o.Pause })
	if err == nil {
		err = halt(ctx, e.Node)
	}
	if err != nil {
		rest.patchConfig(ctx, tree{"pause": nil, demotedKey: nil})
		return fault.New(fault.Failed, "PostgreSQL does not stop; it goes on as it was: %w", err)
	}
	return rest.stands(ctx, e, a.To)
}

// sees waits until Patroni of this node says that something is so.
func (p *patroni) sees(ctx context.Context, what string, is func(own) bool) error {
	limited, cancel := context.WithTimeout(ctx, seesLimit)
	defer cancel()
	for {
		o, err := p.own(limited, p.m.Self)
		if err == nil && is(o) {
			return nil
		}
		if !node.Sleep(limited, promotePause) {
			return fmt.Errorf("Patroni does not see within %s that %s", seesLimit, what)
		}
	}
}

// stands makes a site whose PostgreSQL has been stopped a standby. Patroni has to have
// seen the stop while it was paused: it takes it for a crash otherwise, and starts a
// primary, for a moment.
func (p *patroni) stands(ctx context.Context, e *actions.Env, to string) error {
	err := p.sees(ctx, "PostgreSQL is stopped", func(o own) bool { return o.State == "stopped" })
	var at lsn
	if err == nil {
		// A power cut leaves a mark of a server that runs.
		err = halt(ctx, e.Node)
	}
	if err == nil {
		at, err = endOfLog(ctx, e.Node)
	}
	if err == nil {
		err = p.patchConfig(ctx, tree{
			"pause": nil, "standby_cluster": followsSite(p.m, to), demotedKey: tree{"node": p.m.Self.Name, "at": at.String(), "turn": p.m.Plan.Turn},
		})
	}
	if err != nil {
		return fault.New(fault.Failed, "PostgreSQL is stopped, and Patroni does not take up that it is a standby now: %s", noanswer.Words(err)).WithMend("run the command again")
	}
	e.Say("site %s is a standby of site %s; its log ended at %s", p.m.Site.Name, to, at)
	return nil
}

// followed makes sure that the other site streams, and is not far behind.
func followed(ctx context.Context, n *node.Node, site string) error {
	out, err := psql(ctx, n, "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), r.flush_lsn)::bigint FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE s.slot_name = '"+slotOf(site)+"' AND r.state = 'streaming';\n")
	if err != nil {
		return err
	}
	var behind int64
	if _, err := fmt.Sscan(out, &behind); err != nil {
		return fault.New(fault.Failed, "site %s does not stream from %s: it would lack what is written now", site, n.Member.Self.Name).
			WithMend("see slipway status")
	}
	if most := n.Member.Site.Patroni.MaximumLag; most > 0 && behind > most {
		return fault.New(fault.Failed, "site %s lags behind by %d MiB: writes would wait too long", site, behind>>20).WithMend("run the command again later")
	}
	return nil
}

// probe tries to connect to the agents and databases of a site.
func probe(ctx context.Context, p *plan.Plan, site string) ProbeSiteResult {
	found := ProbeSiteResult{Answers: []string{}, Databases: []string{}}
	var mu sync.Mutex
	var group sync.WaitGroup
	const postgres = "PostgreSQL"
	try := func(n plan.Node, what string, port int) {
		group.Go(func() {
			d := net.Dialer{Timeout: probeLimit}
			at := netip.AddrPortFrom(n.Address, uint16(port)).String()
			conn, err := d.DialContext(ctx, "tcp", at)
			if err != nil {
				return
			}
			conn.Close()
			mu.Lock()
			defer mu.Unlock()
			found.Answers = append(found.Answers, fmt.Sprintf("%s of %s (%s)", what, n.Name, at))
			if what == postgres {
				found.Databases = append(found.Databases, n.Name)
			}
		})
	}
	s, _ := p.Site(site)
	for _, n := range p.Nodes {
		if n.Site != site {
			continue
		}
		try(n, "the agent", plan.APIPort)
		if plan.DatabaseRole(n.Role) {
			try(n, "Patroni", plan.PatroniPort)
			try(n, postgres, s.Postgres.Port)
		}
	}
	group.Wait()
	slices.Sort(found.Answers)
	slices.Sort(found.Databases)
	return found
}

// config is the running cluster's dynamic configuration.
func (p *patroni) config(ctx context.Context) (tree, error) {
	var running tree
	if err := p.mtls.JSON(ctx, http.MethodGet, rest(p.m.Self)+"/config", nil, &running); err != nil {
		return nil, fault.New(fault.Failed, "Patroni of %s does not answer: %s", p.m.Self.Name, noanswer.Words(err))
	}
	return running, nil
}

// patchConfig changes it. Patroni refuses a change where another one came between its
// own reading and writing; a merge patch can be sent again.
func (p *patroni) patchConfig(ctx context.Context, change tree) error {
	at, err := p.changes("/config")
	if err != nil {
		return err
	}
	for again := 0; ; again++ {
		err := p.mtls.JSON(ctx, http.MethodPatch, at, change, nil)
		if err == nil {
			return nil
		}
		var refused *mtls.Refused
		between := errors.As(err, &refused) && refused.Status == http.StatusConflict
		if !between || again == patchAgain || !node.Sleep(ctx, promotePause) {
			return fault.New(fault.Failed, "Patroni of %s does not take the change: %s", p.m.Self.Name, noanswer.Words(err))
		}
	}
}
