package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
)

// topologyFile is where a cluster is described, unless another file is named.
const topologyFile = "cluster.yaml"

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "check cluster.yaml, and tell what it amounts to",
		ArgsUsage: "[FILE]",
		Description: `Reports every mistake at once, each with its line, its field and how to mend it,
and ends with exit status 3 if there is any. Of a file without one it says who
votes, who makes the database and where virtual addresses sit. Warnings are what
may be meant as it stands. FILE is cluster.yaml unless another is named.

Examples:
  slipway check
  slipway check examples/postgres-ha/cluster.yaml
  slipway check --json cluster.yaml     # mistakes, warnings and the plan`,
		Flags:        []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print mistakes, warnings and the plan as JSON"}},
		BashComplete: completeFiles,
		Action:       check,
	}
}

// verdict is what check says as JSON.
type verdict struct {
	File     string            `json:"file"`
	OK       bool              `json:"ok"`
	Mistakes topology.Mistakes `json:"mistakes"`
	Warnings topology.Mistakes `json:"warnings"`
	Plan     *plan.Plan        `json:"plan,omitempty"`
}

func check(c *cli.Context) error {
	file, err := fileOrDefault(c)
	if err != nil {
		return err
	}
	data, err := topology.ReadFile(file)
	if err != nil {
		return err
	}
	t, mistakes := topology.Parse(file, data)
	if c.Bool("json") {
		v := verdict{File: file, OK: t != nil, Mistakes: append(topology.Mistakes{}, mistakes.Errors()...), Warnings: append(topology.Mistakes{}, mistakes.Warnings()...)}
		if t != nil {
			v.Plan = t.Plan()
		}
		if err := printJSON(c, v); err != nil {
			return err
		}
		return mistakes.Err()
	}
	for _, w := range mistakes.Warnings() {
		fmt.Fprintln(c.App.ErrWriter, w)
	}
	if t == nil {
		return mistakes.Err()
	}
	return describePlan(c.App.Writer, t.Plan())
}

// fileOrDefault is the file that a command names, or cluster.yaml.
func fileOrDefault(c *cli.Context) (string, error) {
	switch c.NArg() {
	case 0:
		return topologyFile, nil
	case 1:
		return c.Args().First(), nil
	}
	return "", fault.New(fault.Usage, "%s takes one file, not %d", c.Command.HelpName, c.NArg()).
		WithMend("see %s --help", c.Command.HelpName)
}

// describePlan tells people what a topology amounts to.
func describePlan(w io.Writer, p *plan.Plan) error {
	tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tab, "cluster %s: %s in %s\n", p.Cluster, count(len(p.Nodes), "node"), count(len(p.Sites), "site"))
	for _, s := range p.Sites {
		fmt.Fprintf(tab, "\nsite %s%s\n", s.Name, siteSummary(s))
		for _, n := range p.Nodes {
			if n.Site == s.Name {
				fmt.Fprintf(tab, "  %s\t%s\t%s\t%s\n", n.Name, n.Role, n.Address, strings.Join(duties(p, s, n), ", "))
			}
		}
	}
	if len(p.VIPs) > 0 {
		fmt.Fprintln(tab, "\nvirtual addresses")
	}
	for _, v := range p.VIPs {
		ports := fmt.Sprintf("%d leads to the primary", v.ReadWrite)
		if v.ReadOnly > 0 {
			ports += fmt.Sprintf(", %d to the replicas", v.ReadOnly)
		}
		if v.HTTPS > 0 {
			ports += fmt.Sprintf(", %d and %d to the brokers", v.HTTP, v.HTTPS)
		}
		if v.Gateway > 0 {
			ports += fmt.Sprintf(", %d and %d to the gateways", v.Gateway, v.Tunnel)
		}
		where := "site " + v.Site
		if v.Moves() {
			where = "whichever of the sites " + strings.Join(v.Sites, " and ") + " takes the writes"
		}
		fmt.Fprintf(tab, "  %s\t%s\ton the %s of %s, VRRP id %d\t%s\n", v.Name, v.Address, v.On, where, v.RouterID, ports)
	}
	if len(p.Databases) > 0 {
		fmt.Fprintln(tab, "\ndatabases")
	}
	for _, d := range p.Databases {
		fmt.Fprintf(tab, "  %s\towned by %s\n", d.Name, d.Owner)
	}
	clients := make([]string, len(p.Clients))
	for i, c := range p.Clients {
		clients[i] = c.String()
	}
	fmt.Fprintf(tab, "\nclients are let in from %s\n", strings.Join(clients, ", "))
	return tab.Flush()
}

func siteSummary(s plan.Site) string {
	var parts []string
	switch {
	case s.StandbyOf != "":
		parts = append(parts, "standby of site "+s.StandbyOf)
	case s.Bootstrap != "":
		parts = append(parts, "writable database")
	}
	if n := len(s.Consensus); n > 0 {
		parts = append(parts, fmt.Sprintf("%s, bears the loss of %d", count(n, "vote"), (n-1)/2))
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, "; ")
}

// duties are what a node does beside its role.
func duties(p *plan.Plan, s plan.Site, n plan.Node) []string {
	var out []string
	if slices.Contains(s.Consensus, n.Name) {
		out = append(out, "votes")
	}
	if s.Bootstrap == n.Name {
		if s.StandbyOf == "" {
			out = append(out, "makes the database")
		} else {
			out = append(out, "clones site "+s.StandbyOf)
		}
	}
	for _, v := range p.HeldBy(n.Name) {
		out = append(out, "may hold "+v.Name)
	}
	return out
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
