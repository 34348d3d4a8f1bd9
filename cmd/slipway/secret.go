package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

func secretCommand() *cli.Command {
	return &cli.Command{
		Name:  "secret",
		Usage: "look up the passwords that were made for a cluster",
		Subcommands: []*cli.Command{
			{
				Name:      "list",
				Usage:     "name the passwords in a cluster's store",
				ArgsUsage: "[FILE]",
				Description: `Shows their names and what they are for, not the passwords. FILE is cluster.yaml unless another is named.

Examples:
  slipway secret list
  slipway secret list cluster.yaml --json`,
				Flags:        append([]cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}}, storeFlags()...),
				BashComplete: completeFiles,
				Action:       listSecrets,
			},
			{
				Name:      "show",
				Usage:     "print one password",
				ArgsUsage: "[FILE] NAME",
				Description: `The only command that prints a password: to the terminal, or into a pipe.
FILE is cluster.yaml unless another is named.

Examples:
  slipway secret show database-app
  PGPASSWORD=$(slipway secret show cluster.yaml database-app) psql -h db.example.org -U app app`,
				Flags:        append([]cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}}, storeFlags()...),
				BashComplete: completeFiles,
				Action:       showSecret,
			},
			{
				Name:      "set",
				Usage:     "keep a secret that was made elsewhere: the keys of S3-like storage, the passphrase of another cluster's backups",
				ArgsUsage: "[FILE] NAME",
				Description: `Reads the secret from standard input, one line, so that it stands in no list of processes
and in no history. NAME is backup-s3-key or backup-s3-key-secret; or restore-passphrase,
restore-s3-key or restore-s3-key-secret, for backups that another cluster made. Whatever else
there is was made for the cluster. The nodes get it with their next seeds.
FILE is cluster.yaml unless another is named.

Examples:
  slipway secret set backup-s3-key < key.txt
  pass show backups/secret | slipway secret set cluster.yaml backup-s3-key-secret`,
				Flags:        storeFlags(),
				BashComplete: completeFiles,
				Action:       setSecret,
			},
		},
	}
}

// secretLine is a password's name and what it is for.
type secretLine struct {
	Name    string `json:"name"`
	Purpose string `json:"purpose"`
}

func listSecrets(c *cli.Context) error {
	path, err := fileOrDefault(c)
	if err != nil {
		return err
	}
	v, err := openStore(c, path, vault.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer v.Close()
	lines := []secretLine{}
	for _, name := range v.SecretNames() {
		lines = append(lines, secretLine{name, secretPurpose(name)})
	}
	if c.Bool("json") {
		return printJSON(c, lines)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	for _, l := range lines {
		fmt.Fprintf(w, "%s\t%s\n", l.Name, l.Purpose)
	}
	return w.Flush()
}

func secretPurpose(name string) string {
	switch name {
	case plan.SuperuserPassword:
		return "PostgreSQL's superuser, postgres"
	case plan.ReplicationPassword:
		return "replication between databases"
	case plan.RewindPassword:
		return "pg_rewind of a former primary"
	case plan.BackupCipher:
		return "the passphrase of the backups: without it they are lost"
	case plan.S3Key, plan.S3KeySecret:
		return "the storage that keeps the backups"
	case plan.SourceCipher:
		return "the passphrase of the other cluster's backups that are restored from"
	case plan.SourceS3Key, plan.SourceS3KeySecret:
		return "the storage that keeps the other cluster's backups"
	}
	if owner, ok := strings.CutPrefix(name, plan.Database{}.PasswordKey()); ok {
		return "the database user " + owner
	}
	return ""
}

func showSecret(c *cli.Context) error {
	file, name := topologyFile, c.Args().First()
	switch c.NArg() {
	case 1:
	case 2:
		file, name = c.Args().Get(0), c.Args().Get(1)
	default:
		return fault.New(fault.Usage, "slipway secret show takes a file and a name, not %d arguments", c.NArg()).
			WithMend("slipway secret list tells the names")
	}
	v, err := openStore(c, file, vault.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer v.Close()
	value, err := v.Secret(name)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c, map[string]string{"name": name, "value": value})
	}
	_, err = fmt.Fprintln(c.App.Writer, value)
	return err
}

// settable are the secrets that slipway does not make itself.
var settable = []string{plan.S3Key, plan.S3KeySecret, plan.SourceCipher, plan.SourceS3Key, plan.SourceS3KeySecret}

// maxSecret bounds what is read of a secret.
const maxSecret = 4096

func setSecret(c *cli.Context) error {
	file, rest := fileFirst(c.Args().Slice())
	if len(rest) != 1 || !slices.Contains(settable, rest[0]) {
		return fault.New(fault.Usage, "slipway secret set takes a file and one of the names %s", strings.Join(settable, ", "))
	}
	data, err := io.ReadAll(io.LimitReader(c.App.Reader, maxSecret+1))
	if err != nil {
		return err
	}
	value := strings.TrimRight(string(data), "\r\n")
	if value == "" || len(data) > maxSecret || value != strings.TrimSpace(value) || strings.ContainsAny(value, "\r\n\x00") {
		return fault.New(fault.Usage, "what was read is no secret: it must be one line, of at most %d bytes", maxSecret)
	}
	t, err := topology.Load(file)
	if err != nil {
		return err
	}
	// The first seeds need the keys already: the store may begin with them.
	v, err := openStore(c, file, vault.Options{Cluster: t.Name, Create: true})
	if err != nil {
		return err
	}
	defer v.Close()
	if !v.SetSecret(rest[0], value) {
		fmt.Fprintf(c.App.Writer, "%s is that already.\n", rest[0])
		return nil
	}
	if err := v.Save(); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "%s is kept in %s; the nodes get it with their next seeds: slipway seed %s\n", rest[0], v.Dir(), file)
	return nil
}
