package main

import (
	"fmt"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

func auditCommand() *cli.Command {
	return &cli.Command{
		Name:      "audit",
		Usage:     "show what the nodes of a cluster were made to do, when and by whom",
		ArgsUsage: "[FILE] [NODE...]",
		Description: `Every change that an administrator makes through the agents stands in the audit log
of the node that made it, before it begins and after it has ended. Without names all
nodes are asked. On a node: sudo firstboot audit.

Exit status: 0 all nodes answered, 5 some did not.

Examples:
  slipway audit
  slipway audit cluster.yaml a-db1 --number 20
  slipway audit --json | jq '.nodes[] | .entries[] | select(.outcome != "done")'`,
		Flags: append([]cli.Flag{
			&cli.IntFlag{Name: "number", Aliases: []string{"n"}, Usage: "show the newest `N` records of each node", Value: 100},
		}, reachFlags()...),
		BashComplete: completeOperation,
		Action:       showAudit,
	}
}

// nodeAudit is a node's answer.
type nodeAudit struct {
	Node    string          `json:"node"`
	Problem string          `json:"problem,omitempty"`
	Entries []actions.Entry `json:"entries"`
}

func showAudit(c *cli.Context) error {
	if n := c.Int("number"); n < 1 || n > 1000 {
		return fault.New(fault.Usage, "--number is from 1 to 1000")
	}
	file, names := fileFirst(c.Args().Slice())
	s, err := beginCluster(c, file, vault.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	if len(names) == 0 {
		for _, n := range s.cluster.Plan.Nodes {
			names = append(names, n.Name)
		}
	}
	for _, name := range names {
		if err := s.has(name); err != nil {
			return err
		}
	}
	all := make([]nodeAudit, len(names))
	var asked sync.WaitGroup
	for i, name := range names {
		all[i] = nodeAudit{Node: name, Entries: []actions.Entry{}}
		asked.Go(func() {
			entries, err := s.cluster.Audit(c.Context, name, c.Int("number"))
			if err != nil {
				all[i].Problem = err.Error()
				return
			}
			all[i].Entries = entries
		})
	}
	asked.Wait()
	if c.Context.Err() != nil {
		return c.Context.Err()
	}
	var silent []string
	for _, n := range all {
		if n.Problem != "" {
			silent = append(silent, n.Node)
		}
	}
	if c.Bool("json") {
		err = printJSON(c, map[string]any{"cluster": s.cluster.Plan.Cluster, "nodes": all})
	} else {
		for _, n := range all {
			fmt.Fprintf(c.App.Writer, "%s\n", n.Node)
			if n.Problem != "" {
				fmt.Fprintf(c.App.Writer, "  %s\n", n.Problem)
			} else {
				fmt.Fprint(c.App.Writer, actions.Text(n.Entries))
			}
		}
	}
	if err == nil && len(silent) > 0 {
		err = fault.New(fault.Network, "no audit log from %s", strings.Join(silent, ", "))
	}
	return err
}
