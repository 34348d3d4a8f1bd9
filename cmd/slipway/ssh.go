package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

func sshCommand() *cli.Command {
	return &cli.Command{
		Name:      "ssh",
		Usage:     "open a shell on a node of the lab, or run a command there",
		ArgsUsage: "CLUSTER.YAML NODE [-- COMMAND...]",
		Description: `Runs the machine's ssh with the key that "slipway up" made for this lab, through
the lab's gateway. The exit status is the command's.

Examples:
  slipway ssh cluster.yaml a-db1
  slipway ssh cluster.yaml a-db1 -- sudo firstboot status
  slipway ssh cluster.yaml a-db1 -l ops -i ~/.ssh/id_ed25519    # a user of the topology
  slipway ssh cluster.yaml a-db1 -- sudo journalctl --unit patroni --follow`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "identity", Aliases: []string{"i"}, Usage: "log in with the private key in `FILE`", DefaultText: "the lab's"},
			&cli.StringFlag{Name: "user", Aliases: []string{"l"}, Usage: "log in as `NAME`", Value: "slipway"},
		},
		BashComplete: completeNodes,
		Action: func(c *cli.Context) error {
			l, name, err := beginNode(c)
			if err != nil {
				return err
			}
			state, err := l.client.State(c.Context)
			if err != nil {
				return err
			}
			node, _ := state.Node(name)
			if !node.On {
				return fault.New(fault.Failed, "%s is powered off", name).WithMend("run: slipway up %s %s", l.file, name)
			}
			program, err := exec.LookPath("ssh")
			if err != nil {
				return fault.New(fault.Missing, "%w", err).WithMend("run: apt-get install openssh-client")
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			identity := l.place.Key()
			if named := c.String("identity"); named != "" {
				if identity, err = filepath.Abs(named); err != nil {
					return err
				}
			}
			args := append([]string{"ssh"}, sshArgs(l.place, self, c.String("user"), identity, node)...)
			// ssh takes this process over, so that signals and the exit status are its own.
			return syscall.Exec(program, append(args, commandAfterDashes(c.Args().Slice())...), os.Environ())
		},
	}
}

// sshArgs are ssh's arguments up to the command. Nothing of the user's own
// configuration counts: a jump host or another key would only be in the way.
func sshArgs(place daemon.Place, self, user, identity string, node lab.NodeState) []string {
	option := func(name, value string) string { return name + "=" + value }
	proxy := shellQuote(self) + " lab-dial " + shellQuote(string(place)) + " " + node.Address.String() + ":22"
	return []string{
		"-F", "none",
		// In a ProxyCommand, a percent sign begins a token (ssh_config(5), TOKENS).
		"-o", option("ProxyCommand", strings.ReplaceAll(proxy, "%", "%%")),
		// The first key that a disk shows is taken; a node with another one later is not the same.
		"-o", option("StrictHostKeyChecking", "accept-new"),
		"-o", option("UserKnownHostsFile", sshQuote(place.KnownHosts(node.Name))),
		"-o", option("GlobalKnownHostsFile", "/dev/null"),
		"-o", option("HostKeyAlias", node.Name),
		"-o", option("IdentityFile", sshQuote(identity)),
		"-o", option("IdentitiesOnly", "yes"),
		"-o", option("IdentityAgent", "none"),
		"-o", option("LogLevel", "ERROR"),
		"-l", user, "--", node.Name,
	}
}

// shellQuote makes one word of text for a shell.
func shellQuote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// sshQuote makes one argument of a file name in ssh's configuration.
func sshQuote(path string) string { return `"` + strings.ReplaceAll(path, "%", "%%") + `"` }

// commandAfterDashes is what follows "--".
func commandAfterDashes(args []string) []string {
	for i, a := range args {
		if a == "--" {
			return args[i+1:]
		}
	}
	return nil
}
