package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/store"
	"github.com/slipwayhq/slipway/builder/mirror/volume"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// storeFlag names the isolated side's directory.
func storeFlag() cli.Flag {
	return &cli.StringFlag{Name: "store", Usage: "`DIR` of the mirror", Value: "/srv/slipway", EnvVars: []string{"SLIPWAY_STORE"}}
}

func mirrorImportCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "take volumes in, and publish the bundle once it is complete",
		ArgsUsage: "VOLUME...",
		Description: `A volume is the directory that holds VOLUME, such as a mounted disc; a directory of such directories
stands for all of them. Volumes may come in any order, together or one a day; what is there already is not
copied again. Nothing changes for clients until a bundle is complete.

The first import makes the mirror and wants the site's public key, which must have come another way than the
volumes. Later keys come with the bundles.

Examples:
  slipway mirror import --store /srv/slipway --key plant-7.asc /media/cdrom
  slipway mirror import /media/cdrom`,
		Flags: []cli.Flag{storeFlag(),
			&cli.StringFlag{Name: "key", Usage: "`FILE` with the site's public key, for the first import or after a rotation that was missed"},
			&cli.BoolFlag{Name: "trust-retired", Usage: "trust the key of --key even if a published bundle has retired it"},
			&cli.BoolFlag{Name: "allow-older", Usage: "go back to an older bundle than the published one"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: mirrorImport,
	}
}

func mirrorImport(c *cli.Context) error {
	if !c.Args().Present() {
		return fault.New(fault.Usage, "name the directories of one or more volumes").WithMend("see slipway mirror import --help")
	}
	b, err := begin(c)
	if err != nil {
		return err
	}
	defer b.close()
	var dirs []string
	for _, arg := range c.Args().Slice() {
		found, err := volume.Find(arg)
		if err != nil {
			return err
		}
		dirs = append(dirs, found...)
	}
	s, retired, err := openOrCreate(c.String("store"), c.String("key"), c.Bool("trust-retired"))
	if err != nil {
		return err
	}
	defer s.Close()
	for _, f := range retired {
		b.log.Warnf("--key: the key %s was retired by a bundle that is published, and is left out", f)
	}
	imported, err := s.Import(c.Context, dirs, store.ImportOptions{AllowOlder: c.Bool("allow-older"), Progress: b.progress, Notice: func(text string) { b.log.Warn(text) }})
	b.close()
	if c.Bool("json") {
		if imported == nil {
			imported = []store.Imported{}
		}
		return errors.Join(err, printJSON(c, imported))
	}
	for _, r := range imported {
		fmt.Fprintf(c.App.Writer, "%s, edition %d: volumes %s read, %s copied\n", r.Site, r.Edition, store.Numbers(r.Volumes), progress.Size(r.Copied))
		switch {
		case r.Published:
			fmt.Fprintln(c.App.Writer, "complete and published; carry the receipt back: slipway mirror receipt")
		case len(r.Missing) > 0:
			fmt.Fprintf(c.App.Writer, "still to come: volume %s\n", store.Numbers(r.Missing))
		}
		for _, d := range r.Damaged {
			fmt.Fprintln(c.App.Writer, "damaged: "+d)
		}
	}
	return err
}

// openOrCreate opens the store; with a key it makes one, or adds the key to those that are trusted. It returns the
// keys that stay out since a bundle has retired them; again lets them in.
func openOrCreate(dir, keyFile string, again bool) (s *store.Store, retired []string, err error) {
	if keyFile == "" {
		s, err = store.Open(dir)
		return s, nil, err
	}
	keys, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, nil, fault.New(fault.Input, "reading the site's key: %w", err)
	}
	if !store.Exists(dir) {
		if s, err = store.Create(dir, keys); err != nil {
			return nil, nil, fault.New(fault.Of(err), "making a mirror in %s: %w", dir, err).WithMend("%s", fault.Mend(err))
		}
		return s, nil, nil
	}
	if s, err = store.Open(dir); err != nil {
		return nil, nil, err
	}
	if retired, err = s.Trust(keys, again); err != nil {
		s.Close()
		return nil, nil, err
	}
	return s, retired, nil
}

func mirrorVerifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "check every byte of volumes, or of the mirror",
		ArgsUsage: "[VOLUME...]",
		Description: `With volumes: checks each alone, against the site's key (--key, or the keys that the mirror trusts). Without:
checks what the mirror publishes, the site's signatures, upstream's signatures, and the OCI digests, says which
volume to bring again for what is damaged, and names the packages that no signature of upstream covers. --repair takes damaged files away, so that importing that volume mends them.

Examples:
  slipway mirror verify --key plant-7.asc media/
  slipway mirror verify --store /srv/slipway`,
		Flags: []cli.Flag{storeFlag(),
			&cli.StringFlag{Name: "key", Usage: "`FILE` with the site's public key"},
			&cli.StringFlag{Name: "upstream-key", Usage: "`FILE` with the keys of the archives' owner", DefaultText: "Debian's, which are part of slipway"},
			&cli.BoolFlag{Name: "repair", Usage: "take damaged files of the mirror away"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return verifyVolumes(c)
			}
			return verifyStore(c)
		},
	}
}

// checkedVolume is what verify says of one volume.
type checkedVolume struct {
	Path    string   `json:"path"`
	Site    string   `json:"site"`
	Edition int64    `json:"edition"`
	Volume  int      `json:"volume"`
	Volumes int      `json:"volumes"`
	Bundle  string   `json:"bundle"`
	Files   int      `json:"files"`
	Wrong   []string `json:"wrong"`
}

func verifyVolumes(c *cli.Context) error {
	b, err := begin(c)
	if err != nil {
		return err
	}
	defer b.close()
	var ring sign.Ring
	if file := c.String("key"); file != "" {
		keys, err := publicKeys(file)
		if err != nil {
			return err
		}
		ring = sign.Ring(keys)
	} else {
		s, err := store.Read(c.String("store"))
		if err != nil {
			return fault.New(fault.Usage, "%w", err).WithMend("give the site's public key with --key FILE")
		}
		ring = s.Ring()
	}
	all := []checkedVolume{}
	damaged := 0
	var failed []error // of what is not even a volume; the others are looked at all the same
	for _, arg := range c.Args().Slice() {
		dirs, err := volume.Find(arg)
		if err != nil {
			failed = append(failed, err)
		}
		for _, dir := range dirs {
			one, err := verifyVolume(c, b, dir, ring)
			if err != nil {
				return err
			}
			if len(one.Wrong) > 0 {
				damaged++
			}
			all = append(all, one)
		}
	}
	b.close()
	if c.Bool("json") {
		if err := printJSON(c, all); err != nil {
			return err
		}
	} else {
		for _, v := range all {
			word := "whole"
			if len(v.Wrong) > 0 {
				word = "DAMAGED"
			}
			fmt.Fprintf(c.App.Writer, "%s: %s, %s\n", v.Path, v.describe(), word)
			for _, w := range v.Wrong {
				fmt.Fprintln(c.App.Writer, "  "+w)
			}
		}
	}
	if damaged > 0 {
		failed = slices.Insert(failed, 0, error(fault.New(fault.Integrity, "%d of %d volumes are damaged", damaged, len(all)).WithMend(volume.Bring)))
	}
	return errors.Join(failed...)
}

func (v checkedVolume) describe() string {
	if v.Edition == 0 {
		return "no volume that can be told"
	}
	return fmt.Sprintf("%s, %d files", volume.Name(v.Site, v.Edition, v.Volume, v.Volumes), v.Files)
}

func verifyVolume(c *cli.Context, b *session, dir string, ring sign.Ring) (checkedVolume, error) {
	one := checkedVolume{Path: dir, Wrong: []string{}}
	v, err := volume.Open(dir, ring)
	if err != nil {
		one.Wrong = append(one.Wrong, err.Error())
		return one, nil
	}
	defer v.Close()
	one.Site, one.Edition, one.Volume, one.Volumes, one.Bundle, one.Files = v.Site, v.Edition, v.Volume, v.Volumes, v.Bundle, len(v.Parts)
	var total int64
	for _, p := range v.Parts {
		total += p.Size
	}
	task := b.progress.Start("verify "+dir, total, progress.Bytes)
	wrong, err := v.Verify(c.Context, task.Add)
	task.Done(err)
	for _, w := range wrong {
		one.Wrong = append(one.Wrong, w.Error())
	}
	return one, err
}

// maxUnproven is how many packages that upstream does not vouch for are named to people.
const maxUnproven = 10

func verifyStore(c *cli.Context) error {
	b, err := begin(c)
	if err != nil {
		return err
	}
	defer b.close()
	upstream, err := upstreamKeys(c.String("upstream-key"))
	if err != nil {
		return err
	}
	open := store.Read
	if c.Bool("repair") {
		open = store.Open
	}
	s, err := open(c.String("store"))
	if err != nil {
		return err
	}
	defer s.Close()
	report, err := s.Verify(c.Context, store.VerifyOptions{Upstream: upstream, Repair: c.Bool("repair"), Progress: b.progress})
	if err != nil {
		return err
	}
	b.close()
	if c.Bool("json") {
		if err := printJSON(c, report); err != nil {
			return err
		}
	} else {
		for _, f := range report.Wrong {
			fmt.Fprintln(c.App.Writer, f)
		}
		if report.More > 0 {
			fmt.Fprintf(c.App.Writer, "and %d more of files that have many\n", report.More)
		}
		for _, p := range report.Unproven[:min(len(report.Unproven), maxUnproven)] {
			fmt.Fprintln(c.App.Writer, p+": no signature of upstream covers it; the site's key alone vouches for it")
		}
		if n := len(report.Unproven) - maxUnproven; n > 0 {
			fmt.Fprintf(c.App.Writer, "and %d more that no signature of upstream covers; --json names all\n", n)
		}
		fmt.Fprintf(c.App.Writer, "%s, edition %d: %d files, %s; %d packages and %d source packages, of which upstream's signatures cover %d; %d OCI manifests; %d things are wrong\n",
			report.Site, report.Edition, report.Files, progress.Size(report.Size), report.Packages, report.Sources, report.Proven, report.Images, len(report.Wrong)+report.More)
	}
	if n := len(report.Wrong) + report.More; n > 0 {
		return fault.New(fault.Integrity, "the mirror in %s is not whole: %d things are wrong", c.String("store"), n).
			WithMend("run `slipway mirror verify --repair`, then import the volumes that are named")
	}
	return nil
}

func upstreamKeys(file string) (openpgp.EntityList, error) {
	if file == "" {
		return apt.DebianKeys()
	}
	return publicKeys(file)
}

func mirrorReceiptCommand() *cli.Command {
	return &cli.Command{
		Name:  "receipt",
		Usage: "write the small file that tells the other side what is here",
		Description: `Carry it back: "slipway mirror update --receipt FILE" there makes a bundle of what is missing. It holds
hashes and sizes, no names, and no secret.

Example:
  slipway mirror receipt -o plant-7.receipt`,
		Flags: []cli.Flag{storeFlag(), &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE`", DefaultText: "standard output"}},
		Action: func(c *cli.Context) error {
			s, err := store.Read(c.String("store"))
			if err != nil {
				return err
			}
			r, err := s.Receipt(time.Now())
			if err != nil {
				return err
			}
			if out := c.String("output"); out != "" {
				return atomicfile.WriteBytes(out, 0o644, r.Bytes())
			}
			_, err = c.App.Writer.Write(r.Bytes())
			return err
		},
	}
}

func mirrorStatusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "say what the mirror publishes, and what to mind",
		Flags: []cli.Flag{storeFlag(), &cli.BoolFlag{Name: "json", Usage: "print JSON"}},
		Action: func(c *cli.Context) error {
			s, err := store.Read(c.String("store"))
			if err != nil {
				return err
			}
			now := time.Now()
			st := s.Status(now)
			if c.Bool("json") {
				return printJSON(c, st)
			}
			if st.Edition == 0 {
				fmt.Fprintln(c.App.Writer, "nothing is published yet")
			} else {
				fmt.Fprintf(c.App.Writer, "%s, edition %d, made %s (%s)\n", st.Site, st.Edition, st.Date.Format(time.RFC3339), store.Since(st.Date, now))
			}
			for _, k := range st.Keys {
				fmt.Fprintln(c.App.Writer, "trusts "+k)
			}
			for _, w := range st.Warnings {
				fmt.Fprintln(c.App.Writer, "warning: "+w)
			}
			return nil
		},
	}
}

func mirrorGCCommand() *cli.Command {
	return &cli.Command{
		Name:  "gc",
		Usage: "remove what the published bundle and the ones before it do not need",
		Description: `Clients that are in the middle of an update still find the indices of the bundle before, so one is kept.

Example:
  slipway mirror gc --keep 1 --dry-run`,
		Flags: []cli.Flag{storeFlag(),
			&cli.IntFlag{Name: "keep", Usage: "keep `N` bundles before the published one", Value: 1},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be removed, and remove nothing"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(c *cli.Context) error {
			s, err := store.Open(c.String("store"))
			if err != nil {
				return err
			}
			defer s.Close()
			r, err := s.GC(c.Context, max(c.Int("keep"), 0), c.Bool("dry-run"))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c, r)
			}
			word := "removed"
			if c.Bool("dry-run") {
				word = "would be removed"
			}
			fmt.Fprintf(c.App.Writer, "%d paths, %d files, %s, %d bundles %s\n", r.Files, r.Blobs, progress.Size(r.Size), r.Catalogs, word)
			return nil
		},
	}
}
