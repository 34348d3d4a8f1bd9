package main

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/site"
	"github.com/slipwayhq/slipway/internal/fault"
)

const day = 24 * time.Hour

func mirrorKeyCommand() *cli.Command {
	name := &cli.StringFlag{Name: "name", Usage: "the site's `NAME`, which stands in everything that is signed"}
	life := &cli.IntFlag{Name: "days", Usage: "a new key ends after `N` days; 0: never", Value: int(site.Life / day)}
	asJSON := &cli.BoolFlag{Name: "json", Usage: "print JSON"}
	return &cli.Command{
		Name:  "key",
		Usage: "make, import, rotate and show the keys that a site signs with",
		Subcommands: []*cli.Command{
			{
				Name:  "generate",
				Usage: "make a site with a new key",
				Description: `The key is Ed25519, made on this machine, and kept in the site's directory, which only you may
read. Whoever has it can have the isolated side install anything: back it up, and keep it off
shared machines.

Example:
  slipway mirror key generate --name plant-7
  slipway mirror key public > plant-7.asc     # what the other side must know, by a way that you trust`,
				Flags: []cli.Flag{siteFlag(), name, life, asJSON},
				Action: func(c *cli.Context) error {
					return createSite(c, nil)
				},
			},
			{
				Name:      "import",
				Usage:     "make a site with a key of GnuPG",
				ArgsUsage: "FILE",
				Description: `FILE is what gpg --export-secret-keys writes: an Ed25519 or RSA key. Its passphrase comes from
SLIPWAY_PASSPHRASE; in the site's directory the key is without one.

Example:
  gpg --armor --export-secret-keys mirror@example.org > mirror.key
  slipway mirror key import mirror.key --name plant-7`,
				Flags: []cli.Flag{siteFlag(), name, asJSON},
				Action: func(c *cli.Context) error {
					if c.NArg() != 1 {
						return fault.New(fault.Usage, "name one file with a secret key")
					}
					key, err := readSecret(c.Args().First())
					if err != nil {
						return err
					}
					return createSite(c, key)
				},
			},
			{
				Name:  "rotate",
				Usage: "add a key; the old one signs beside it for a while",
				Description: `The next bundle is signed by both, and brings the new public key. Whoever imports a bundle before
the old key stops signing follows by itself; whoever does not must be given the new key by hand.

Example:
  slipway mirror key rotate --overlap 180`,
				Flags: []cli.Flag{siteFlag(), life,
					&cli.IntFlag{Name: "overlap", Usage: "old keys sign for `N` more days", Value: int(site.Overlap / day)},
					&cli.StringFlag{Name: "import", Usage: "take the secret key in `FILE` and make none"}, asJSON},
				Action: rotateKey,
			},
			{
				Name:  "show",
				Usage: "list the site's keys, and until when they sign",
				Flags: []cli.Flag{siteFlag(), asJSON},
				Action: func(c *cli.Context) error {
					s, err := site.Open(c.String("site"))
					if err != nil {
						return err
					}
					defer s.Close()
					return showKeys(c, s)
				},
			},
			{
				Name:  "public",
				Usage: "print the public keys that the other side must trust",
				Flags: []cli.Flag{siteFlag()},
				Action: func(c *cli.Context) error {
					s, err := site.Open(c.String("site"))
					if err != nil {
						return err
					}
					defer s.Close()
					keys, err := s.Public(time.Now())
					if err != nil {
						return err
					}
					_, err = c.App.Writer.Write(keys)
					return err
				},
			},
		},
	}
}

func readSecret(path string) (*sign.Key, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.Input, "reading the key: %w", err)
	}
	key, err := sign.ParseSecret(data, []byte(os.Getenv("SLIPWAY_PASSPHRASE")))
	if err != nil {
		return nil, fault.New(fault.Input, "%s: %w", path, err).WithMend("export it with gpg --export-secret-keys, and give its passphrase in SLIPWAY_PASSPHRASE")
	}
	if err := key.Try(time.Now()); err != nil {
		return nil, fault.New(fault.Input, "%s: %w", path, err).WithMend("take a key that signs now: gpg --list-secret-keys shows an S in its first line, and until when it lives, which gpg --quick-set-expire changes")
	}
	return key, nil
}

// maxDays is a hundred years: OpenPGP counts the life of a key in 32 bits of seconds.
const maxDays = 36500

// days reads a flag that counts days.
func days(c *cli.Context, flag string) (time.Duration, error) {
	n := c.Int(flag)
	if n < 0 || n > maxDays {
		return 0, fault.New(fault.Usage, "--%s %d: want a number from 0 to %d", flag, n, maxDays)
	}
	return time.Duration(n) * day, nil
}

func createSite(c *cli.Context, key *sign.Key) error {
	if err := need(c, "name"); err != nil {
		return err
	}
	life, err := days(c, "days")
	if err != nil {
		return err
	}
	s, err := site.Create(c.String("site"), c.String("name"), key, time.Now(), life)
	if err != nil {
		return err
	}
	defer s.Close()
	return showKeys(c, s)
}

func rotateKey(c *cli.Context) error {
	life, err := days(c, "days")
	if err != nil {
		return err
	}
	overlap, err := days(c, "overlap")
	if err != nil {
		return err
	}
	var key *sign.Key
	if file := c.String("import"); file != "" {
		if key, err = readSecret(file); err != nil {
			return err
		}
	}
	s, err := site.Open(c.String("site"))
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Rotate(key, time.Now(), life, overlap); err != nil {
		return err
	}
	return showKeys(c, s)
}

func showKeys(c *cli.Context, s *site.Site) error {
	now := time.Now()
	keys := s.Keys(now)
	if c.Bool("json") {
		return printJSON(c, map[string]any{"site": s.Name(), "edition": s.Edition(), "keys": keys, "warnings": append([]string{}, s.Warnings(now)...)})
	}
	date := func(t *time.Time, otherwise string) string {
		if t == nil {
			return otherwise
		}
		return t.Format("2006-01-02")
	}
	fmt.Fprintf(c.App.Writer, "site %s, last edition %d\n", s.Name(), s.Edition())
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	for _, k := range keys {
		fmt.Fprintf(w, "%s\tmade %s\tsigns until %s\texpires %s\n", k.Fingerprint, k.Created.Format("2006-01-02"), date(k.Retire, "rotated"), date(k.Expires, "never"))
	}
	w.Flush()
	for _, warning := range s.Warnings(now) {
		fmt.Fprintln(c.App.Writer, "warning: "+warning)
	}
	return nil
}
