package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

func maintenanceCommand() *cli.Command {
	return &cli.Command{
		Name:      "maintenance",
		Usage:     "have a node give up what others can do instead, and take it up again",
		ArgsUsage: "on|off NODE [FILE]",
		Description: `A node in maintenance leads no database (it hands over first), answers no reads
through the balancers and holds no virtual address, so that it can be worked on or
switched off. It goes on replicating, and voting, and stays in maintenance through
restarts until "off". What is connected to it for reading is disconnected once.

It is refused where the others would not carry the service: fewer than two healthy
database nodes would be left, no other balancer, or no majority of etcd. --force does
it all the same.` + operationHelp + `

Examples:
  slipway maintenance on a-db1
  slipway maintenance on a-lb1 cluster.yaml --yes
  slipway maintenance off a-db1`,
		Flags: operationFlags(
			&cli.BoolFlag{Name: "force", Usage: "also where the others do not carry the service"},
		),
		BashComplete: func(c *cli.Context) {
			if c.NArg() == 0 {
				fmt.Fprintln(c.App.Writer, "on\noff")
				return
			}
			completeOperation(c)
		},
		Action: func(c *cli.Context) error {
			file, rest := fileFirst(c.Args().Slice())
			if len(rest) != 2 || rest[0] != "on" && rest[0] != "off" {
				return fault.New(fault.Usage, "slipway maintenance takes on or off, and one node; it was given %q", strings.Join(rest, " ")).
					WithMend("such as: slipway maintenance on a-db1")
			}
			s, err := beginCluster(c, file, vault.Options{ReadOnly: true})
			if err != nil {
				return err
			}
			if err := s.has(rest[1]); err != nil {
				return err
			}
			if rest[0] == "off" {
				return runOperation(c, s, operations.MaintenanceOff(s.cluster, rest[1]))
			}
			return runOperation(c, s, operations.MaintenanceOn(s.cluster, rest[1], c.Bool("force")))
		},
	}
}
