package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder/inspect"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show what is in an image: versions, layers, packages, sizes",
		ArgsUsage: "IMAGE",
		Description: `Reads the image file itself, qcow2, raw, VMDK or OVA; nothing is unpacked.

Examples:
  slipway inspect out/db-master.ova
  slipway inspect --packages out/balancer.qcow2
  slipway inspect --verify --json download.ova   # exit status 6 if a layer is damaged`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "packages", Usage: "list every package"},
			&cli.BoolFlag{Name: "verify", Usage: "read every layer and check its hash"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		BashComplete: completeFiles,
		Action: func(c *cli.Context) error {
			im, err := openImage(c)
			if err != nil {
				return err
			}
			defer im.Close()
			// The report is printed even of a damaged image: it says which layer.
			var damage error
			if c.Bool("verify") {
				damage = im.Verify(c.Context)
			}
			if c.Bool("json") {
				err = printJSON(c, im)
			} else {
				err = im.Text(c.App.Writer, c.Bool("packages"))
			}
			if err != nil {
				return err
			}
			return damage
		},
	}
}

// openImage opens the one image that the command names.
func openImage(c *cli.Context) (*inspect.Image, error) {
	if c.NArg() != 1 {
		return nil, fault.New(fault.Usage, "slipway %s takes one image file, not %d", c.Command.Name, c.NArg()).
			WithMend("see slipway %s --help", c.Command.Name)
	}
	return inspect.Open(c.Args().First())
}

func diffCommand() *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "show what changed between two images or two locks",
		ArgsUsage: "A B",
		Description: `Compares packages, and of two images the layers and files too.

Examples:
  slipway diff old/db-master.ova out/db-master.qcow2
  git show HEAD~1:images.lock > /tmp/old.lock && slipway diff /tmp/old.lock images.lock
  slipway diff --exit-code a.qcow2 b.qcow2       # exit status 8 if they differ`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "exit-code", Usage: "end with exit status 8 if anything differs"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		BashComplete: completeFiles,
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return fault.New(fault.Usage, "slipway diff takes two files, not %d", c.NArg()).WithMend("see slipway diff --help")
			}
			d, err := inspect.Diff(c.Context, c.Args().Get(0), c.Args().Get(1))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				err = printJSON(c, d)
			} else {
				err = d.Text(c.App.Writer)
			}
			if err == nil && c.Bool("exit-code") && !d.None() {
				return fault.New(fault.Drift, "%s and %s differ", c.Args().Get(0), c.Args().Get(1))
			}
			return err
		},
	}
}

func sbomCommand() *cli.Command {
	return &cli.Command{
		Name:      "sbom",
		Usage:     "write an image's software bill of materials as SPDX 2.3 JSON",
		ArgsUsage: "IMAGE",
		Description: `Examples:
  slipway sbom out/db-master.ova > db-master.spdx.json
  slipway sbom --output db-master.spdx.json out/db-master.ova`,
		Flags:        []cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE` instead of standard output"}},
		BashComplete: completeFiles,
		Action: func(c *cli.Context) error {
			im, err := openImage(c)
			if err != nil {
				return err
			}
			defer im.Close()
			if file := c.String("output"); file != "" {
				return atomicfile.Write(file, 0o644, func(f *os.File) error { return im.SBOM(f) })
			}
			return im.SBOM(c.App.Writer)
		},
	}
}
