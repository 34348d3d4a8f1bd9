package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// lockFlag names the lock.
func lockFlag() cli.Flag {
	return &cli.StringFlag{Name: "lock", Usage: "the lock `FILE`", DefaultText: "images.lock of the project", EnvVars: []string{"SLIPWAY_LOCK"}}
}

// sourceFlags say where packages come from.
func sourceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "mirror", Usage: "take packages from `URL` (http, https or file; or ALIAS=URL for one archive)", DefaultText: "$SLIPWAY_MIRROR, else the machine's apt sources"},
		&cli.StringFlag{Name: "mirror-key", Usage: "trust the key in `FILE` too: that of a mirror of slipway mirror", EnvVars: []string{"SLIPWAY_MIRROR_KEY"}},
		&cli.StringFlag{Name: "bundle", Usage: "look in the mirror bundle in `DIR` too", EnvVars: []string{"SLIPWAY_BUNDLE"}},
		&cli.BoolFlag{Name: "offline", Usage: "use what the cache and the bundle hold, and no network"},
		&cli.IntFlag{Name: "downloads", Usage: "download `N` files at a time", Value: 4},
	}
}

func profilesDir(project string) string { return filepath.Join(project, "profiles") }

// lockFile is the lock that the command works with.
func (s *session) lockFile(c *cli.Context) string {
	if named := c.String("lock"); named != "" {
		return named
	}
	return filepath.Join(s.project, "images.lock")
}

// openCache opens the cache that the user named, or the default one.
func openCache(c *cli.Context) (*cache.Cache, error) {
	store, err := cache.Open(c.String("cache"))
	if err != nil {
		return nil, fault.New(fault.Of(err), "opening the cache: %w", err).WithMend("name a directory that you may write to with --cache DIR")
	}
	return store, nil
}

// distribution reads the project's distribution file.
func (s *session) distribution() (*apt.Distribution, error) {
	return apt.LoadDistribution(filepath.Join(profilesDir(s.project), profile.DistributionFile))
}

// means opens the cache and works out where packages come from. The function
// that it returns closes the cache.
func (s *session) means(c *cli.Context) (builder.Means, func(), error) {
	d, err := s.distribution()
	if err != nil {
		return builder.Means{}, nil, err
	}
	if file := c.String("mirror-key"); file != "" {
		keys, err := publicKeys(file)
		if err != nil {
			return builder.Means{}, nil, err
		}
		d.Trust(keys)
	}
	sources, err := apt.MachineSources("/")
	if err != nil {
		return builder.Means{}, nil, err
	}
	var locations fetch.Locations
	if !c.Bool("offline") {
		if locations, err = apt.Mirrors(d, c.StringSlice("mirror"), os.Getenv("SLIPWAY_MIRROR"), sources); err != nil {
			return builder.Means{}, nil, err
		}
	}
	store, err := openCache(c)
	if err != nil {
		return builder.Means{}, nil, err
	}
	means := builder.Means{
		Cache: store, Locations: locations, Distribution: d, Progress: s.progress, Log: s.log,
		Fetch: fetch.Options{Parallel: c.Int("downloads"), Progress: s.progress, Title: "download packages",
			Bundle: c.String("bundle"), Offline: c.Bool("offline")},
	}
	return means, func() { store.Close() }, nil
}

// publicKeys reads public keys.
func publicKeys(file string) (openpgp.EntityList, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.New(fault.Input, "reading the key: %w", err)
	}
	ring, err := sign.ParseRing(data)
	if err != nil {
		return nil, fault.New(fault.Input, "%s: %w", file, err)
	}
	return openpgp.EntityList(ring), nil
}

// completeFiles offers flags to a word that begins as one, and else nothing, so
// that the shell completes file names.
func completeFiles(c *cli.Context) {
	if args := c.Args().Slice(); len(args) > 0 && strings.HasPrefix(args[len(args)-1], "-") {
		cli.DefaultCompleteWithFlags(c.Command)(c)
	}
}
