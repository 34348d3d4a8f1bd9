package main

import (
	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/role/mirror"
	"github.com/slipwayhq/slipway/firstboot/vault"
)

func mirrorLoadCommand() *cli.Command {
	return &cli.Command{
		Name:      "load",
		Usage:     "have the cluster's mirror take in the media that are attached to it",
		ArgsUsage: "[FILE]",
		Description: `The node of the role mirror looks at all discs and disks that are attached and not its own, takes
in every volume on them, and publishes the bundle once it is complete. Volumes may come in
any order and on different days.` + operationHelp + `

Examples:
  slipway mirror load
  slipway mirror load cluster.yaml --yes`,
		Flags: operationFlags(
			&cli.BoolFlag{Name: "allow-older", Usage: "go back to an older bundle than the published one"},
		),
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
			return runOperation(c, s, operations.MirrorLoad(s.cluster, mirror.LoadArgs{AllowOlder: c.Bool("allow-older")}))
		},
	}
}
