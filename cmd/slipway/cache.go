package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/internal/progress"
)

func cacheCommand() *cli.Command {
	return &cli.Command{
		Name:  "cache",
		Usage: "look at the cache, or free room in it",
		Subcommands: []*cli.Command{
			{
				Name:  "ls",
				Usage: "list what the cache holds",
				Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}},
				Action: func(c *cli.Context) error {
					store, err := openCache(c)
					if err != nil {
						return err
					}
					defer store.Close()
					items, err := store.List()
					if err != nil {
						return err
					}
					return printItems(c, items, "in the cache at "+store.Dir())
				},
			},
			{
				Name:  "gc",
				Usage: "remove what was not used lately",
				Description: `Nothing in the cache is precious: what is removed is downloaded or made again.

Examples:
  slipway cache gc --dry-run           # what would go
  slipway cache gc --unused 72h        # what no build used for three days
  slipway cache gc --unused 0          # everything`,
				Flags: []cli.Flag{
					&cli.DurationFlag{Name: "unused", Usage: "remove what was not used for `TIME`", Value: 30 * 24 * time.Hour},
					&cli.BoolFlag{Name: "dry-run", Usage: "say what would be removed, and remove nothing"},
					&cli.BoolFlag{Name: "json", Usage: "print JSON"},
				},
				Action: func(c *cli.Context) error {
					store, err := openCache(c)
					if err != nil {
						return err
					}
					defer store.Close()
					items, err := store.GC(cache.Policy{MaxAge: c.Duration("unused")}, c.Bool("dry-run"))
					if err != nil {
						return err
					}
					if c.Bool("dry-run") {
						return printItems(c, items, "would be removed")
					}
					return printItems(c, items, "removed")
				},
			},
		},
	}
}

func printItems(c *cli.Context, items []cache.Item, what string) error {
	if c.Bool("json") {
		if items == nil {
			items = []cache.Item{}
		}
		return printJSON(c, items)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	var total int64
	for _, it := range items {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", it.Kind, it.Key, progress.Size(it.Size), it.Used.Format("2006-01-02 15:04"))
		total += it.Size
	}
	w.Flush()
	fmt.Fprintf(c.App.Writer, "%d items, %s, %s\n", len(items), progress.Size(total), what)
	return nil
}
