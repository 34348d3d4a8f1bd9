package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// nodeFlags are those of operations that change seeds, with their own before them.
func nodeFlags(own ...cli.Flag) []cli.Flag {
	return operationFlags(append(own,
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`DIR` of the seeds", Value: "seeds", DefaultText: "seeds, or the lab's own"},
	)...)
}

func patienceFlag() cli.Flag {
	return &cli.DurationFlag{Name: "timeout", Usage: "how long the fresh machine may take to be ready `TIME`", Value: 30 * time.Minute}
}

func addCommand() *cli.Command {
	return &cli.Command{
		Name: "add", Usage: "bring a further node into a running cluster", ArgsUsage: "[FILE] NODE",
		Description: `Describe the node in the file first. Its seed is written, the running nodes get the
new plan and whatever certificates it asks of them, and it is said which image and which
seed to start the fresh machine with. The command waits until the node is ready. One
that votes joins etcd as a learner and votes once it has all that the others have.` + operationHelp + `

Examples:
  slipway add a-db3
  slipway add cluster.yaml a-lb2 --yes --timeout 1h`,
		Flags: nodeFlags(patienceFlag()), BashComplete: completeOperation,
		Action: func(c *cli.Context) error {
			h, name, err := beginHome(c, 1)
			if err != nil {
				return err
			}
			defer h.Vault.Close()
			return h.run(c, operations.Add(h.Home, name[0]))
		},
	}
}

func replaceCommand() *cli.Command {
	return &cli.Command{
		Name: "replace", Usage: "have a fresh machine take a dead node's place", ArgsUsage: "[FILE] NODE",
		Description: `For a machine that is gone for good: what it has left in etcd and Patroni is taken away,
its certificates are revoked, and a seed with new ones is written for a fresh machine with
the same name and address. The command waits until that is ready. If the machine before
comes back, the others refuse it, and it stops by itself. Refused while the node answers.` + operationHelp + `

Examples:
  slipway replace a-db2
  slipway replace cluster.yaml a-db2 --yes`,
		Flags: nodeFlags(patienceFlag()), BashComplete: completeOperation,
		Action: func(c *cli.Context) error {
			h, name, err := beginHome(c, 1)
			if err != nil {
				return err
			}
			defer h.Vault.Close()
			return h.run(c, operations.Replace(h.Home, name[0]))
		},
	}
}

func removeCommand() *cli.Command {
	return &cli.Command{
		Name: "remove", Usage: "take a node out of a running cluster", ArgsUsage: "[FILE] NODE",
		Description: `Shows what the cluster loses with the node, then: another database leads if this one
does, its services stop, it leaves etcd, Patroni and the plan, its certificates are
revoked, and its lines are taken out of the file; comments and layout of the rest stay.
Refused where the file would be no cluster without it, or the others no quorum.

With --dead, a node that does not answer and never will.` + operationHelp + `

Examples:
  slipway remove a-db3
  slipway remove cluster.yaml a-lb2 --dead --yes`,
		Flags:        nodeFlags(&cli.BoolFlag{Name: "dead", Usage: "the node does not answer, and never will"}),
		BashComplete: completeOperation,
		Action: func(c *cli.Context) error {
			h, names, err := beginHome(c, 1)
			if err != nil {
				return err
			}
			defer h.Vault.Close()
			r, err := h.removal(names[0], c.Bool("dead"))
			if err != nil {
				return err
			}
			return h.run(c, operations.Remove(h.Home, r))
		},
	}
}

func rotateCommand() *cli.Command {
	return &cli.Command{
		Name: "rotate", Usage: "exchange the certificates or passwords of a running cluster",
		Subcommands: []*cli.Command{
			{
				Name: "certificates", Usage: "give all nodes new certificates and keys", ArgsUsage: "[FILE]",
				Description: `One node after the other gets new ones over its agent, keeps them above those of its
seed, and has its services read them anew; none is restarted. The seeds are written anew,
too. The authorities stay.` + operationHelp + `

Examples:
  slipway rotate certificates
  slipway rotate certificates cluster.yaml --yes`,
				Flags: nodeFlags(), BashComplete: completeOperation,
				Action: func(c *cli.Context) error {
					h, _, err := beginHome(c, 0)
					if err != nil {
						return err
					}
					defer h.Vault.Close()
					return h.run(c, operations.RotateCertificates(h.Home))
				},
			},
			{
				Name: "secrets", Usage: "give passwords new values", ArgsUsage: "[FILE] [NAME...]",
				Description: `All passwords that the cluster's databases have, or those that are named (slipway secret
list). The primary takes them first, then every other node; connections that are open go
on. Applications need their new password (slipway secret show) as soon as this runs.` + operationHelp + `

Examples:
  slipway rotate secrets
  slipway rotate secrets cluster.yaml database-app
  slipway rotate secrets postgres-replication postgres-rewind --yes`,
				Flags: nodeFlags(), BashComplete: completeFiles,
				Action: func(c *cli.Context) error {
					h, names, err := beginHome(c, -1)
					if err != nil {
						return err
					}
					defer h.Vault.Close()
					return h.run(c, operations.RotateSecrets(h.Home, names))
				},
			},
		},
	}
}

// home is what operations need that change which nodes there are.
type home struct {
	*operations.Home
	session *clusterSession
}

// beginHome opens store and cluster. The command takes a file and as many names as
// want; -1: any number.
func beginHome(c *cli.Context, want int) (*home, []string, error) {
	file, names := fileFirst(c.Args().Slice())
	if want >= 0 && len(names) != want {
		mend := "see " + c.Command.HelpName + " --help"
		if want == 1 {
			mend = "run: " + c.Command.HelpName + " " + file + " NODE"
		}
		return nil, nil, fault.New(fault.Usage, "%s takes %d names behind the file, and was given %d", c.Command.HelpName, want, len(names)).WithMend("%s", mend)
	}
	s, err := beginCluster(c, file, vault.Options{})
	if err != nil {
		return nil, nil, err
	}
	h := &home{session: s, Home: &operations.Home{Cluster: s.cluster, Topology: s.topology, Vault: s.vault, Patience: c.Duration("timeout")}}
	inLab := false
	if !c.Bool("direct") {
		if inLab, err = s.place.Runs(); err != nil {
			s.vault.Close()
			return nil, nil, err
		}
	}
	out, options := c.String("output"), seeding.Options{}
	if inLab && !c.IsSet("output") {
		key, err := labKey(s.place, s.topology.Name)
		if err != nil {
			s.vault.Close()
			return nil, nil, err
		}
		out, options = s.place.Seeds(), seeding.Options{Formats: []seeding.Format{seeding.NoCloud}, ExtraKeys: []string{key}}
	}
	h.Seed = func(ctx context.Context, t *topology.Topology, o seeding.Options) (*seeding.Result, error) {
		o.Formats, o.ExtraKeys = options.Formats, options.ExtraKeys
		return seeding.Write(ctx, t, s.vault, out, o)
	}
	h.Instruct = func(n topology.Node) []string { return instruct(n, file, out, inLab, s.vault.Replacing(n.Name)) }
	return h, names, nil
}

// instruct says how a node gets its machine. A machine of the lab that is replaced
// loses its disk first.
func instruct(n topology.Node, file, seeds string, inLab, replaced bool) []string {
	if inLab {
		lines := []string{"start its machine in the lab now, from another terminal:"}
		if replaced {
			lines = append(lines, fmt.Sprintf("  slipway down %s %s --destroy", file, n.Name))
		}
		return append(lines, fmt.Sprintf("  slipway up %s %s", file, n.Name))
	}
	return []string{
		fmt.Sprintf("start a fresh machine for %s (%s) now:", n.Name, n.Address()),
		fmt.Sprintf("  image  out/%s.qcow2 or out/%s.ova", n.Role, n.Role),
		fmt.Sprintf("  seed   %s, or another file of %s there (docs/seeds.md)", filepath.Join(seeds, n.Name+".nocloud.iso"), n.Name),
	}
}

// run does an operation with the means of a home.
func (h *home) run(c *cli.Context, prepare operations.Prepare) error {
	return runOperation(c, h.session, prepare)
}

// removal works out what cluster.yaml is without a node. It may have been edited
// already, by its author or by a run that was interrupted.
func (h *home) removal(name string, dead bool) (operations.Removal, error) {
	r := operations.Removal{Node: name, Dead: dead, Without: h.Topology, Edited: true, Write: func() error { return nil }}
	before, err := h.Vault.PlanWith(name)
	if err != nil {
		return r, err
	}
	if before != nil {
		if n, err := before.Node(name); err == nil {
			h.Cluster.Also = []plan.Node{n}
		}
	}
	if _, there := h.Topology.Node(name); !there {
		return r, nil
	}
	file, err := filepath.EvalSymlinks(h.session.file)
	if err != nil {
		return r, fault.New(fault.Input, "reading the topology: %w", err)
	}
	data, err := topology.ReadFile(file)
	if err != nil {
		return r, err
	}
	text, after, err := topology.Without(h.session.file, data, name)
	if err != nil {
		return r, err
	}
	r.Without, r.Edited = after, false
	r.Write = func() error {
		mode, err := modeOf(file)
		if err != nil {
			return err
		}
		now, err := topology.ReadFile(file)
		if err != nil {
			return err
		}
		if string(now) != string(data) {
			return fault.New(fault.Input, "%s was changed while this ran", h.session.file).WithMend("run the same command again")
		}
		return atomicfile.WriteBytes(file, mode, text)
	}
	return r, nil
}

func modeOf(file string) (os.FileMode, error) {
	info, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	return info.Mode().Perm(), nil
}
