package database

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

// ForgetMember takes away what a database node that is gone has left with the others: its
// key in Patroni's scope, and its replication slot, which would keep WAL for it. It is
// asked of the node that leads.
var ForgetMember = actions.Action{Name: "forget", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
	var a ForgetArgs
	if err := actions.Decode(args, &a); err != nil {
		return nil, err
	}
	return forget(ctx, e, a)
}}

// ForgetArgs name the node.
type ForgetArgs struct {
	Node string `json:"node"`
}

// ForgetResult says what was there.
type ForgetResult struct {
	Slot bool `json:"slot"` // a replication slot
	// Later: the slot is still there, and goes by itself within half an hour
	// (member_slots_ttl), since another node is missing that needs its own.
	Later bool `json:"later,omitempty"`
}

const (
	forgetLimit = time.Minute
	forgetPause = time.Second
)

func forget(ctx context.Context, e *actions.Env, a ForgetArgs) (*ForgetResult, error) {
	m := e.Node.Member
	if !runs(m) || a.Node == m.Self.Name || !nodeName(a.Node) {
		return nil, fault.New(fault.Input, "%s cannot forget the database node %q", m.Self.Name, a.Node)
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
	if d.Leader() != m.Self.Name {
		return nil, fault.New(fault.Failed, "%s does not lead", m.Self.Name).WithMend("run the command again")
	}
	if v, ok := d.Member(a.Node); ok && v.Streams() {
		return nil, fault.New(fault.Failed, "%s streams: it is not gone", a.Node)
	}
	client, err := consensus.Dial(m)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	if err := client.Delete(ctx, "/service/"+m.Site.Scope+"/members/"+a.Node); err != nil {
		return nil, fault.New(fault.Failed, "etcd does not take away the key of %s: %s", a.Node, noanswer.Words(err))
	}
	there, err := hasSlot(ctx, e.Node, a.Node)
	if err != nil || !there {
		return &ForgetResult{}, err
	}
	for _, v := range d.Members {
		if v.Node != a.Node && !v.Leads() && !v.Streams() {
			e.Say("the replication slot of %s goes by itself in half an hour: %s does not stream, and may need its own", a.Node, v.Node)
			return &ForgetResult{Slot: true, Later: true}, nil
		}
	}
	return &ForgetResult{Slot: true}, dropSlot(ctx, e, rest, a.Node)
}

// dropSlot has Patroni itself drop the slot: one that is taken from it, it makes
// again. It keeps slots of nodes that are gone for member_slots_ttl (Patroni
// documentation, "Dynamic Configuration Settings").
func dropSlot(ctx context.Context, e *actions.Env, rest *patroni, gone string) (err error) {
	const setting = "member_slots_ttl"
	var running tree
	if err := rest.mtls.JSON(ctx, http.MethodGet, restURL(rest)+"/config", nil, &running); err != nil {
		return fault.New(fault.Failed, "Patroni does not tell its configuration: %s", noanswer.Words(err))
	}
	at, err := rest.changes("/config")
	if err != nil {
		return err
	}
	before := running[setting]
	if before == float64(0) {
		before = nil // what an interrupted run has left
	}
	if err := rest.mtls.JSON(ctx, http.MethodPatch, at, tree{setting: 0}, nil); err != nil {
		return fault.New(fault.Failed, "Patroni takes no configuration: %s", noanswer.Words(err))
	}
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if restoreErr := rest.mtls.JSON(last, http.MethodPatch, at, tree{setting: before}, nil); restoreErr != nil && err == nil {
			err = fault.New(fault.Failed, "Patroni's %s stays at 0: %s", setting, noanswer.Words(restoreErr)).WithMend("run the same command again")
		}
	}()
	e.Say("having Patroni drop the replication slot of %s", gone)
	limited, cancel := context.WithTimeout(ctx, forgetLimit)
	defer cancel()
	for {
		there, err := hasSlot(limited, e.Node, gone)
		if err == nil && !there {
			return nil
		}
		if !node.Sleep(limited, forgetPause) {
			return fault.New(fault.Failed, "Patroni has not dropped the replication slot of %s within %s", gone, forgetLimit).WithMend("run the same command again")
		}
	}
}

func restURL(p *patroni) string { return rest(p.m.Self) }

// hasSlot reports whether there is a slot for a node.
func hasSlot(ctx context.Context, n *node.Node, gone string) (bool, error) {
	out, err := psql(ctx, n, fmt.Sprintf("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s;\n", literal(memberSlot(gone))))
	return strings.TrimSpace(out) == "1", err
}

// memberSlot is how Patroni names a member's slot: what is no letter, digit or
// underscore is written in another way.
func memberSlot(name string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_':
			b.WriteRune(c)
		case c == '-', c == '.':
			b.WriteByte('_')
		default:
			fmt.Fprintf(&b, "u%04d", c)
		}
	}
	return b.String()[:min(b.Len(), 63)]
}

// nodeName reports whether a name may become part of a key.
func nodeName(name string) bool {
	return name != "" && !strings.ContainsAny(name, "/\x00") && len(name) < 256
}
