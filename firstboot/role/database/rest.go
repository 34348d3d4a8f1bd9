package database

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/mtls"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// patroni asks Patroni's REST API (Patroni documentation, "Patroni REST API").
type patroni struct {
	mtls *mtls.Client
	m    *member.Member
}

func dial(m *member.Member) (*patroni, error) {
	pair, ok := m.Certificates[member.ServiceCert]
	if !ok {
		return nil, fault.New(fault.Input, "the seed of %s holds no certificate for its services", m.Self.Name)
	}
	client, err := mtls.New(m.Authority, pair)
	return &patroni{client, m}, err
}

// own is an instance, as its own Patroni tells of it.
type own struct {
	State       string `json:"state"`
	Role        string `json:"role"` // primary, replica, standby_leader
	System      string `json:"database_system_identifier"`
	Replication string `json:"replication_state"`
	Timeline    int    `json:"timeline"` // grows whenever another one is promoted
	Restart     bool   `json:"pending_restart"`
	Pause       bool   `json:"pause"`
}

func (p *patroni) own(ctx context.Context, n plan.Node) (own, error) {
	var o own
	err := p.mtls.JSON(ctx, http.MethodGet, rest(n)+"/patroni", nil, &o)
	return o, err
}

// whole is the database cluster, as etcd knows it.
type whole struct {
	Members []struct {
		Name     string          `json:"name"`
		Role     string          `json:"role"`
		State    string          `json:"state"`
		Timeline int             `json:"timeline"`
		Lag      json.RawMessage `json:"lag"` // a number, or "unknown"
		Tags     struct {
			NoFailover bool `json:"nofailover"`
		} `json:"tags"`
	} `json:"members"`
	Pause bool `json:"pause"`
}

const (
	membersLimit = 64
	leader       = "leader"
	standby      = "standby_leader"
)

// cluster asks this node's Patroni how the whole cluster is.
func (p *patroni) cluster(ctx context.Context) (status.Database, error) {
	var w whole
	if err := p.mtls.JSON(ctx, http.MethodGet, rest(p.m.Self)+"/cluster", nil, &w); err != nil {
		return status.Database{}, err
	}
	if len(w.Members) > membersLimit {
		return status.Database{}, fmt.Errorf("Patroni tells of %d members", len(w.Members))
	}
	return w.report(p.m.Site.Scope), nil
}

func (w whole) report(scope string) status.Database {
	d := status.Database{Scope: scope, Paused: w.Pause}
	for _, v := range w.Members {
		one := status.DatabaseMember{Node: v.Name, Role: v.Role, State: v.State, Timeline: v.Timeline, NoFailover: v.Tags.NoFailover}
		var lag int64
		if len(v.Lag) > 0 && json.Unmarshal(v.Lag, &lag) == nil {
			one.Lag = &lag
		}
		d.Standby = d.Standby || v.Role == standby
		d.Members = append(d.Members, one)
	}
	return d
}

// follow brings the running cluster's configuration to what the plan says.
func (p *patroni) follow(ctx context.Context) (changed bool, err error) {
	var running tree
	if err := p.mtls.JSON(ctx, http.MethodGet, rest(p.m.Self)+"/config", nil, &running); err != nil {
		return false, err
	}
	change, err := patch(running, p.m)
	if err != nil {
		return false, err
	}
	if _, noted := running[demotedKey]; noted && demotionIn(running) == (demoted{}) {
		change = merged(change, tree{demotedKey: nil}) // somebody has ended the pause
	}
	if len(change) == 0 {
		return false, nil
	}
	at, err := p.changes("/config")
	if err != nil {
		return false, err
	}
	return true, p.mtls.JSON(ctx, http.MethodPatch, at, change, nil)
}

// changes is the URL of something of this node's Patroni that takes the password.
func (p *patroni) changes(path string) (string, error) {
	at, err := url.Parse(rest(p.m.Self) + path)
	if err != nil {
		return "", err
	}
	at.User = url.UserPassword("patroni", restPassword(p.m))
	return at.String(), nil
}
