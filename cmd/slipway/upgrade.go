package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

func upgradeCommand() *cli.Command {
	return &cli.Command{
		Name:      "upgrade",
		Usage:     "take nodes to the version of an image, one at a time",
		ArgsUsage: "IMAGE [FILE]",
		Description: `IMAGE is an image of the nodes' role in any format, or a directory with one for each
role. The version is put beside the one that runs on all nodes first; only what a
node lacks is sent, and sending goes on where it stopped. Then the nodes start anew,
one at a time: what nobody would miss first, then balancers, replicas, and the primary
last, after handing over. A node that is not well with the new version goes back to the
former one by itself, and the upgrade ends there and says why. What a node keeps (see
slipway inspect, "state") stays.` + operationHelp + `

Examples:
  slipway upgrade out/ --all
  slipway upgrade out/balancer.qcow2 cluster.yaml --node a-lb2
  slipway upgrade out/ --node a-db2 --node a-db3 --rate 20MiB --yes`,
		Flags: operationFlags(
			&cli.StringSliceFlag{Name: "node", Usage: "upgrade `NODE`; may be given several times"},
			&cli.BoolFlag{Name: "all", Usage: "upgrade all nodes"},
			&cli.StringFlag{Name: "rate", Usage: "send at most `SIZE` a second, such as 20MiB", DefaultText: "no limit"},
		),
		BashComplete: completeOperation,
		Action:       upgradeNodes,
	}
}

func upgradeNodes(c *cli.Context) error {
	file, rest := fileFirst(c.Args().Slice())
	names := c.StringSlice("node")
	switch {
	case len(rest) != 1:
		return fault.New(fault.Usage, "slipway upgrade takes an image, or a directory of images, and was given %q", rest).WithMend("for example: slipway upgrade out/ --all")
	case c.Bool("all") == (len(names) > 0):
		return fault.New(fault.Usage, "name the nodes, or all of them").WithMend("use --node NODE, or --all")
	}
	var rate profile.Size
	if text := c.String("rate"); text != "" {
		var err error
		if rate, err = profile.ParseSize(text); err != nil || rate <= 0 {
			return fault.New(fault.Usage, "--rate %s is no size", text).WithMend("for example: --rate 20MiB")
		}
	}
	releases, err := operations.OpenReleases(c.Context, rest[0])
	if err != nil {
		return err
	}
	defer operations.CloseReleases(releases)
	s, err := beginCluster(c, file, vault.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	if err := known(s, names); err != nil {
		return err
	}
	return runOperation(c, s, operations.Upgrade(s.cluster, releases, names, int64(rate)))
}

// known refuses names that are no nodes.
func known(s *clusterSession, names []string) error {
	for _, name := range names {
		if _, err := s.cluster.Plan.Node(name); err != nil {
			return fault.New(fault.Usage, "%w", err).WithMend("its nodes are %s", strings.Join(nodeNames(s.topology), ", "))
		}
	}
	return nil
}

// oneNode begins a command that is given the name of one node.
func oneNode(c *cli.Context) (*clusterSession, string, error) {
	file, rest := fileFirst(c.Args().Slice())
	if len(rest) != 1 {
		return nil, "", fault.New(fault.Usage, "slipway %s takes the name of one node, and was given %q", c.Command.Name, rest)
	}
	s, err := beginCluster(c, file, vault.Options{ReadOnly: true})
	if err == nil {
		err = known(s, rest)
	}
	return s, rest[0], err
}

func rollbackCommand() *cli.Command {
	return &cli.Command{
		Name:      "rollback",
		Usage:     "take a node back to the version that was good before",
		ArgsUsage: "[FILE] NODE",
		Description: `The node starts with the former version, with all that was written to that version's
root file system; what outlives versions stays as it is. That version is on trial until
the node is ready, like any other. On a node that has gone back by itself, the failed
trial is ended. It is refused if there is no former version. Two rollbacks in a row lead
forward again; with --to a node that runs that version already stays with it.` + operationHelp + `

Examples:
  slipway rollback a-lb1
  slipway rollback cluster.yaml a-db2 --yes
  slipway rollback a-db2 --to 20261119-29af0c5f72a7`,
		Flags:        operationFlags(&cli.StringFlag{Name: "to", Usage: "go back to `VERSION` and to no other", DefaultText: "the one that was good before"}),
		BashComplete: completeOperation,
		Action: func(c *cli.Context) error {
			s, node, err := oneNode(c)
			if err != nil {
				return err
			}
			return runOperation(c, s, operations.Rollback(s.cluster, node, c.String("to")))
		},
	}
}

func factoryResetCommand() *cli.Command {
	return &cli.Command{
		Name:      "factory-reset",
		Usage:     "have a node start as it first did",
		ArgsUsage: "[FILE] NODE",
		Description: `What was changed in the node's root file system goes, at the next start, before anything
is mounted. With --data, what outlives versions goes too, but for the node's identity in
its cluster, its seed and its audit log; the node's name has to be typed. It is refused
for nodes whose data the cluster counts on: voters of etcd, and database nodes.` + operationHelp + `

Examples:
  slipway factory-reset a-gw1
  slipway factory-reset cluster.yaml a-mq1 --data
  slipway factory-reset a-mq1 --data --confirm a-mq1`,
		Flags:        operationFlags(&cli.BoolFlag{Name: "data", Usage: "take away what outlives versions too"}),
		BashComplete: completeOperation,
		Action: func(c *cli.Context) error {
			s, node, err := oneNode(c)
			if err != nil {
				return err
			}
			return runOperation(c, s, operations.FactoryReset(s.cluster, node, c.Bool("data")))
		},
	}
}

func versionsCommand() *cli.Command {
	return &cli.Command{
		Name:      "versions",
		Usage:     "show which versions of the image each node has",
		ArgsUsage: "[FILE]",
		Description: `A row for each version: which one runs, which one the node starts from (good), which one
slipway rollback goes to (previous), which one is on trial, and why one has failed.

Exit status: 0 all nodes answered, 5 some did not.

Examples:
  slipway versions
  slipway versions cluster.yaml --json | jq '.nodes[] | {node, versions}'`,
		Flags:        reachFlags(),
		BashComplete: completeFiles,
		Action:       showVersions,
	}
}

// nodeVersions is a node's answer.
type nodeVersions struct {
	Node     string           `json:"node"`
	Role     string           `json:"role"`
	Problem  string           `json:"problem,omitempty"`
	Versions []status.Version `json:"versions"`
}

func showVersions(c *cli.Context) error {
	file, rest := fileFirst(c.Args().Slice())
	if len(rest) > 0 {
		return fault.New(fault.Usage, "slipway versions shows the whole cluster, and was given %q", rest[0])
	}
	s, err := beginCluster(c, file, vault.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	now, err := s.cluster.Look(c.Context)
	if err != nil {
		return err
	}
	all, silent := versionsOf(now)
	if c.Bool("json") {
		err = printJSON(c, map[string]any{"cluster": now.Cluster, "nodes": all})
	} else {
		err = printVersions(c, all)
	}
	if err == nil && len(silent) > 0 {
		err = fault.New(fault.Network, "no answer from %s", strings.Join(silent, ", "))
	}
	return err
}

func versionsOf(now overview.Overview) (all []nodeVersions, silent []string) {
	for _, n := range now.Nodes {
		one := nodeVersions{Node: n.Name, Role: n.Role, Problem: n.Problem, Versions: []status.Version{}}
		if n.Report == nil {
			silent = append(silent, n.Name)
		} else if n.Report.Versions != nil {
			one.Versions = n.Report.Versions
		}
		all = append(all, one)
	}
	return all, silent
}

func printVersions(c *cli.Context, all []nodeVersions) error {
	t := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tROLE\tVERSION\tCREATED\tPOSTGRESQL\tWHAT IT IS")
	for _, n := range all {
		if n.Problem != "" || len(n.Versions) == 0 {
			fmt.Fprintf(t, "%s\t%s\t-\t\t\t%s\n", n.Node, n.Role, status.Clean(n.Problem))
		}
		for i, v := range n.Versions {
			name, role := n.Node, n.Role
			if i > 0 {
				name, role = "", ""
			}
			created := ""
			if !v.Created.IsZero() {
				created = v.Created.UTC().Format("2006-01-02")
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", name, role, status.Clean(v.Version), created, status.Clean(v.PostgreSQL), status.Clean(v.What()))
		}
	}
	return t.Flush()
}
