package steps

import (
	"context"
	"fmt"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/node"
)

// Finder looks for metadata. It returns nil when there is none, and an error
// when there is some that cannot be read.
type Finder func(ctx context.Context) (*node.Seed, error)

// Datasource finds the metadata and reads its user-data.
type Datasource struct{ Find Finder }

func (Datasource) Name() string { return "datasource" }

func (s Datasource) Apply(ctx context.Context, n *node.Node) error {
	n.Seed, n.User = nil, &cloudconfig.UserData{}
	n.Waiting("looking for metadata: a disk or CD labelled cidata or config-2, or the hypervisor's own channel")
	seed, err := s.Find(ctx)
	if err != nil {
		return fmt.Errorf("the metadata cannot be used: %w", err)
	}
	if seed == nil {
		return nil
	}
	n.Seed, n.User = seed, cloudconfig.Parse(seed.Documents...)
	for _, w := range seed.Warnings {
		n.Report.Warn(w)
	}
	for _, f := range n.User.Findings {
		w := node.Warning{Where: f.File, Key: f.Key, Message: f.Message, Serious: f.Serious()}
		if f.Line > 0 {
			w.Where = fmt.Sprintf("%s:%d", f.File, f.Line)
		}
		n.Report.Warn(w)
	}
	return nil
}
