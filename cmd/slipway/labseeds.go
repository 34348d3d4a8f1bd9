package main

import (
	"encoding/pem"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

// labStoreFlags are storeFlags for a lab, which has a store of its own where there
// is no other.
func labStoreFlags() []cli.Flag {
	flags := storeFlags()
	for _, f := range flags {
		if s, ok := f.(*cli.StringFlag); ok && s.Name == "store" {
			s.DefaultText = "cluster.store beside cluster.yaml if there is one, else the lab's own"
		}
	}
	return flags
}

// storeDir is where the cluster's store is: where the user says, or beside the
// topology if there is one, or else the lab's own, which ends with the lab.
func (l *labSession) storeDir(c *cli.Context) (dir string, own bool) {
	if named := c.String("store"); named != "" {
		return named, false
	}
	beside := vault.DefaultDir(l.file)
	if _, err := os.Stat(beside); err == nil {
		return beside, false
	}
	return l.place.Store(), true
}

// openStore opens the cluster's store. The lab's own is made where there is none.
func (l *labSession) openStore(c *cli.Context, o vault.Options) (*vault.Vault, error) {
	dir, own := l.storeDir(c)
	o.Cluster, o.Create = l.topology.Name, own
	return openStoreIn(c, dir, o)
}

// writeSeeds brings the lab's seeds up to date. They carry the lab's key beside
// those of the topology's users.
func (l *labSession) writeSeeds(c *cli.Context) error {
	key, err := labKey(l.place, l.topology.Name)
	if err != nil {
		return err
	}
	v, err := l.openStore(c, vault.Options{})
	if err != nil {
		return err
	}
	defer v.Close()
	result, err := seeding.Write(c.Context, l.topology, v, l.place.Seeds(), seeding.Options{
		Formats: []seeding.Format{seeding.NoCloud}, Prune: true, ExtraKeys: []string{key}})
	if err != nil {
		return err
	}
	l.log.Debugf("seeds: %d written, %d unchanged, store %s", result.Count(seeding.Written), result.Count(seeding.Unchanged), v.Dir())
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Authority().Raw})
	return atomicfile.WriteBytes(l.place.Authority(), 0o644, authority)
}

// explainDatabase says how a client on this computer opens the database.
func (l *labSession) explainDatabase(c *cli.Context, state daemon.State) {
	if len(l.topology.Databases) == 0 {
		return
	}
	db := l.topology.Databases[0]
	for _, f := range state.Forwards {
		if f.Service != daemon.ReadWrite {
			continue
		}
		host, port, _ := strings.Cut(f.Host, ":")
		fmt.Fprintf(c.App.Writer, "\n  psql \"host=%s port=%s sslmode=verify-ca sslrootcert=%s user=%s dbname=%s\"\n", host, port, l.place.Authority(), db.Owner, db.Name)
		if c.String("seeds") != "" {
			return // whoever has written the seeds knows where the store is
		}
		dir, _ := l.storeDir(c)
		fmt.Fprintf(c.App.Writer, "  its password:  slipway secret show %s %s --store %s\n", l.file, db.PasswordKey(), dir)
		return
	}
}
