package main

import (
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/mirror"
	"github.com/slipwayhq/slipway/builder/mirror/serve"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/builder/registry"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

func buildCommand() *cli.Command {
	return &cli.Command{
		Name:      "build",
		Usage:     "make images of roles from images.lock",
		ArgsUsage: "ROLE...",
		Description: `Makes one image file for each role and format. What did not change since the
last build comes from the cache. Never resolves: the lock says what goes in.

Examples:
  slipway build --all                              # out/<role>.qcow2, out/<role>.ova
  slipway build db-master balancer --format ova
  slipway build gateway --shell-on-failure         # look around where a script failed
  slipway build --all --mirror file:///srv/debian  # packages from a directory
  slipway build --all --layers ci.example.org/images/layers  # what slipway push left there`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "build every role"},
			&cli.StringFlag{Name: "format", Usage: "comma-separated `LIST` of qcow2, ova, vmdk, raw", Value: "qcow2,ova"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`DIR` for the images", Value: "out"},
			&cli.StringFlag{Name: "layers", Usage: "look in the OCI `REPOSITORY`, or in a mirror at file:///DIR, for layers that the cache lacks", EnvVars: []string{"SLIPWAY_LAYERS"}},
			&cli.BoolFlag{Name: "json", Usage: "print what was built as JSON"},
			&cli.BoolFlag{Name: "shell-on-failure", Usage: "open a shell in the sandbox when a maintainer script fails"},
			lockFlag(),
		}, sourceFlags()...),
		BashComplete: completeRoles,
		Action:       build,
	}
}

func build(c *cli.Context) error {
	if c.Bool("all") == c.Args().Present() {
		return fault.New(fault.Usage, "name the roles to build, or all of them with --all").
			WithMend("the roles are the files in profiles/; see slipway build --help")
	}
	formats, err := builder.ParseFormats(c.String("format"))
	if err != nil {
		return err
	}
	s, err := findProject(c)
	if err != nil {
		return err
	}
	defer s.close()
	means, closeCache, err := s.means(c)
	if err != nil {
		return err
	}
	defer closeCache()
	if named := c.String("layers"); named != "" && (!c.Bool("offline") || strings.HasPrefix(named, "file:")) {
		if means.Registry, err = layersAt(named); err != nil {
			return err
		}
	}
	result, err := builder.Build(c.Context, builder.Request{
		Project: s.project, LockFile: s.lockFile(c), Roles: c.Args().Slice(), Formats: formats,
		Output: c.String("output"), Shell: c.Bool("shell-on-failure"),
	}, means)
	if err != nil {
		return err
	}
	s.close()
	if c.Bool("json") {
		return printJSON(c, result)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	for _, im := range result.Images {
		fmt.Fprintf(w, "%s\t%s\t%s\n", im.Path, im.Version, progress.Size(im.Size))
	}
	w.Flush()
	made := 0
	for _, l := range result.Layers {
		if !l.Cached {
			made++
		}
	}
	fmt.Fprintf(c.App.Writer, "%d images in %.1f s; %d of %d layers were made, the others came from the cache\n",
		len(result.Images), result.Seconds, made, len(result.Layers))
	return nil
}

// layersAt is the repository of finished layers at a name in a registry, or in the published tree of a mirror
// (file:///srv/slipway/public).
func layersAt(named string) (*registry.Repository, error) {
	u, err := url.Parse(named)
	if err != nil || u.Scheme != "file" {
		return registry.New(named)
	}
	if u.Host != "" {
		return nil, fault.New(fault.Usage, "--layers %s: want file:///DIR", named)
	}
	tree, err := serve.New(u.Path, serve.Options{})
	if err != nil {
		return nil, err
	}
	r, err := registry.New("mirror.localhost/" + mirror.LayersRepository)
	if err != nil {
		return nil, err
	}
	return r.Through(tree.Transport()), nil
}

// completeRoles offers the names of roles to the shell.
func completeRoles(c *cli.Context) {
	dir, err := projectDir(c.String("project"))
	if err != nil {
		return
	}
	set, err := profile.Load(profilesDir(dir))
	if err != nil {
		return
	}
	for _, name := range set.Names() {
		fmt.Fprintln(c.App.Writer, name)
	}
	cli.DefaultCompleteWithFlags(c.Command)(c)
}
