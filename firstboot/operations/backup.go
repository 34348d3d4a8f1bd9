package operations

import (
	"context"
	"fmt"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Backup makes a backup of a kind now.
func Backup(c *Cluster, kind string) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		maker, err := maker(c.Plan, now)
		if err != nil {
			return nil, err
		}
		before := newest(now)
		return &Operation{
			Name: "backup", Title: fmt.Sprintf("make a backup (%s) on %s", kind, maker),
			Steps: []Step{{
				What: fmt.Sprintf("make a backup (%s) on %s", kind, maker),
				Do: func(ctx context.Context, say func(string)) error {
					return c.Act(ctx, maker, backup.Backup.Name, backup.Args{Type: kind}, nil, say)
				},
			}},
			Check: func(now overview.Overview) []string {
				if newest(now) == before {
					return []string{maker + " does not tell of a new backup"}
				}
				return nil
			},
		}, nil
	}
}

// maker is the node that makes backups: the repository, or with S3 the primary.
func maker(p *plan.Plan, now overview.Overview) (string, error) {
	switch {
	case p.Backup == nil:
		return "", fault.New(fault.Input, "the cluster %s makes no backups", p.Cluster).WithMend("say under \"backup\" in its topology where they are to be kept")
	case p.Backup.Repository != "":
		return p.Backup.Repository, nil
	}
	s, err := writable(p, now)
	if err != nil {
		return "", err
	}
	d, err := databaseOf(now, s.Name)
	if err != nil {
		return "", err
	}
	if d.Leader() == "" {
		return "", fault.New(fault.Failed, "nobody leads site %s, and the primary makes the backups", s.Name).WithMend("see slipway status")
	}
	return d.Leader(), nil
}

// Kept is what a cluster knows of its backups.
type Kept struct {
	status.Backup
	// From and To are the times that the database can be brought back to; nil where
	// there is no backup.
	From *time.Time `json:"from"`
	To   *time.Time `json:"to"`
}

// Backups is what there is of backups, as the node says that makes them.
func Backups(p *plan.Plan, now overview.Overview) (*Kept, error) {
	if p.Backup == nil {
		_, err := maker(p, now)
		return nil, err
	}
	b := told(now)
	if b == nil {
		return nil, fault.New(fault.Network, "no node tells of backups").WithMend("see slipway status; a node that has just started knows of them within a minute")
	}
	kept := &Kept{Backup: *b}
	if kept.Sets == nil {
		kept.Sets = []status.BackupSet{}
	}
	var archiver *status.Archiver
	for _, n := range now.Nodes {
		if c := now.Word(n.Name); c != nil && c.Database != nil && c.Database.Archiver != nil {
			archiver = c.Database.Archiver
		}
	}
	if from, to, ok := status.Window(b, archiver); ok {
		kept.From, kept.To = &from, &to
	}
	return kept, nil
}

// BackupsFrom is what there is of backups that another cluster made, as a database
// node sees them; "" is the first that the plan names. From and To are the ends of the
// first and the last: how far the archive goes beyond is not known.
func BackupsFrom(ctx context.Context, c *Cluster, node, from string) (*Kept, error) {
	b := c.Plan.Backup
	switch {
	case b == nil || b.From == nil:
		return nil, fault.New(fault.Input, "the cluster %s knows of no backups that another cluster made", c.Plan.Cluster).
			WithMend("say under \"backup.from\" in its topology where they are, and seed anew; docs/backup.md tells more")
	case b.From.Cluster != from:
		return nil, fault.New(fault.Usage, "the cluster %s knows of backups that %s made, not of any by %s", c.Plan.Cluster, b.From.Cluster, from)
	}
	if all := c.Plan.AllDatabases(); node == "" && len(all) > 0 {
		node = all[0].Name
	}
	kept := &Kept{}
	kept.Where = b.Repository
	if s := b.Reads(); s != nil {
		kept.Where = "s3://" + s.Bucket + s.Path
	}
	if err := c.Ask(ctx, node, backup.Looking.Name, backup.LookArgs{From: from}, &kept.Sets); err != nil {
		return nil, err
	}
	if kept.Sets == nil {
		kept.Sets = []status.BackupSet{}
	}
	if first, last, ok := status.Window(&kept.Backup, nil); ok {
		kept.From, kept.To = &first, &last
	}
	return kept, nil
}

// told is what the node that makes backups says of them, or nil.
func told(now overview.Overview) *status.Backup {
	for _, n := range now.Nodes {
		if c := now.Word(n.Name); c != nil && c.Backup != nil {
			return c.Backup
		}
	}
	return nil
}

// newest is the label of the newest backup, or "".
func newest(now overview.Overview) string {
	if b := told(now); b != nil && len(b.Sets) > 0 {
		return b.Sets[len(b.Sets)-1].Label
	}
	return ""
}
