package database

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/mtls"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

// Switchover has another node of the site lead, in good order: the leader stops
// when the candidate has all that it has. It is asked of the leader's own agent,
// whose Patroni then knows at once (Patroni documentation, "Patroni REST API",
// "Switchover and failover endpoints").
var Switchover = actions.Action{Name: "switchover", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
	var a SwitchoverArgs
	if err := actions.Decode(args, &a); err != nil {
		return nil, err
	}
	return switchover(ctx, e, a)
}}

// SwitchoverArgs say who leads and who is to.
type SwitchoverArgs struct {
	Leader    string `json:"leader"`
	Candidate string `json:"candidate"`
}

// SwitchoverResult is who leads now.
type SwitchoverResult struct {
	Leader  string `json:"leader"`
	Changed bool   `json:"changed"`
}

const (
	// Patroni tells how a switchover ended after twice its loop_wait, or 20 s, at most;
	// a slow machine goes on with it for longer than that.
	switchoverLimit = time.Minute
	promoteLimit    = 2 * time.Minute
	candidateLimit  = 30 * time.Second
	candidatePause  = 2 * time.Second
	promotePause    = 250 * time.Millisecond
)

func switchover(ctx context.Context, e *actions.Env, a SwitchoverArgs) (*SwitchoverResult, error) {
	m := e.Node.Member
	if !runs(m) {
		return nil, fault.New(fault.Input, "%s is no database node", m.Self.Name)
	}
	rest, err := dial(m)
	if err != nil {
		return nil, err
	}
	defer rest.mtls.Close()
	d, err := rest.cluster(ctx)
	if err != nil {
		return nil, fault.New(fault.Failed, "Patroni of %s does not answer: %s", m.Self.Name, noanswer.Words(err))
	}
	switch lead := d.Leader(); {
	case lead == a.Candidate && lead != "":
		return &SwitchoverResult{Leader: lead}, nil
	case lead == "":
		return nil, fault.New(fault.Failed, "nobody leads: that is for Patroni to mend, which elects a leader by itself").
			WithMend("see slipway status")
	case lead != a.Leader:
		return nil, fault.New(fault.Failed, "%s does not lead any more: %s does", a.Leader, lead).WithMend("run the command again")
	case d.Paused:
		return nil, fault.New(fault.Failed, "Patroni is paused: it would not have anybody else lead").
			WithMend("on a database node: sudo patronictl resume")
	}
	if why := d.Unfit(a.Candidate, m.Site.Patroni.MaximumLag); why != "" {
		return nil, fault.New(fault.Failed, "%s %s", a.Candidate, why)
	}
	e.Say("%s hands over to %s", a.Leader, a.Candidate)
	if err := handOver(ctx, e, rest, a); err != nil {
		return nil, err
	}
	return promoted(ctx, e, rest, a)
}

// handOver asks Patroni for it, and again while the candidate, which was well a moment ago, has
// not told Patroni in time (in retry_timeout/3) how it is. Its error is a refusal: what has
// become of an attempt whose answer is lost, the cluster knows.
func handOver(ctx context.Context, e *actions.Env, rest *patroni, a SwitchoverArgs) error {
	at, err := rest.changes("/switchover")
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(candidateLimit); ; {
		err := rest.mtls.Patient(switchoverLimit).JSON(ctx, http.MethodPost, at, a, nil)
		refused := refusal(err)
		switch {
		case err == nil:
			return nil
		case refused == nil:
			e.Say("Patroni has not said how it ended: %s", noanswer.Words(err))
			return nil
		case !strings.Contains(refused.Said, "no good candidates"), time.Now().After(deadline), !node.Sleep(ctx, candidatePause):
			return fault.New(fault.Failed, "Patroni refuses the switchover: %s", refused.Said)
		}
		e.Say("%s has not told Patroni in time that it is well: asking again", a.Candidate)
	}
}

// refusal is Patroni's answer if it says no; nil for any other error. After a wait
// it answers with status 503 and "Switchover status unknown", while the switchover
// goes on (Patroni 4.0, api.py, poll_failover_result).
func refusal(err error) *mtls.Refused {
	var refused *mtls.Refused
	if !errors.As(err, &refused) || refused.Status == http.StatusServiceUnavailable && strings.Contains(refused.Said, "status unknown") {
		return nil
	}
	return refused
}

// Leads reports whether a node leads its site's database. One that runs none does not.
func Leads(ctx context.Context, m *member.Member) (bool, error) {
	if !runs(m) {
		return false, nil
	}
	rest, err := dial(m)
	if err != nil {
		return false, err
	}
	defer rest.mtls.Close()
	d, err := rest.cluster(ctx)
	if err != nil {
		return false, errors.New("Patroni does not answer: " + noanswer.Words(err))
	}
	return d.Leader() == m.Self.Name, nil
}

// promoted waits until the candidate leads: until etcd says so, and its PostgreSQL
// too, which Patroni promotes after it has the lock.
func promoted(ctx context.Context, e *actions.Env, rest *patroni, a SwitchoverArgs) (*SwitchoverResult, error) {
	candidate, err := rest.m.Plan.Node(a.Candidate)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, promoteLimit)
	defer cancel()
	last := "nobody leads"
	for {
		d, err := rest.cluster(limited)
		switch lead := d.Leader(); {
		case err != nil:
			last = noanswer.Words(err)
		case lead == a.Candidate:
			o, err := rest.own(limited, candidate)
			if err == nil && o.State == "running" && (o.Role == "primary" || o.Role == standby) {
				e.Say("%s leads", lead)
				return &SwitchoverResult{Leader: lead, Changed: true}, nil
			}
			last = lead + " is about to"
		case lead != "" && lead != a.Leader:
			return nil, fault.New(fault.Failed, "%s leads now, not %s", lead, a.Candidate).WithMend("run the command again")
		case lead != "":
			last = lead + " leads"
		}
		if !node.Sleep(limited, promotePause) {
			return nil, fault.New(fault.Failed, "%s does not lead after %s: %s", a.Candidate, promoteLimit, last).
				WithMend("see slipway status; then run the command again")
		}
	}
}
