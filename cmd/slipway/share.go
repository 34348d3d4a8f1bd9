package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/role/product"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

func shareCommand() *cli.Command {
	return &cli.Command{
		Name:      "share",
		Usage:     "have all nodes of a role take a shared file as it is on one of them",
		ArgsUsage: "[FILE] NODE PATH",
		Description: `Shared files are those that a profile lists under product.shared, such as a broker's
settings. Edit one on a node, then run this: the file as it is there becomes the new
version, and the other nodes take it within half a minute, those that are off when they
are back. What has to be restarted then, is. Running it again changes nothing.

Exit status: 0 done, 2 wrong usage, 5 the node cannot be reached, 9 refused.

Examples:
  slipway share broker1 /var/server/server/settings.py
  slipway share cluster.yaml broker1 /var/server/server/settings.py --json`,
		Flags:        reachFlags(),
		BashComplete: completeOperation,
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			shared := args[max(0, len(args)-1):] // whose name may end as a topology's does
			file, rest := fileFirst(args[:len(args)-len(shared)])
			rest = append(rest, shared...)
			if len(rest) != 2 || !strings.HasPrefix(rest[1], "/") {
				return fault.New(fault.Usage, "slipway share takes a node and the absolute path of a file on it; it was given %q", strings.Join(rest, " ")).
					WithMend("such as: slipway share broker1 /var/server/server/settings.py")
			}
			s, err := beginCluster(c, file, vault.Options{ReadOnly: true})
			if err != nil {
				return err
			}
			if err := s.has(rest[0]); err != nil {
				return err
			}
			result, err := share(c, s.cluster, rest[0], rest[1])
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return json.NewEncoder(c.App.Writer).Encode(result)
			}
			if !result.Changed {
				fmt.Fprintf(c.App.Writer, "%s on %s is version %d already\n", rest[1], rest[0], result.Generation)
				return nil
			}
			fmt.Fprintf(c.App.Writer, "%s on %s is version %d now; the other nodes of its role take it\n", rest[1], rest[0], result.Generation)
			return nil
		},
	}
}

func share(c *cli.Context, cluster *operations.Cluster, node, path string) (product.ShareResult, error) {
	var result product.ShareResult
	err := cluster.Act(c.Context, node, "share", product.ShareArgs{Path: path}, &result, func(line string) {
		fmt.Fprintln(c.App.ErrWriter, line)
	})
	return result, err
}
