package main

import (
	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

func switchoverCommand() *cli.Command {
	return &cli.Command{
		Name:      "switchover",
		Usage:     "have another database node lead, in good order",
		ArgsUsage: "[FILE]",
		Description: `The primary stops in good order and the other node, which has all that it has, takes
over; nothing is lost, and writes wait for a few seconds. Without --to, the healthiest
synchronous standby leads. It is refused, with the reason, where no node is fit to lead
or Patroni is paused. Afterwards the former primary streams, and the virtual address
leads to the new one.` + operationHelp + `

Examples:
  slipway switchover                           # away from the node that leads now
  slipway switchover cluster.yaml --to a-db2 --yes
  slipway switchover --site b --dry-run`,
		Flags: operationFlags(
			&cli.StringFlag{Name: "to", Usage: "the `NODE` that is to lead", DefaultText: "the healthiest synchronous standby"},
			&cli.StringFlag{Name: "site", Usage: "the `SITE` whose database is meant", DefaultText: "that of the node, or the one that takes writes"},
		),
		BashComplete: completeOperation,
		Action: func(c *cli.Context) error {
			file, rest := fileFirst(c.Args().Slice())
			if len(rest) > 0 {
				return fault.New(fault.Usage, "slipway switchover takes one argument, the topology's file, and was given %q", rest[0]).
					WithMend("name the node with --to %s", rest[0])
			}
			s, err := beginCluster(c, file, vault.Options{ReadOnly: true})
			if err != nil {
				return err
			}
			if to := c.String("to"); to != "" {
				if err := s.has(to); err != nil {
					return err
				}
			}
			return runOperation(c, s, operations.Switchover(s.cluster, c.String("site"), c.String("to")))
		},
	}
}
