package rehearsal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
)

// Lab is a cluster of machines in the lab, as a rehearsal's ground. Backup and restore
// are those of the commands.
type Lab struct {
	*drill.Site
	// FormTime bounds the wait for new machines to be a cluster.
	FormTime time.Duration
	Log      logrus.FieldLogger
}

// Check tells whether a cluster can be rehearsed in the lab.
func Check(p *plan.Plan) error {
	switch {
	case p.Backup == nil:
		return fault.New(fault.Usage, "cluster %s makes no backups: there is nothing to restore", p.Cluster).
			WithMend("say under \"backup\" in its topology where they are to be kept; docs/backup.md tells more")
	case p.Backup.Repository == "":
		return fault.New(fault.Usage, "cluster %s keeps its backups on S3, which the lab does not have", p.Cluster).
			WithMend("rehearse with a copy of the topology that names a repository")
	}
	return nil
}

// WritesOn is for how long clients write after the backup, so that some of it is archived
// before the loss: more than twice the time after which WAL is archived that has been begun.
func WritesOn(p *plan.Plan) time.Duration {
	return max(150*time.Second, time.Duration(p.Backup.ArchiveTimeout)*time.Second*5/2)
}

// Whole waits until all nodes are ready and nothing contradicts; the time that this may take is FormTime.
func (l *Lab) Whole(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, l.FormTime)
	defer cancel()
	for {
		now := l.Look(bounded)
		if now.Whole {
			return nil
		}
		if pause(bounded, 2*time.Second) != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Failed, "after %v the cluster is not whole: %s", l.FormTime, now.Words())
		}
	}
}

// Connect implements Ground.
func (l *Lab) Connect(ctx context.Context) (*pgx.Conn, error) {
	c := l.Clients
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		return nil, err
	}
	config, err := pgx.ParseConfig(fmt.Sprintf("postgres://%s/%s?sslmode=verify-full", c.Address, c.Database))
	if err != nil {
		return nil, err
	}
	config.User, config.Password = c.User, c.Password
	config.TLSConfig = c.TLS.Clone()
	config.TLSConfig.ServerName = host
	config.Fallbacks = []*pgconn.FallbackConfig{}
	config.ConnectTimeout = 30 * time.Second
	config.DialFunc = func(ctx context.Context, _, address string) (net.Conn, error) { return c.Dial(ctx, "", address) }
	config.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	return pgx.ConnectConfig(ctx, config)
}

// Backup implements Ground.
func (l *Lab) Backup(ctx context.Context) error {
	return l.do(ctx, operations.Backup(l.Operations(), "full"))
}

// Restore implements Ground.
func (l *Lab) Restore(ctx context.Context) error {
	return l.do(ctx, operations.Restore(l.Operations(), database.Request{Target: database.Latest}, false))
}

func (l *Lab) do(ctx context.Context, prepare operations.Prepare) error {
	runner := operations.Runner{
		Cluster: l.Operations(), Agree: func(context.Context, string) error { return nil },
		Say: func(line string) { l.Log.Info(line) },
	}
	// The repository knows of its backups a minute after it has started.
	for deadline := time.Now().Add(10 * time.Minute); ; {
		_, err := runner.Run(ctx, prepare)
		if !passes(err) || time.Now().After(deadline) {
			return err
		}
		l.Log.Infof("once more: %v", err)
		if pause(ctx, 10*time.Second) != nil {
			return ctx.Err()
		}
	}
}

// passes reports whether an operation failed for a reason that goes by itself: somebody does not answer,
// or the repository makes a backup of its own accord, the first one above all.
func passes(err error) bool {
	return err != nil && (fault.Of(err) == fault.Network || strings.Contains(err.Error(), backup.UnderWay))
}

// lost are the nodes that are lost: all but the one with the backups.
func (l *Lab) lost() (names []string) {
	for _, n := range l.Plan.Nodes {
		if !l.Plan.Keeps(n.Name) {
			names = append(names, n.Name)
		}
	}
	return names
}

// Lose implements Ground.
func (l *Lab) Lose(context.Context) error {
	if _, err := l.Cluster.Crash(l.lost()...); err != nil {
		return err
	}
	var errs []error
	for _, name := range l.lost() {
		m, err := l.Cluster.Node(name)
		if err == nil {
			err = os.RemoveAll(m.Dir())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Renew implements Ground: machines with empty disks and the same seeds.
func (l *Lab) Renew(ctx context.Context) error {
	if _, err := l.Cluster.Start(ctx, l.lost()...); err != nil {
		return err
	}
	for _, name := range l.lost() {
		bounded, cancel := context.WithTimeout(ctx, l.FormTime)
		err := l.formed(bounded, name)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// formed waits until a node's database leads or streams. The cluster is not ready: it
// says that the repository holds the backups of another database.
func (l *Lab) formed(ctx context.Context, name string) error {
	n, err := l.Plan.Node(name)
	if err != nil || !plan.DatabaseRole(n.Role) {
		return err
	}
	for {
		now, err := l.Operations().Look(ctx)
		if err != nil {
			return err
		}
		if c := now.Word(name); c != nil && c.Database != nil {
			if v, ok := c.Database.Member(name); ok && (v.Leads() && v.State == "running" || v.State == "streaming") {
				return nil
			}
		}
		if pause(ctx, 2*time.Second) != nil {
			return fault.New(fault.Failed, "%s has not formed a cluster with the others within %v", name, l.FormTime)
		}
	}
}
