package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
	"github.com/slipwayhq/slipway/qemu-tests/drill/faults"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

func injectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inject",
		Usage:     "make a fault on nodes of a lab",
		ArgsUsage: "CLUSTER.YAML FAULT NODE...",
		Description: `Does to nodes of a running lab what "slipway drill" does to a cluster of its own:
power cuts, killed processes, partitions, full disks, wrong clocks. "slipway drill
--list" says which faults there are. A fault lasts until "slipway heal", or as long as
--for says; then, and with Ctrl-C, everything that lasts is healed.

The faults of disks but disk-full need a lab of "slipway up --volatile".

Examples:
  slipway inject cluster.yaml kill-postgres a-db1
  slipway inject cluster.yaml partition a-db1 --for 30s
  slipway inject cluster.yaml power-cut a-db1 a-db2    # until slipway heal cluster.yaml`,
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "for", Usage: "wait for `TIME`, then heal", DefaultText: "until slipway heal"},
			&cli.BoolFlag{Name: "json", Usage: "print what was done as JSON"},
		},
		BashComplete: completeFaults,
		Action:       inject,
	}
}

func healCommand() *cli.Command {
	return &cli.Command{
		Name:      "heal",
		Usage:     "undo the faults of a lab",
		ArgsUsage: "[CLUSTER.YAML]",
		Description: `Undoes all that "slipway inject" has done and that lasts, the last fault first:
networks are whole again, disks have room, clocks are right, machines whose power was cut
have power.

Examples:
  slipway heal cluster.yaml`,
		Flags:        []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print what was undone as JSON"}},
		BashComplete: completeFiles,
		Action: func(c *cli.Context) error {
			l, err := beginLab(c)
			if err != nil {
				return err
			}
			defer l.close()
			if len(l.names) > 0 {
				return fault.New(fault.Usage, "slipway heal undoes all faults of the lab, and takes no nodes")
			}
			healed, err := l.client.Heal(c.Context)
			if err != nil {
				return err
			}
			return printHealed(c, healed)
		},
	}
}

// completeFaults offers faults behind the file's name, and then nodes.
func completeFaults(c *cli.Context) {
	if c.NArg() != 1 || strings.HasPrefix(c.Args().First(), "-") {
		completeNodes(c)
		return
	}
	for _, f := range faults.All() {
		fmt.Fprintln(c.App.Writer, f.Name)
	}
}

func inject(c *cli.Context) (err error) {
	if c.NArg() < 3 {
		return fault.New(fault.Usage, "name a topology, a fault and the nodes that it hits").
			WithMend("run: slipway inject CLUSTER.YAML FAULT NODE...; slipway drill --list says which faults there are")
	}
	name := c.Args().Get(1)
	if _, err := faults.Named([]string{name}); err != nil {
		return err
	}
	if c.IsSet("for") && c.Duration("for") <= 0 {
		return fault.New(fault.Usage, "--for wants a time such as 30s, not %v", c.Duration("for"))
	}
	l, err := beginLabOf(c, c.Args().First(), c.Args().Slice()[2:])
	if err != nil {
		return err
	}
	defer l.close()
	slices.Sort(l.names)
	l.names = slices.Compact(l.names)
	made, err := l.client.Inject(c.Context, name, l.names)
	if err != nil {
		return err
	}
	if made.Lasts && c.IsSet("for") {
		return l.holdAndHeal(c, made)
	}
	l.close()
	if c.Bool("json") {
		return printJSON(c, made)
	}
	until := ""
	if made.Lasts {
		until = ", until: slipway heal " + l.file
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s of %s%s\n", made.Name, strings.Join(made.Nodes, ", "), until)
	return err
}

// healTime bounds the healing after an interruption.
const healTime = 3 * time.Minute

// holdAndHeal waits for as long as --for says or until Ctrl-C, and heals in any case.
func (l *labSession) holdAndHeal(c *cli.Context, made daemon.Fault) error {
	task := l.progress.Start(fmt.Sprintf("%s of %s for %v", made.Name, strings.Join(made.Nodes, ", "), c.Duration("for")), 0, progress.Items)
	select {
	case <-c.Context.Done():
	case <-time.After(c.Duration("for")):
	}
	interrupted := c.Context.Err()
	task.Done(interrupted)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context), healTime)
	defer cancel()
	healed, err := l.client.Heal(ctx)
	l.close()
	if err = cmp.Or(err, interrupted); err != nil {
		return err
	}
	return printHealed(c, healed)
}

func printHealed(c *cli.Context, healed []daemon.Fault) error {
	if c.Bool("json") {
		return printJSON(c, healed)
	}
	if len(healed) == 0 {
		_, err := fmt.Fprintln(c.App.Writer, "there was no fault to heal")
		return err
	}
	for _, f := range healed {
		if _, err := fmt.Fprintf(c.App.Writer, "healed: %s of %s, after %v\n", f.Name, strings.Join(f.Nodes, ", "), time.Since(f.Since).Round(time.Second)); err != nil {
			return err
		}
	}
	return nil
}
