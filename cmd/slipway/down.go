package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

func downCommand() *cli.Command {
	return &cli.Command{
		Name:      "down",
		Usage:     "stop the nodes of a lab",
		ArgsUsage: "[FILE [NODE...]]",
		Description: `Has the nodes power off, and cuts the power of those that have not within the time
limit. Their disks are kept, and "slipway up" goes on with them; --destroy removes
the disks, and without named nodes everything that belongs to the lab, its secrets
too. FILE is cluster.yaml unless another is named.

Examples:
  slipway down
  slipway down cluster.yaml a-db1              # only this one
  slipway down cluster.yaml --timeout 0        # cut the power at once
  slipway down cluster.yaml --destroy --dry-run
  slipway down cluster.yaml --destroy`,
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "timeout", Usage: "cut the power of nodes that have not ended after `TIME`", Value: 3 * time.Minute},
			&cli.BoolFlag{Name: "destroy", Usage: "remove the disks, and with all nodes everything else of the lab"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be stopped and removed, and do nothing"},
			&cli.BoolFlag{Name: "json", Usage: "print what was done as JSON"},
		},
		BashComplete: completeNodes,
		Action:       down,
	}
}

// downResult is what "slipway down" did, or would do.
type downResult struct {
	Stopped []string `json:"stopped"`
	Forced  []string `json:"forced"`  // of those, without their guests' doing
	Removed []string `json:"removed"` // directories
	Bytes   int64    `json:"bytes"`   // that they took
}

func down(c *cli.Context) error {
	l, err := beginLab(c)
	if err != nil {
		return err
	}
	defer l.close()
	result := downResult{Stopped: []string{}, Forced: []string{}, Removed: []string{}}
	if err := l.stop(c, &result); err != nil {
		return err
	}
	if c.Bool("destroy") {
		if err := l.destroy(c.Bool("dry-run"), &result); err != nil {
			return err
		}
	}
	l.close()
	if c.Bool("json") {
		return printJSON(c, result)
	}
	w, would := c.App.Writer, ""
	if c.Bool("dry-run") {
		would = "would be "
	}
	if len(result.Stopped) == 0 && len(result.Removed) == 0 {
		fmt.Fprintln(w, "nothing runs")
	}
	if len(result.Stopped) > 0 {
		fmt.Fprintf(w, "%sstopped: %s\n", would, strings.Join(result.Stopped, ", "))
	}
	if len(result.Forced) > 0 {
		fmt.Fprintf(w, "the power was cut of: %s\n", strings.Join(result.Forced, ", "))
	}
	for _, dir := range result.Removed {
		fmt.Fprintf(w, "%sremoved: %s\n", would, dir)
	}
	return nil
}

// stop ends the nodes that were named, or all, and the daemon with the last one.
func (l *labSession) stop(c *cli.Context, result *downResult) error {
	state, err := l.client.State(c.Context)
	if errors.Is(err, daemon.ErrNotRunning) {
		return nil
	}
	if err != nil {
		return err
	}
	names := l.names
	if len(names) == 0 {
		for _, n := range state.Nodes { // the file may have other nodes by now
			names = append(names, n.Name)
		}
	}
	if c.Bool("dry-run") {
		for _, name := range names {
			if n, _ := state.Node(name); n.On {
				result.Stopped = append(result.Stopped, name)
			}
		}
		return nil
	}
	order := daemon.Order{Action: daemon.Shutdown, Nodes: names, Limit: c.Duration("timeout")}
	if order.Limit <= 0 {
		order.Action = daemon.Crash
	}
	task := l.progress.Start("stop "+strings.Join(names, ", "), 0, progress.Items)
	out, err := l.client.Order(c.Context, order)
	task.Done(err)
	if err != nil {
		return err
	}
	result.Stopped, result.Forced = append(result.Stopped, out.Changed...), append(result.Forced, out.Forced...)
	return l.quitIfIdle(c.Context)
}

// quitIfIdle ends a daemon that has no machine left to own.
func (l *labSession) quitIfIdle(ctx context.Context) error {
	state, err := l.client.State(ctx)
	if err != nil {
		return err
	}
	for _, n := range state.Nodes {
		if n.On {
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return l.client.Quit(ctx)
}

// destroy removes the directories of the named nodes, or the lab's.
func (l *labSession) destroy(dryRun bool, result *downResult) error {
	var dirs []string
	for _, name := range l.names {
		dirs = append(dirs, l.place.Machine(name))
	}
	if l.names == nil {
		// A daemon that does not answer still has its machines.
		if runs, err := l.place.Runs(); err != nil || runs && !dryRun {
			return errors.Join(err, fault.New(fault.Failed, "the lab still runs").WithMend("see %s", l.place.Log()))
		}
		dirs = []string{string(l.place)}
	}
	for _, dir := range dirs {
		size, err := diskUsage(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		result.Removed, result.Bytes = append(result.Removed, dir), result.Bytes+size
		if dryRun {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// diskUsage is the size of the files below a directory.
func diskUsage(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
		return err
	})
	return total, err
}
