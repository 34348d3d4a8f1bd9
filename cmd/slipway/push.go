package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/registry"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

func pushCommand() *cli.Command {
	return &cli.Command{
		Name:      "push",
		Usage:     "put finished layers into an OCI registry",
		ArgsUsage: "REPOSITORY ROLE...",
		Description: `Uploads the base, the package layers and the boot loader of the roles, as the
last build left them in the cache. "slipway build --layers REPOSITORY" takes them from
there. Credentials are those of docker login or of a credential helper.

Examples:
  slipway push ci.example.org/images/layers --all
  slipway push ci.example.org/images/layers db-master balancer
  slipway push localhost:5000/layers --all --dry-run   # what would go, and how large it is`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "push the layers of every role"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be pushed, and push nothing"},
			&cli.BoolFlag{Name: "json", Usage: "print what was pushed as JSON"},
			lockFlag(),
		},
		BashComplete: completeRoles,
		Action:       push,
	}
}

func push(c *cli.Context) error {
	if !c.Args().Present() || c.Bool("all") == (c.NArg() > 1) {
		return fault.New(fault.Usage, "name a repository, then the roles, or all of them with --all").
			WithMend("see slipway push --help")
	}
	repository, err := registry.New(c.Args().First())
	if err != nil {
		return err
	}
	s, err := findProject(c)
	if err != nil {
		return err
	}
	defer s.close()
	d, err := s.distribution()
	if err != nil {
		return err
	}
	store, err := openCache(c)
	if err != nil {
		return err
	}
	defer store.Close()
	req := builder.Request{Project: s.project, LockFile: s.lockFile(c), Roles: c.Args().Tail()}
	means := builder.Means{Cache: store, Distribution: d, Progress: s.progress, Log: s.log, Registry: repository}
	var pushed []builder.Pushed
	if c.Bool("dry-run") {
		pushed, err = builder.PlanPush(req, means)
	} else {
		pushed, err = builder.Push(c.Context, req, means)
	}
	if err != nil {
		return err
	}
	s.close()
	if c.Bool("json") {
		return printJSON(c, pushed)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	var total int64
	for _, p := range pushed {
		fmt.Fprintf(w, "%s\t%s:%s\t%s\n", p.Name, repository, p.Tag, progress.Size(p.Size))
		total += p.Size
	}
	w.Flush()
	what := "pushed"
	if c.Bool("dry-run") {
		what = "would be pushed"
	}
	fmt.Fprintf(c.App.Writer, "%d artifacts, %s, %s\n", len(pushed), progress.Size(total), what)
	return nil
}
