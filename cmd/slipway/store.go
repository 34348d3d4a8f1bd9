package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

// storeFlags are those of every command that opens the administrator's store.
func storeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "store", Usage: "the administrator's store `DIR`", DefaultText: "cluster.store beside cluster.yaml"},
		&cli.StringFlag{Name: "age-identity", Usage: "`FILE` with the age identity that opens an encrypted store", EnvVars: []string{"SLIPWAY_AGE_IDENTITY"}},
		&cli.StringFlag{Name: "age-passphrase-file", Usage: "`FILE` whose first line is the passphrase that opens an encrypted store", EnvVars: []string{"SLIPWAY_AGE_PASSPHRASE_FILE"}},
	}
}

// openStore opens the store of a topology's file.
func openStore(c *cli.Context, topology string, o vault.Options) (*vault.Vault, error) {
	dir := c.String("store")
	if dir == "" {
		dir = vault.DefaultDir(topology)
	}
	return openStoreIn(c, dir, o)
}

// openStoreIn opens a store by the means that the flags name.
func openStoreIn(c *cli.Context, dir string, o vault.Options) (*vault.Vault, error) {
	o.IdentityFile = c.String("age-identity")
	o.Passphrase = passphrase(c.String("age-passphrase-file"))
	return vault.Open(dir, o)
}

// passphrase returns what asks for the store's passphrase: a file, or the person
// at the terminal; nil if there is neither.
func passphrase(file string) func(anew bool) (string, error) {
	if file != "" {
		return func(bool) (string, error) {
			f, err := os.Open(file)
			if err != nil {
				return "", fault.New(fault.Input, "the passphrase: %w", err)
			}
			defer f.Close()
			text, err := io.ReadAll(io.LimitReader(f, 4096))
			if err != nil {
				return "", fault.New(fault.Input, "the passphrase: %w", err)
			}
			line, _, _ := strings.Cut(string(text), "\n")
			return strings.TrimSuffix(line, "\r"), nil
		}
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	return func(anew bool) (string, error) {
		first, err := prompt("Passphrase of the store: ")
		if err != nil || !anew {
			return first, err
		}
		second, err := prompt("The same again: ")
		if err == nil && first != second {
			err = fault.New(fault.Input, "the two passphrases differ")
		}
		return first, err
	}
}

// prompt asks on the terminal, without showing what is typed.
func prompt(question string) (string, error) {
	fmt.Fprint(os.Stderr, question)
	defer fmt.Fprintln(os.Stderr)
	answer, err := term.ReadPassword(int(os.Stdin.Fd()))
	return string(answer), err
}
