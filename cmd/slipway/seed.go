package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

func seedCommand() *cli.Command {
	return &cli.Command{
		Name:      "seed",
		Usage:     "write the seeds that make machines the nodes of a cluster",
		ArgsUsage: "[FILE]",
		Description: `Writes for every node a NoCloud ISO, a config drive and OVF properties, all with the
same content: names, network, users, and the node's part in its cluster with its
certificates, keys and passwords. Those are made once and kept in the store beside
the file, which also holds the authorities' keys: keep it as safe as the cluster.

Run it again after every change of the file. What need not change stays as it is:
a node that is added gets a seed, and the others learn of it from their peers.
FILE is cluster.yaml unless another is named.

Examples:
  slipway seed                                     # into seeds/, store in cluster.store/
  slipway seed cluster.yaml --dry-run              # what would change, and for whom
  slipway seed cluster.yaml --node a-db3           # this node's seed alone
  slipway seed cluster.yaml --renew                # new certificates and keys for all nodes
  slipway seed cluster.yaml --prune                # drop what belongs to nodes that are gone
  slipway seed cluster.yaml --age-recipient age1…  # encrypt the store from now on

docs/seeds.md tells which file goes where on which hypervisor.`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`DIR` for the seeds", Value: "seeds"},
			&cli.StringFlag{Name: "format", Usage: "comma-separated `LIST` of nocloud, configdrive, ovf", Value: "nocloud,configdrive,ovf"},
			&cli.StringSliceFlag{Name: "node", Usage: "write the seed of the node `NAME` alone; may be given several times"},
			&cli.BoolFlag{Name: "all", Usage: "write every seed, changed or not"},
			&cli.BoolFlag{Name: "renew", Usage: "make new certificates and keys"},
			&cli.StringSliceFlag{Name: "anew", Usage: "let `SITE` form its etcd anew, after all of its members were lost with their disks; may be given again"},
			&cli.BoolFlag{Name: "prune", Usage: "remove seeds and keys of nodes that the file no longer has"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be written, and write nothing"},
			&cli.BoolFlag{Name: "json", Usage: "print what was written as JSON"},
			&cli.StringSliceFlag{Name: "age-recipient", Usage: "encrypt the store for the age public key `KEY`; may be given several times"},
			&cli.BoolFlag{Name: "age-passphrase", Usage: "encrypt the store with a passphrase"},
		}, storeFlags()...),
		BashComplete: completeFiles,
		Action:       writeSeeds,
	}
}

func writeSeeds(c *cli.Context) error {
	path, err := fileOrDefault(c)
	if err != nil {
		return err
	}
	if c.Bool("all") && len(c.StringSlice("node")) > 0 {
		return fault.New(fault.Usage, "--all and --node exclude each other")
	}
	o := seeding.Options{Nodes: c.StringSlice("node"), All: c.Bool("all"), Renew: c.Bool("renew"), Prune: c.Bool("prune"), Anew: c.StringSlice("anew"), DryRun: c.Bool("dry-run")}
	for _, name := range strings.Split(c.String("format"), ",") {
		f, err := seeding.ParseFormat(strings.TrimSpace(name))
		if err != nil {
			return err
		}
		o.Formats = append(o.Formats, f)
	}
	s, err := begin(c)
	if err != nil {
		return err
	}
	defer s.close()
	t, err := topology.Load(path)
	if err != nil {
		return err
	}
	for _, w := range t.Warnings {
		s.log.Warn(strings.TrimSpace(w.String()))
	}
	v, err := openStore(c, path, vault.Options{Cluster: t.Name, Create: true, ReadOnly: o.DryRun,
		Recipients: c.StringSlice("age-recipient"), Encrypt: c.Bool("age-passphrase")})
	if err != nil {
		return err
	}
	defer v.Close()
	s.log.Debugf("store %s of cluster %s, id %s", v.Dir(), v.Cluster(), v.ID())
	r, err := seeding.Write(c.Context, t, v, c.String("output"), o)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c, r)
	}
	return printSeeds(c.App.Writer, r, v.Encrypted())
}

// printSeeds tells what was written, and what is left to be done.
func printSeeds(w io.Writer, r *seeding.Result, encrypted bool) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, n := range r.Nodes {
		state, until := string(n.State), ""
		if r.DryRun && (n.State == seeding.Written || n.State == seeding.Removed) {
			state = "to be " + state
		}
		if n.Expires != nil {
			until = "certificates until " + n.Expires.Format(time.DateOnly)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", n.Node, state, until, strings.Join(n.Reasons, "; "))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "cluster %s, id %.12s, plan %d, seeds in %s\n", r.Cluster, r.ID, r.Generation, r.Dir)
	say := func(when bool, format string, args ...any) {
		if when {
			fmt.Fprintf(w, format+"\n", args...)
		}
	}
	written := r.Count(seeding.Written)
	say(r.DryRun, "Nothing was written: this was a dry run.")
	say(!r.DryRun && written > 0 && !r.NewStore, "Give the %d new seeds to their nodes; a running node takes its seed up without a restart.", written)
	say(len(r.Learn) > 0, "The other nodes keep their seeds: they learn the new plan from their peers.")
	say(r.Count(seeding.Outdated) > 0, "Run it without --node for the seeds that are outdated.")
	say(r.Count(seeding.Leftover) > 0, "Run it with --prune to remove the seeds and keys of nodes that are gone.")
	say(r.NewStore && !r.DryRun, "Keep %s: whoever has it has the cluster, and without it no node can be added.", r.Store)
	say(r.NewStore && !r.DryRun && !encrypted, "It is not encrypted; --age-recipient KEY or --age-passphrase does that.")
	return nil
}
