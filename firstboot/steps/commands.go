package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/node"
)

const (
	scriptDir = "/var/lib/slipway/scripts"
	// CommandLog takes what user-data's commands print. It may hold secrets, so
	// root alone reads it, and reports name the file instead of quoting it.
	CommandLog = "/var/log/slipway/commands.log"

	bootcmdLimit = 5 * time.Minute
	runcmdLimit  = 2 * time.Hour
)

// Bootcmd runs what the metadata asks to be run at every boot, before the
// network is up.
type Bootcmd struct{}

func (Bootcmd) Name() string { return "bootcmd" }

func (Bootcmd) Apply(ctx context.Context, n *node.Node) error {
	var errs []error
	// A second round within one boot runs them only if they changed.
	if boot := bootID(n); boot != "" && n.Local.Is("bootcmd", boot, n.User.Config.Bootcmd, n.User.Scripts) {
		return nil
	}
	if commands := n.User.Config.Bootcmd; len(commands) > 0 {
		errs = append(errs, runScript(ctx, n, "bootcmd", shellScript(commands), bootcmdLimit))
	}
	for _, s := range n.User.Scripts {
		if s.EveryBoot {
			errs = append(errs, runScript(ctx, n, "boothook "+s.Name, s.Content, bootcmdLimit))
		}
	}
	err := errors.Join(errs...)
	if len(errs) == 0 {
		return nil
	}
	return errors.Join(err, n.Local.Done("bootcmd", err, bootID(n), n.User.Config.Bootcmd, n.User.Scripts))
}

func bootID(n *node.Node) string {
	id, _ := n.Read("/proc/sys/kernel/random/boot_id")
	return string(id)
}

// Commands runs scripts and runcmd once for their content: again when they
// change, and not in the next version of the image, since what they did to data
// is still done. One that fails is not repeated either; it has run.
type Commands struct{}

func (Commands) Name() string { return "commands" }

func (Commands) Apply(ctx context.Context, n *node.Node) error {
	var errs []error
	once := func(name string, content []byte) {
		key := "once: " + name
		if n.Kept.Is(key, content) {
			if n.Kept.Applied[key].Result != "ok" {
				errs = append(errs, fmt.Errorf("%s failed when it ran, see %s; it runs again when it is changed", name, CommandLog))
			}
			return
		}
		n.Waiting("%s is running", name)
		err := runScript(ctx, n, name, content, runcmdLimit)
		if ctx.Err() != nil {
			errs = append(errs, err)
			return // stopped with the agent, not by its own fault: it runs again
		}
		errs = append(errs, err, n.Kept.Done(key, err, content))
	}
	for _, s := range n.User.Scripts {
		if !s.EveryBoot {
			once("script "+s.Name, s.Content)
		}
	}
	if commands := n.User.Config.Runcmd; len(commands) > 0 {
		once("runcmd", shellScript(commands))
	}
	return errors.Join(errs...)
}

// shellScript is one script of all commands, as cloud-init makes it: a
// command that fails does not stop the next one, and the last one's exit
// status counts.
func shellScript(commands []cloudconfig.Command) []byte {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n")
	for _, c := range commands {
		b.WriteString(c.Script() + "\n")
	}
	return []byte(b.String())
}

// runScript runs a program from a file that root alone may read, so that
// nothing of it shows in the list of processes.
func runScript(ctx context.Context, n *node.Node, name string, content []byte, limit time.Duration) error {
	if err := os.MkdirAll(n.Path(scriptDir), 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(n.Path(filepath.Dir(CommandLog)), 0o755); err != nil {
		return err
	}
	file := scriptDir + "/" + safeName(name)
	if _, err := n.Write(file, 0o700, content); err != nil {
		return err
	}
	log, err := os.OpenFile(n.Path(CommandLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(log, "-- %s: %s\n", time.Now().UTC().Format(time.RFC3339), name)
	if _, err := n.Execute(ctx, node.Command{Argv: []string{file}, Timeout: limit, LogTo: log}); err != nil {
		var failed *node.CommandError
		if errors.As(err, &failed) {
			return fmt.Errorf("%s: %s; what it printed is in %s", name, failed.How, CommandLog)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	n.Changed("ran %s", name)
	return nil
}

// safeName makes a file name of a name that came from outside.
func safeName(name string) string {
	safe := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, name)
	return safe[:min(len(safe), 100)]
}
