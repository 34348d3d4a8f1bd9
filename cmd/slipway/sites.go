package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

func promoteSiteCommand() *cli.Command {
	return &cli.Command{
		Name:      "promote-site",
		Usage:     "have another site's database take the writes",
		ArgsUsage: "SITE [FILE]",
		Description: `For when the site that takes the writes is lost, or, with --planned, for switching
over to another site with nothing lost.

It is refused as long as anything of the other site answers, here or at SITE: two sites
that both take writes cannot be put together again. Who must give up a site that is
alive types its name, or gives it with --force-site; --yes does not do. A site that was
given up fences itself as soon as it hears of it, keeps aside what it had written and
SITE had not got, and becomes a standby. docs/operations.md, "Losing a site", tells what
to do before and afterwards.

The new plan is kept in the store: run slipway seed when time allows, so that seeds
written from then on carry it.` + operationHelp + `

Examples:
  slipway promote-site b --planned             # site switchover: both sites are well
  slipway promote-site b                       # site a is lost
  slipway promote-site b --force-site a        # site a is alive, and given up`,
		Flags: operationFlags(
			&cli.BoolFlag{Name: "planned", Usage: "switch over with nothing lost; needs both sites"},
			&cli.StringFlag{Name: "force-site", Usage: "give up the other site, although it is alive; its `NAME`"},
		),
		BashComplete: completeSites,
		Action: func(c *cli.Context) error {
			o := operations.Promotion{
				Planned: c.Bool("planned"), Force: c.String("force-site"),
				Ask: term.IsTerminal(int(os.Stdin.Fd())) || c.IsSet("confirm"),
			}
			if o.Force != "" {
				// The name is the word that would have to be typed.
				if err := c.Set("confirm", o.Force); err != nil {
					return err
				}
			}
			return onSite(c, func(s *clusterSession, site string) operations.Prepare {
				o.Site = site
				return operations.PromoteSite(s.cluster, publisher(s.vault), o)
			})
		},
	}
}

func demoteSiteCommand() *cli.Command {
	return &cli.Command{
		Name:      "demote-site",
		Usage:     "have a site's database take no more writes and follow the other one",
		ArgsUsage: "SITE [FILE]",
		Description: `The primary of SITE stops in good order, so that the other site has all it has, and SITE
becomes a standby. No site takes writes then until one is promoted: slipway promote-site
does that, and with --planned both at once.

Where the plan has another site take the writes already, SITE's nodes are given that
plan, and become standbys by themselves.` + operationHelp + `

Examples:
  slipway demote-site a
  slipway demote-site a cluster.yaml --dry-run`,
		Flags:        operationFlags(),
		BashComplete: completeSites,
		Action: func(c *cli.Context) error {
			return onSite(c, func(s *clusterSession, site string) operations.Prepare {
				return operations.DemoteSite(s.cluster, publisher(s.vault), site)
			})
		},
	}
}

// onSite does an operation on the site that is the command's argument.
func onSite(c *cli.Context, prepare func(s *clusterSession, site string) operations.Prepare) error {
	file, rest := fileFirst(c.Args().Slice())
	if len(rest) != 1 {
		return fault.New(fault.Usage, "slipway %s takes the name of a site, and the topology's file if that is not %s", c.Command.Name, topologyFile).
			WithMend("slipway status tells the sites")
	}
	s, err := beginCluster(c, file, vault.Options{ReadOnly: c.Bool("dry-run")})
	if err != nil {
		return err
	}
	defer s.vault.Close()
	return runOperation(c, s, prepare(s, rest[0]))
}

// publisher keeps a newer plan in the store, before anybody is given it. Seeds that
// are written from then on carry it.
func publisher(v *vault.Vault) operations.Publish {
	return func(p *plan.Plan) (plan.Signed, error) {
		if p != nil {
			if err := v.AddPlan(p); err != nil {
				return plan.Signed{}, err
			}
			for _, name := range v.Nodes() {
				if err := v.UseNewestPlan(name); err != nil {
					return plan.Signed{}, err
				}
			}
			if err := v.Save(); err != nil {
				return plan.Signed{}, err
			}
		}
		return v.NewestPlan()
	}
}

// completeSites offers a topology's sites.
func completeSites(c *cli.Context) {
	file, rest := fileFirst(c.Args().Slice())
	if t, err := topology.Load(file); err == nil && len(rest) == 0 {
		for _, s := range t.Sites {
			fmt.Fprintln(c.App.Writer, s.Name)
		}
	}
	completeFiles(c)
}
