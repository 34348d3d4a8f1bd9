package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder/mirror/store"
)

func mirrorInitCommand() *cli.Command {
	return &cli.Command{
		Name:  "init",
		Usage: "make an empty mirror that trusts a site's key",
		Description: `"import" does this by itself; a mirror that is to be served before the first bundle comes needs it.
One that is there stays as it is.

Example:
  slipway mirror init --store /srv/slipway --key plant-7.asc`,
		Flags: []cli.Flag{storeFlag(), &cli.StringFlag{Name: "key", Usage: "`FILE` with the site's public key"}},
		Action: func(c *cli.Context) error {
			if err := need(c, "key"); err != nil {
				return err
			}
			dir := c.String("store")
			if store.Exists(dir) {
				fmt.Fprintf(c.App.Writer, "%s is a mirror already\n", dir)
				return nil
			}
			s, _, err := openOrCreate(dir, c.String("key"), false)
			if err != nil {
				return err
			}
			s.Close()
			fmt.Fprintf(c.App.Writer, "%s is an empty mirror\n", dir)
			return nil
		},
	}
}
