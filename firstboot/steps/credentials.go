package steps

import (
	"context"
	"encoding/json"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/internal/fault"
)

// CredentialsAction is the name of the action that Take makes.
const CredentialsAction = "credentials"

// CredentialsResult says which certificates and passwords the node has.
type CredentialsResult struct {
	Issue   int64 `json:"issue"`
	Changed bool  `json:"changed"`
}

// Take gives a node newer certificates and passwords than its seed has. They are
// kept beside the seed; a new round of the steps has all services take them up.
func Take(m *Membership) actions.Action {
	return actions.Action{Name: CredentialsAction, Secret: true, Run: func(_ context.Context, e *actions.Env, args json.RawMessage) (any, error) {
		var c member.Credentials
		if err := actions.Decode(args, &c); err != nil {
			return nil, fault.New(fault.Input, "the credentials cannot be read") // what cannot be may be a secret
		}
		self := e.Node.Member
		if c.Cluster != self.Plan.ID || c.Node != self.Self.Name {
			return nil, fault.New(fault.Input, "these are credentials of another node (%q); this is %s of cluster %s", c.Node, self.Self.Name, self.Plan.Cluster)
		}
		if c.Issue <= self.Issue {
			return CredentialsResult{Issue: self.Issue}, nil
		}
		if _, err := self.With(&c, m.now()); err != nil {
			return nil, err
		}
		if err := m.Store.SaveCredentials(c); err != nil {
			return nil, err
		}
		e.Say("has certificates and passwords of issue %d", c.Issue)
		e.Again("new certificates or passwords")
		return CredentialsResult{Issue: c.Issue, Changed: true}, nil
	}}
}

func (s *Membership) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}
