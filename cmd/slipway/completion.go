package main

import (
	"embed"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/internal/fault"
)

//go:embed completion
var completionScripts embed.FS

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a shell completion script",
		ArgsUsage: "bash|zsh|fish",
		Description: `Examples:
  source <(slipway completion bash)
  slipway completion fish > ~/.config/fish/completions/slipway.fish`,
		Action: func(c *cli.Context) error {
			switch shell := c.Args().First(); shell {
			case "bash", "zsh":
				script, err := completionScripts.ReadFile("completion/" + shell)
				if err != nil {
					return err
				}
				_, err = c.App.Writer.Write(script)
				return err
			case "fish":
				script, err := c.App.ToFishCompletion()
				if err != nil {
					return err
				}
				fmt.Fprintln(c.App.Writer, script)
				return nil
			default:
				return fault.New(fault.Usage, "there is no completion for shell %q", shell).WithMend("use bash, zsh or fish")
			}
		},
	}
}
