package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/oci"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/internal/fault"
)

func lockCommand() *cli.Command {
	return &cli.Command{
		Name:      "lock",
		Usage:     "pin the packages of every profile in images.lock",
		ArgsUsage: "[PACKAGE...]",
		Description: `Reads the archive's signed indices, resolves every profile as apt would, and
writes images.lock. Packages that are locked keep their version, OCI images of a
registry their digest; --upgrade lets them move: all of them, or those that are named.

Examples:
  slipway lock                        # after an edit in profiles/
  slipway lock --upgrade              # take every newer version
  slipway lock --upgrade openssl      # take only what this package needs
  slipway lock --check                # exit status 8 if the archive moved on`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "upgrade", Usage: "take new versions: of the packages named, else of all"},
			&cli.BoolFlag{Name: "check", Usage: "write nothing; exit status 8 says that locking anew would change something"},
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would change, and write nothing"},
			&cli.BoolFlag{Name: "allow-expired", Usage: "take indices past their Valid-Until, as a frozen mirror has them"},
			&cli.BoolFlag{Name: "json", Usage: "print the changes as JSON"},
			lockFlag(),
		}, sourceFlags()...),
		Action: runLock,
	}
}

func runLock(c *cli.Context) error {
	if c.Args().Present() && !c.Bool("upgrade") {
		return fault.New(fault.Usage, "packages are named for --upgrade only").
			WithMend("say slipway lock --upgrade %s", c.Args().First())
	}
	s, err := findProject(c)
	if err != nil {
		return err
	}
	defer s.close()
	profiles, err := profile.Load(profilesDir(s.project))
	if err != nil {
		return err
	}
	previous, err := s.previousLock(c)
	if err != nil {
		return err
	}
	means, closeCache, err := s.means(c)
	if err != nil {
		return err
	}
	defer closeCache()
	want := builder.Want(means.Distribution, profiles)
	archive, err := apt.Load(c.Context, means.Cache, means.Distribution, means.Locations,
		apt.LoadOptions{AllowExpired: c.Bool("allow-expired") || apt.MachineAllowsExpired("/"), Fetch: means.Fetch})
	if err != nil {
		return err
	}
	for _, w := range archive.Warnings {
		s.log.Warn(w)
	}
	own, err := builder.ProjectDebs(s.project, means.Distribution.Arch, profiles)
	if err != nil {
		return err
	}
	archive.Packages = append(archive.Packages, own...)
	if c.Bool("check") {
		return s.check(c, means, archive, want, previous)
	}

	var upgrade []string
	if c.Bool("upgrade") {
		if upgrade = c.Args().Slice(); len(upgrade) == 0 {
			upgrade = []string{lock.All}
		}
	}
	packages := slices.DeleteFunc(slices.Clone(upgrade), func(name string) bool {
		return slices.ContainsFunc(want.Images, func(im lock.Image) bool { return im.Name == name })
	})
	next, err := lock.Resolve(c.Context, means.Cache, archive, want, previous, packages, means.Fetch)
	if err != nil {
		return err
	}
	same := next == previous
	if same { // whose images may be other ones now
		next = next.Clone()
	}
	images := oci.Fetcher{Project: s.project, Cache: means.Cache}
	if err := builder.LockImages(c.Context, images, next, want.Images, previous, upgrade); err != nil {
		return err
	}
	same = same && next.Checksum() == previous.Checksum()
	if !c.Bool("dry-run") && !same {
		if err := next.WriteFile(s.lockFile(c)); err != nil {
			return err
		}
	}
	s.close()
	summary := lock.Diff(previous, next)
	if c.Bool("json") {
		return printJSON(c, summary)
	}
	if summary.Empty() {
		fmt.Fprintf(c.App.Writer, "%s: nothing changed, %d packages\n", s.lockFile(c), len(next.Packages))
		return nil
	}
	fmt.Fprint(c.App.Writer, summary)
	if c.Bool("dry-run") {
		fmt.Fprintln(c.App.Writer, "dry run: nothing was written")
	}
	return nil
}

// previousLock reads the lock that is there. To lock anew, none at all will do, and
// of a broken one whatever is whole: its lines keep their versions.
func (s *session) previousLock(c *cli.Context) (*lock.Lock, error) {
	path := s.lockFile(c)
	l, err := lock.Read(path)
	switch {
	case err == nil || c.Bool("check"):
		return l, err
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	}
	s.log.Warnf("%v; locking anew from the lines that are whole", err)
	return lock.Salvage(path)
}

// check reports drift: a lock that no longer answers the profiles, newer
// versions in the archive, packages that are gone.
func (s *session) check(c *cli.Context, means builder.Means, archive *apt.Archive, want lock.Want, current *lock.Lock) error {
	if err := current.Check(want); err != nil {
		return err
	}
	report, err := lock.Drift(c.Context, means.Cache, archive, want, current, func(fresh *lock.Lock) error {
		return builder.LockImages(c.Context, oci.Fetcher{Project: s.project, Cache: means.Cache}, fresh, want.Images, nil, nil)
	}, means.Fetch)
	if err != nil {
		return err
	}
	s.close()
	if c.Bool("json") {
		if err := printJSON(c, report); err != nil {
			return err
		}
	} else {
		fmt.Fprint(c.App.Writer, report)
	}
	if report.None() {
		return nil
	}
	return fault.New(fault.Drift, "%s: the archive moved on since it was written", s.lockFile(c)).
		WithMend("run slipway lock --upgrade to take the new versions; the locked ones still build as long as they can be had")
}
