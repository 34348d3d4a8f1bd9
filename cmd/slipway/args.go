package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/internal/fault"
)

// flagsFirst moves a command's flags before its arguments, so that
// "slipway build db-master --format ova" means what it says: the cli package, as
// Go's flag package, stops looking for flags at the first argument. What
// follows "--" stays where it is. Arguments beside --help are left out: the cli package would
// look for a command of that name to explain.
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	// The shell's request for completions counts only as the last word.
	if last := len(args) - 1; args[last] == completionRequest {
		return append(flagsFirst(app, args[:last]), completionRequest)
	}
	out := []string{args[0]}
	flags, commands := app.Flags, app.Commands
	var after []string
	help := false
	rest := args[1:]
	for len(rest) > 0 {
		word := rest[0]
		rest = rest[1:]
		switch {
		case word == "--":
			return append(append(append(out, after...), word), rest...)
		case len(word) > 1 && word[0] == '-':
			out = append(out, word)
			help = help || slices.Contains(cli.HelpFlag.Names(), strings.TrimLeft(word, "-"))
			if takesValue(flags, word) && len(rest) > 0 {
				out, rest = append(out, rest[0]), rest[1:]
			}
		default:
			if c := commandNamed(commands, word); c != nil && len(after) == 0 {
				out = append(out, word)
				flags, commands = c.Flags, c.Subcommands
				continue
			}
			after = append(after, word)
			commands = nil
		}
	}
	if help {
		return out
	}
	return append(out, after...)
}

// need refuses a command that lacks a flag which it cannot do without. (The cli package's own Required prints
// all of the help to standard output and an error of no class.)
func need(c *cli.Context, flag string) error {
	if c.String(flag) != "" {
		return nil
	}
	return fault.New(fault.Usage, "--%s is missing", flag).WithMend("see %s --help", c.Command.HelpName)
}

// completionRequest is what a completion script adds to the words before the cursor.
const completionRequest = "--generate-bash-completion"

// takesValue says whether a flag, as written, is followed by its value.
func takesValue(flags []cli.Flag, word string) bool {
	name := strings.TrimLeft(word, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				_, isBool := f.(*cli.BoolFlag)
				return !isBool
			}
		}
	}
	return false
}

func commandNamed(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
