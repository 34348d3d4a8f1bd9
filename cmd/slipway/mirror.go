package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/mirror"
	"github.com/slipwayhq/slipway/builder/mirror/receipt"
	"github.com/slipwayhq/slipway/builder/mirror/site"
	"github.com/slipwayhq/slipway/builder/oci"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

func mirrorCommand() *cli.Command {
	return &cli.Command{
		Name:  "mirror",
		Usage: "carry packages, images and layers over an air gap, and serve them there",
		Description: `The connected side makes bundles: "key", "create", "update". The isolated side
takes them in and publishes them: "import", "verify", "receipt", "serve", "gc"; or has
a cluster's own mirror do so: "load". docs/mirror.md
walks through a whole carry-over.`,
		Subcommands: []*cli.Command{
			mirrorKeyCommand(), mirrorCreateCommand(), mirrorUpdateCommand(),
			mirrorInitCommand(), mirrorImportCommand(), mirrorLoadCommand(), mirrorVerifyCommand(), mirrorReceiptCommand(), mirrorStatusCommand(), mirrorServeCommand(), mirrorGCCommand(),
		},
	}
}

// siteFlag names the directory with the signing keys.
func siteFlag() cli.Flag {
	return &cli.StringFlag{Name: "site", Usage: "`DIR` with the site's signing keys", Value: "mirror.site", EnvVars: []string{"SLIPWAY_SITE"}}
}

// bundleFlags say what goes into a bundle.
func bundleFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "empty `DIR` for the volumes", Value: "media"},
		&cli.StringSliceFlag{Name: "package", Usage: "carry `NAME` too, with all that it depends on"},
		&cli.BoolFlag{Name: "bootstrap", Usage: "carry what debootstrap and mmdebstrap install, too"},
		&cli.BoolFlag{Name: "sources", Usage: "carry the source packages of all packages, too"},
		&cli.StringSliceFlag{Name: "suite", Usage: "with --all: carry the whole of this `SUITE`"},
		&cli.BoolFlag{Name: "all", Usage: "carry every package of the suites named with --suite"},
		&cli.StringSliceFlag{Name: "image", Usage: "carry an OCI image: `NAME:TAG=SOURCE`, the source being oci:DIR, docker-archive:FILE or HOST/REPOSITORY:TAG"},
		&cli.BoolFlag{Name: "no-layers", Usage: "leave finished layers out"},
		&cli.StringFlag{Name: "volume-size", Usage: "what a volume holds, such as 4.3GiB", DefaultText: "one volume of any size"},
		&cli.BoolFlag{Name: "dry-run", Usage: "say what would be carried and how large it is: no volume is written and no number taken, only indices and OCI images come into the cache"},
		&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		siteFlag(), lockFlag(),
	}, sourceFlags()...)
}

func mirrorCreateCommand() *cli.Command {
	return &cli.Command{
		Name:  "create",
		Usage: "make a full bundle: everything that the lock needs",
		Description: `Writes volumes: directories to copy onto discs or disks, each with a signed manifest. They
hold every package of images.lock as a Debian repository that is signed with the site's key, upstream's own
signed indices as evidence, finished layers, OCI images, the project as a build reads it, and this slipway. What
was cut off goes on when the same command is run again. SOURCE_DATE_EPOCH fixes the bundle's date.

Examples:
  slipway mirror create --volume-size 4.3GiB -o media
  slipway mirror create --package postgresql-17-postgis-3 --bootstrap -o media
  slipway mirror create --image acme/session:4=registry.example.org/session:4.1 -o media
  slipway mirror create --suite trixie --all --dry-run`,
		Flags:  bundleFlags(),
		Action: func(c *cli.Context) error { return makeBundle(c, nil) },
	}
}

func mirrorUpdateCommand() *cli.Command {
	return &cli.Command{
		Name:  "update",
		Usage: "make a differential bundle: what the other side lacks by its receipt",
		Description: `Like create, but leaves out what the receipt says is there. Bundles that were sent and never
acknowledged count for nothing, so a lost one is made good by the next.

Example:
  slipway mirror update --receipt plant-7.receipt --volume-size 4.3GiB -o media`,
		Flags: append(bundleFlags(), &cli.StringFlag{Name: "receipt", Usage: "the receipt `FILE` from the other side"}),
		Action: func(c *cli.Context) error {
			if err := need(c, "receipt"); err != nil {
				return err
			}
			r, err := receipt.ReadFile(c.String("receipt"))
			if err != nil {
				return err
			}
			return makeBundle(c, r)
		},
	}
}

func makeBundle(c *cli.Context, r *receipt.Receipt) error {
	volumeSize, err := parseVolumeSize(c.String("volume-size"))
	if err != nil {
		return err
	}
	if c.Bool("all") != (len(c.StringSlice("suite")) > 0) {
		return fault.New(fault.Usage, "--all and --suite go together").WithMend("say --suite trixie --all for the whole of trixie")
	}
	date, err := bundleDate()
	if err != nil {
		return err
	}
	s, err := findProject(c)
	if err != nil {
		return err
	}
	defer s.close()
	keys, err := site.Open(c.String("site"))
	if err != nil {
		return err
	}
	defer keys.Close()
	means, closeCache, err := s.means(c)
	if err != nil {
		return err
	}
	defer closeCache()
	for _, w := range keys.Warnings(time.Now()) {
		s.log.Warn(w)
	}
	req := mirror.Request{Extra: c.StringSlice("package"), Bootstrap: c.Bool("bootstrap"), Sources: c.Bool("sources"), All: c.StringSlice("suite"),
		Receipt: r, Volume: volumeSize, Site: keys.Name()}
	if req.Lock, err = lock.Read(s.lockFile(c)); err != nil {
		return err
	}
	req.LockData = req.Lock.Bytes()
	if req.Programs, err = ourselves(); err != nil {
		return err
	}
	req.Project.Dir = s.project
	if req.Project.Files, err = builder.ProjectFiles(s.project); err != nil {
		return err
	}
	if !c.Bool("no-layers") {
		pushed, err := builder.PlanPush(builder.Request{Project: s.project, LockFile: s.lockFile(c)}, means)
		if err != nil {
			return fault.New(fault.Of(err), "finished layers: %w", err).WithMend("run `slipway build --all` first, or leave them out with --no-layers: the other side then makes them, on Linux")
		}
		for _, p := range pushed {
			req.Artifacts = append(req.Artifacts, p.Artifact())
		}
	}
	if req.Images, err = mirror.LockedImages(c.Context, req.Lock, oci.Fetcher{Project: s.project, Cache: means.Cache}); err != nil {
		return err
	}
	for _, value := range c.StringSlice("image") {
		name, source, ok := strings.Cut(value, "=")
		if !ok {
			return fault.New(fault.Usage, "--image %q: want NAME:TAG=SOURCE", value)
		}
		img, err := mirror.LoadImage(c.Context, means.Cache, name, source)
		if err != nil {
			return err
		}
		req.Images = append(req.Images, img)
	}
	means.Fetch.Snapshot = means.Distribution.SnapshotLocations(req.Lock.Dates())
	m := mirror.Means{Cache: means.Cache, Distribution: means.Distribution, Locations: means.Locations, Fetch: means.Fetch,
		Progress: s.progress, Log: s.log}
	plan := func(b mirror.Begun) (*mirror.Plan, error) {
		req.Edition, req.Date, req.States = b.Edition, b.Date, b.States
		if ahead := time.Until(b.Date); ahead > day {
			s.log.Warnf("the bundle is dated %s, %d days after this machine's clock, and apt refuses indices from the future: set the clock, or, if the bundle before was dated by a wrong one, set \"date\" in %s to the present and begin in an empty directory",
				b.Date.Format(time.RFC3339), ahead/day, filepath.Join(c.String("site"), "site.json"))
		}
		signers, err := keys.Signers(b.Date)
		if err != nil {
			return nil, err
		}
		req.Keys = signers
		return mirror.NewPlan(c.Context, req, m)
	}
	var after int64
	if r != nil {
		after = r.Edition
	}
	var result mirror.Result
	if c.Bool("dry-run") {
		edition, date, err := keys.Next(date, after)
		if err != nil {
			return err
		}
		p, err := plan(mirror.Begun{Edition: edition, Date: date})
		if err != nil {
			return err
		}
		result = p.Describe(c.String("output"))
	} else {
		made, err := mirror.Create(c.Context, keys, c.String("output"), after, date, m, plan)
		if err != nil {
			return err
		}
		result = *made
	}
	s.close()
	return printBundle(c, result)
}

// printBundle shows what was made, or would be.
func printBundle(c *cli.Context, r mirror.Result) error {
	if c.Bool("json") {
		return printJSON(c, r)
	}
	what := "full"
	if r.Base > 0 {
		what = fmt.Sprintf("on top of edition %d", r.Base)
	}
	if c.Bool("dry-run") {
		what += ", dry run"
	}
	out := c.App.Writer
	fmt.Fprintf(out, "%s, edition %d (%s), %s\n", r.Site, r.Edition, what, r.Date)
	fmt.Fprintf(out, "the mirror will hold %d files, %s, %d packages, %d source packages; the bundle brings %s, of which %s must be downloaded\n",
		r.Files, progress.Size(r.Size), r.Packages, r.Sources, progress.Size(r.Carried), progress.Size(r.Download))
	if n := len(r.Unproven); n > 0 {
		fmt.Fprintf(out, "%d packages are no longer listed by their archive; the lock and the site's key vouch for them: %s\n", n, strings.Join(r.Unproven[:min(n, 5)], ", "))
	}
	if n := len(r.NoSource); n > 0 {
		fmt.Fprintf(out, "the archive no longer has the source of %d packages: %s\n", n, strings.Join(r.NoSource[:min(n, 5)], ", "))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, v := range r.Volumes {
		fmt.Fprintf(w, "volume %d\t%s\t%d files\t%s\n", v.Number, v.Path, v.Files, progress.Size(v.Size))
	}
	return w.Flush()
}

// ourselves is this program, which the other side needs too.
func ourselves() (map[string]string, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, err
	}
	return map[string]string{"slipway": path}, nil
}

// bundleDate is what a bundle is dated: SOURCE_DATE_EPOCH, or the time.
func bundleDate() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return time.Now(), nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fault.New(fault.Usage, "SOURCE_DATE_EPOCH: %q: want seconds since 1970", text)
	}
	return time.Unix(n, 0), nil
}

// parseVolumeSize reads 4.3GiB, 650MiB or 25GB; "" is no limit.
func parseVolumeSize(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	for _, u := range []struct {
		suffix string
		factor float64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}} {
		if number, ok := strings.CutSuffix(text, u.suffix); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
			if err != nil || n <= 0 || n*u.factor >= 1<<53 {
				break
			}
			return int64(n * u.factor), nil
		}
	}
	return 0, fault.New(fault.Usage, "--volume-size %q is no size", text).WithMend("write 4.3GiB (a DVD), 25GB (a Blu-ray disc), 650MiB (a CD)")
}
