package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/internal/fault"
)

func auditCommand(stdout io.Writer) *cli.Command {
	return &cli.Command{
		Name:  "audit",
		Usage: "show what administrators and other nodes made this node do",
		Description: `Reads the audit log of this node, which root alone may. From where the
administrator's store is, slipway audit asks all nodes.`,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "number", Aliases: []string{"n"}, Usage: "show the newest `N` records", Value: 100},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error { return fault.New(fault.Usage, "%w", err) },
		Action: func(c *cli.Context) error {
			if c.Args().Present() || c.Int("number") < 1 {
				return fault.New(fault.Usage, "audit takes no argument, and --number is 1 at least")
			}
			entries, err := (&actions.Log{Path: actions.LogPath}).Read(c.Int("number"))
			switch {
			case errors.Is(err, os.ErrPermission):
				return fault.New(fault.Usage, "root alone may read the audit log").WithMend("run: sudo firstboot audit")
			case err != nil:
				return err
			case c.Bool("json"):
				out := json.NewEncoder(stdout)
				out.SetIndent("", "  ")
				return out.Encode(entries)
			}
			_, err = fmt.Fprint(stdout, actions.Text(entries))
			return err
		},
	}
}
