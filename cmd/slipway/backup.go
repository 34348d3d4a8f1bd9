package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

// onlyFile is the topology's file, where a command takes no other argument.
func onlyFile(c *cli.Context) (string, error) {
	file, rest := fileFirst(c.Args().Slice())
	if len(rest) > 0 {
		return "", fault.New(fault.Usage, "slipway %s takes one argument, the topology's file, and was given %q", c.Command.Name, rest[0])
	}
	return file, nil
}

func backupCommand() *cli.Command {
	return &cli.Command{
		Name:      "backup",
		Usage:     "make a backup of the database now",
		ArgsUsage: "[FILE]",
		Description: `The repository makes it (with S3 the primary), beside those of the schedule, and takes
away what is not kept any more. full is all of the database, diff what has changed since
the last full one, incr what has changed since the last one of any kind.` + operationHelp + `

Examples:
  slipway backup
  slipway backup cluster.yaml --type full --yes`,
		Flags: operationFlags(
			&cli.StringFlag{Name: "type", Usage: "full, diff or incr", Value: "diff"},
		),
		BashComplete: completeFiles,
		Action: func(c *cli.Context) error {
			file, err := onlyFile(c)
			if err != nil {
				return err
			}
			if kind := c.String("type"); !slices.Contains(backup.Kinds, kind) {
				return fault.New(fault.Usage, "%q is no kind of backup", kind).WithMend("it is %s", strings.Join(backup.Kinds, ", "))
			}
			s, err := beginCluster(c, file, vault.Options{ReadOnly: true})
			if err != nil {
				return err
			}
			return runOperation(c, s, operations.Backup(s.cluster, c.String("type")))
		},
	}
}

func backupsCommand() *cli.Command {
	return &cli.Command{
		Name:      "backups",
		Usage:     "list the database's backups, and the times that it can be brought back to",
		ArgsUsage: "[FILE]",
		Description: `Each with its label, when it was made, the WAL that it needs, the size of the database and
what it takes in the repository. Nothing is changed. FILE is cluster.yaml unless another
is named.

Exit status: 0, or 5 if no node tells of backups.

Examples:
  slipway backups
  slipway backups cluster.yaml --json | jq -r .to
  slipway backups --from orders-north              # of another cluster, before slipway restore --from`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "from", Usage: "list the backups that the cluster `NAME` made; see backup.from in the topology"},
		}, reachFlags()...),
		BashComplete: completeFiles,
		Action: func(c *cli.Context) error {
			file, err := onlyFile(c)
			if err != nil {
				return err
			}
			s, err := beginCluster(c, file, vault.Options{ReadOnly: true})
			if err != nil {
				return err
			}
			kept, err := listBackups(c, s.cluster)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c, kept)
			}
			return printBackups(c, kept)
		},
	}
}

func listBackups(c *cli.Context, cluster *operations.Cluster) (*operations.Kept, error) {
	if from := c.String("from"); from != "" {
		return operations.BackupsFrom(c.Context, cluster, "", from)
	}
	now, err := cluster.Look(c.Context)
	if err != nil {
		return nil, err
	}
	return operations.Backups(cluster.Plan, now)
}

const secondForm = "2006-01-02 15:04:05"

func printBackups(c *cli.Context, kept *operations.Kept) error {
	out := c.App.Writer
	if kept.From == nil {
		fmt.Fprintf(out, "No backup yet in %s.\n", status.Clean(kept.Where))
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LABEL\tTYPE\tBEGUN (UTC)\tENDED\tDATABASE\tSTORED\tWAL")
	for _, b := range kept.Sets {
		note := ""
		if b.Damaged {
			note = "  DAMAGED: pages with wrong checksums"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s – %s%s\n", status.Clean(b.Label), status.Clean(b.Type), b.Start.UTC().Format(secondForm),
			b.Stop.Sub(b.Start).Round(time.Second), status.Bytes(b.Size), status.Bytes(b.Stored), status.Clean(b.FirstWAL), status.Clean(b.LastWAL), note)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if kept.Running != "" {
		fmt.Fprintf(out, "A %s backup is being made.\n", status.Clean(kept.Running))
	}
	if c.String("from") != "" {
		fmt.Fprintf(out, "\nIn %s. The database can be brought back to any time from %s UTC to the end of the archive: slipway restore --from %s --to TIME.\n",
			status.Clean(kept.Where), kept.From.UTC().Format(secondForm), c.String("from"))
		return nil
	}
	fmt.Fprintf(out, "\nIn %s. The database can be brought back to any time from %s to %s UTC, if the archive has no gap in between (slipway status tells of one).\n",
		status.Clean(kept.Where), kept.From.UTC().Format(secondForm), kept.To.UTC().Format(secondForm))
	return nil
}

func restoreCommand() *cli.Command {
	return &cli.Command{
		Name:      "restore",
		Usage:     "bring the whole database back to what it was at a time",
		ArgsUsage: "[FILE]",
		Description: `One node restores a backup and replays WAL up to the time; every table is opened before
anything else is done; then that node leads, and all others clone it. The database stands
still meanwhile. The former data stay on every node until the restored database runs on
all. --to is a time with its zone (2026-03-01T14:05:00Z, 2026-03-01 14:05:00+01:00), or
latest: the end of the archive, for databases that are lost. All database nodes have to
answer. The cluster's name has to be typed, or given with --confirm.

--from CLUSTER restores what another cluster has backed up: its topology's backup.from says
where that is. All that the database holds now is overwritten; this cluster archives the
restored one under its own name from then on.

--undo gives up a restore that cannot be ended, such as one to a time that the archive
does not reach, and puts the former data back, as long as etcd has not been told to forget
who led.

A restore that has ended is not done again when the command is repeated: what was written
since would be lost. --again does.` + operationHelp + `

Examples:
  slipway restore --to 2026-03-01T14:05:00Z
  slipway restore cluster.yaml --to latest --confirm orders
  slipway restore --to "2026-03-01 14:05:00+01:00" --set 20260222-013000F --dry-run
  slipway restore --from orders-north --to latest
  slipway restore --to latest --again
  slipway restore --undo`,
		Flags: operationFlags(
			&cli.StringFlag{Name: "to", Usage: "a `TIME`, or latest"},
			&cli.StringFlag{Name: "from", Usage: "the `CLUSTER` that made the backup", DefaultText: "this one"},
			&cli.StringFlag{Name: "set", Usage: "the `LABEL` of the backup to begin with", DefaultText: "the newest that was complete by then"},
			&cli.StringFlag{Name: "on", Usage: "the `NODE` that restores", DefaultText: "the primary"},
			&cli.BoolFlag{Name: "again", Usage: "restore once more what was restored last"},
			&cli.BoolFlag{Name: "undo", Usage: "give up a restore, and put the former data back"},
		),
		BashComplete: completeFiles,
		Action: func(c *cli.Context) error {
			file, err := onlyFile(c)
			if err != nil {
				return err
			}
			if c.Bool("undo") == (c.String("to") != "") {
				return fault.New(fault.Usage, "slipway restore takes either --to or --undo").WithMend("say what to bring back, such as --to 2026-03-01T14:05:00Z or --to latest")
			}
			target, err := restoreTarget(c.String("to"))
			if err != nil {
				return err
			}
			s, err := beginCluster(c, file, vault.Options{ReadOnly: true})
			if err != nil {
				return err
			}
			if c.Bool("undo") {
				return runOperation(c, s, operations.RestoreUndo(s.cluster))
			}
			return runOperation(c, s, operations.Restore(s.cluster, database.Request{Target: target, Set: c.String("set"), Node: c.String("on"), From: c.String("from")}, c.Bool("again")))
		},
	}
}

// restoreTarget brings a time into the one form that nodes compare.
func restoreTarget(text string) (string, error) {
	if text == "" || text == database.Latest {
		return text, nil
	}
	for _, form := range []string{time.RFC3339Nano, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999 Z07:00", "2006-01-02 15:04:05.999999999 UTC"} {
		if at, err := time.Parse(form, text); err == nil {
			return at.UTC().Format(time.RFC3339Nano), nil
		}
	}
	return "", fault.New(fault.Usage, "%q is no time with its zone", text).WithMend("write it as in 2026-03-01T14:05:00Z or \"2026-03-01 14:05:00+01:00\"; or latest")
}
