package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/internal/atomicfile"
)

func screenshotCommand() *cli.Command {
	return &cli.Command{
		Name:      "screenshot",
		Usage:     "save the screen of a node of the lab",
		ArgsUsage: "CLUSTER.YAML NODE",
		Description: `Writes what the node shows on its screen as a PNG file.

Examples:
  slipway screenshot cluster.yaml a-db1              # a-db1.png
  slipway screenshot cluster.yaml a-db1 -o - | feh -`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE` to write, - for standard output", DefaultText: "NODE.png"},
		},
		BashComplete: completeNodes,
		Action: func(c *cli.Context) error {
			l, name, err := beginNode(c)
			if err != nil {
				return err
			}
			picture, err := l.client.Screenshot(c.Context, name)
			if err != nil {
				return err
			}
			file := c.String("output")
			switch file {
			case "-":
				_, err := c.App.Writer.Write(picture)
				return err
			case "":
				file = name + ".png"
			}
			if err := atomicfile.WriteBytes(file, 0o644, picture); err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, file)
			return nil
		},
	}
}
