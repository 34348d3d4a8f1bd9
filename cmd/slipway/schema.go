package main

import (
	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
)

func schemaCommand() *cli.Command {
	return &cli.Command{
		Name:  "schema",
		Usage: "print the JSON Schema of cluster.yaml, for editors",
		Description: `Editors that know JSON Schema complete fields and underline mistakes as they are
typed. The YAML language server takes it from a line at the top of the file:
  # yaml-language-server: $schema=cluster.schema.json

Examples:
  slipway schema > cluster.schema.json`,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fault.New(fault.Usage, "slipway schema takes no argument").WithMend("see slipway schema --help")
			}
			_, err := c.App.Writer.Write(topology.Schema())
			return err
		},
	}
}
