package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/store"
	"github.com/slipwayhq/slipway/builder/mirror/volume"
	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

// runDir is the import's: media below mediaDir, what it is told, and what it says.
const (
	runDir      = "/run/slipway/mirror"
	mediaDir    = runDir + "/media"
	optionsFile = runDir + "/options"
	resultFile  = runDir + "/result.json"
	sayingsFile = runDir + "/sayings"
)

// importLimit is for the largest disks over the slowest drives.
const (
	importLimit = 7 * 24 * time.Hour
	mountLimit  = time.Minute
	listenAgain = 2 * time.Second
)

// LoadArgs say what is taken in.
type LoadArgs struct {
	// AllowOlder goes back to a bundle with a lower number than the published one.
	AllowOlder bool `json:"allow_older,omitempty"`
}

// LoadResult says what was taken in.
type LoadResult struct {
	Media    []string         `json:"media"` // devices with volumes
	Imported []store.Imported `json:"imported"`
}

// Load takes in the volumes of a bundle from all media that are attached: discs and
// disks, with ISO 9660, UDF, FAT or ext. They are mounted read-only, and read by a
// service without privilege.
var Load = actions.Action{Name: "mirror-load", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
	var a LoadArgs
	if err := actions.Decode(args, &a); err != nil {
		return nil, err
	}
	n := e.Node
	if n.Member == nil || !n.Member.Plan.Mirrors(n.Member.Self.Name) {
		return nil, fault.New(fault.Input, "this node is not the cluster's mirror")
	}
	if n.UnitBusy(ctx, ImportUnit) {
		return nil, fault.New(fault.Failed, "media are being taken in already").WithMend("wait until that is done; see: journalctl -u %s", ImportUnit)
	}
	// What an agent that was cut off left mounted comes away as well.
	defer unmount(context.WithoutCancel(ctx), n)
	unmount(ctx, n)
	media, err := mount(ctx, e)
	if err != nil {
		return nil, err
	}
	var words []string
	if a.AllowOlder {
		words = append(words, "--allow-older")
	}
	for _, device := range media { // whose names are the kernel's, without spaces
		words = append(words, mediaDir+"/"+strings.TrimPrefix(device, "/dev/"))
	}
	if _, err := n.Write(optionsFile, 0o644, []byte("OPTIONS="+strings.Join(words, " ")+"\n")); err != nil {
		return nil, err
	}
	imported, err := run(ctx, e)
	if err != nil { // an error goes without a result, and these say what to bring
		for _, one := range imported {
			lament(e, one)
		}
	}
	return LoadResult{Media: media, Imported: imported}, err
}}

// maxDamaged is how many damaged files are named; a disc that cannot be read at all has thousands.
const maxDamaged = 20

// lament says what is damaged of a bundle and what it lacks.
func lament(e *actions.Env, i store.Imported) {
	for _, d := range i.Damaged[:min(len(i.Damaged), maxDamaged)] {
		e.Say("damaged: %s", printable(d))
	}
	if n := len(i.Damaged) - maxDamaged; n > 0 {
		e.Say("and %d more files are damaged", n)
	}
	if len(i.Missing) > 0 {
		e.Say("edition %d of %s is not complete; still to come: volume %s", i.Edition, printable(i.Site), store.Numbers(i.Missing))
	}
}

// run has the service take in what is mounted, tells what it says, and reads its result.
func run(ctx context.Context, e *actions.Env) ([]store.Imported, error) {
	n := e.Node
	for _, file := range []string{resultFile, sayingsFile} {
		if _, err := n.Remove(file); err != nil {
			return nil, err
		}
	}
	ended := make(chan error, 1)
	go func() {
		_, err := n.Execute(ctx, node.Command{Argv: []string{"systemctl", "start", ImportUnit}, Timeout: importLimit})
		ended <- err
	}()
	tick := time.NewTicker(listenAgain)
	defer tick.Stop()
	heard := 0
	listen := func() {
		text, err := n.Read(sayingsFile)
		if err != nil {
			return
		}
		for {
			line, rest, whole := strings.Cut(string(text[min(heard, len(text)):]), "\n")
			if !whole {
				return
			}
			heard = len(text) - len(rest)
			if !strings.HasPrefix(line, `{"error"`) {
				e.Say("%s", printable(line))
			}
		}
	}
	for {
		select {
		case <-tick.C:
			listen()
			continue
		case <-ctx.Done():
			// Whoever asked has gone away. What is whole is kept, and the same action goes on.
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), mountLimit)
			defer cancel()
			_, err := n.Command(stop, "systemctl", "stop", ImportUnit)
			<-ended
			return nil, errors.Join(ctx.Err(), err)
		case err := <-ended:
			listen()
			imported, resultErr := result(n)
			if err == nil && resultErr == nil && imported == nil {
				resultErr = fault.New(fault.Failed, "%s ended and took nothing in", ImportUnit).WithMend("see: systemctl status %s", ImportUnit)
			}
			if err == nil {
				return imported, resultErr
			}
			if said := complaint(n); said != nil {
				return imported, said
			}
			return imported, fault.New(fault.Failed, "the media could not be taken in: %w", err).WithMend("see: journalctl -u %s", ImportUnit)
		}
	}
}

const maxResult = 1 << 20

func result(n *node.Node) ([]store.Imported, error) {
	text, err := n.Read(resultFile)
	if err != nil || len(text) == 0 {
		return nil, err
	}
	var imported []store.Imported
	if len(text) > maxResult {
		return nil, fault.New(fault.Internal, "%s has %d bytes", resultFile, len(text))
	}
	if err := json.Unmarshal(text, &imported); err != nil {
		return nil, fault.New(fault.Internal, "%s cannot be read: %w", resultFile, err)
	}
	return imported, nil
}

// complaint is the error that the import ended with; nil if it told of none.
func complaint(n *node.Node) error {
	text, err := n.Read(sayingsFile)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		var said struct {
			Error *struct{ Class, Message, Mend string }
		}
		if json.Unmarshal([]byte(line), &said) == nil && said.Error != nil {
			return fault.New(fault.Named(said.Error.Class), "%s", said.Error.Message).WithMend("%s", said.Error.Mend)
		}
	}
	return nil
}

func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, line)
}

// fileSystems are those that media may have, with options beyond those of all.
// Mounting ext read-only would still replay its journal, onto the medium.
var fileSystems = map[string]string{"iso9660": "", "udf": "", "vfat": "", "exfat": "", "ext2": "", "ext3": ",noload", "ext4": ",noload"}

// ambivalent is blkid's exit status where it finds signs of more than one file system (blkid(8)).
const ambivalent = 8

// mount mounts all media that hold volumes, and returns their devices.
func mount(ctx context.Context, e *actions.Env) ([]string, error) {
	n := e.Node
	devices, err := devices(n)
	if err != nil {
		return nil, err
	}
	var with, looked []string
	var wrong []error
	foreign := false
	for _, device := range devices {
		kind, err := n.Execute(ctx, node.Command{Argv: []string{"blkid", "-p", "-s", "TYPE", "-o", "value", "/dev/" + device}, Timeout: mountLimit})
		kind = strings.TrimSpace(kind)
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == ambivalent {
			kind = "several file systems at once"
		} else if err != nil || kind == "" {
			continue // nothing on it, or only partitions, which are devices of their own
		}
		more, known := fileSystems[kind]
		if !known {
			looked, foreign = append(looked, fmt.Sprintf("/dev/%s (%s: cannot be read here)", device, printable(kind))), true
			continue
		}
		looked = append(looked, fmt.Sprintf("/dev/%s (%s)", device, kind))
		at := mediaDir + "/" + device
		if err := os.MkdirAll(n.Path(at), 0o755); err != nil {
			return nil, err
		}
		argv := []string{"mount", "-t", kind, "-o", "ro,nosuid,nodev,noexec" + more, "/dev/" + device, at}
		if _, err := n.Execute(ctx, node.Command{Argv: argv, Timeout: mountLimit}); err != nil {
			wrong = append(wrong, fmt.Errorf("/dev/%s could not be mounted: %w", device, err))
			continue
		}
		if _, err := volume.Find(n.Path(at)); err != nil {
			if unread := (*fs.PathError)(nil); errors.As(err, &unread) { // it may hold volumes, and cannot be read
				wrong = append(wrong, fmt.Errorf("/dev/%s: %w", device, err))
			}
			if _, err := n.Command(ctx, "umount", at); err != nil {
				return nil, err
			}
			continue
		}
		e.Say("/dev/%s holds volumes", device)
		with = append(with, "/dev/"+device)
	}
	if len(with) > 0 {
		for _, err := range wrong { // the others are taken in all the same
			e.Say("passed over: %s", printable(err.Error()))
		}
		return with, nil
	}
	what := "nothing is attached but the node's own disk"
	if len(looked) > 0 {
		what = "there is no VOLUME on " + strings.Join(looked, ", ")
	}
	mend := "attach the disc or disk to the machine and run the same command again"
	if foreign {
		mend = "bring the volumes on a disc or disk with ISO 9660, UDF, FAT, exFAT or ext, and run the same command again"
	}
	return nil, fault.New(fault.Input, "no medium with volumes of a mirror: %w", errors.Join(append([]error{errors.New(what)}, wrong...)...)).WithMend("%s", mend)
}

// unmount takes all media away again.
func unmount(ctx context.Context, n *node.Node) {
	entries, _ := os.ReadDir(n.Path(mediaDir))
	for _, entry := range entries {
		at := mediaDir + "/" + entry.Name()
		_, _ = n.Execute(ctx, node.Command{Argv: []string{"umount", at}, Timeout: mountLimit}) // it may not be mounted
		_ = os.Remove(n.Path(at))
	}
}

// ownDevice are names of devices that no medium is: the image's layers, RAM, and what is
// stacked on disks.
var ownDevice = regexp.MustCompile(`^(loop|ram|zram|nbd|drbd|dm-|md|fd)[0-9]`)

// devices are the block devices that a medium may be. A disk of which any part is in use
// is the node's own, and left alone altogether.
func devices(n *node.Node) ([]string, error) {
	const class = "/sys/class/block"
	entries, err := os.ReadDir(n.Path(class))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	used, err := inUse(n)
	if err != nil {
		return nil, err
	}
	attribute := func(device, name string) string {
		text, _ := n.Read(class + "/" + device + "/" + name)
		return strings.TrimSpace(string(text))
	}
	disks := map[string]string{} // by name of a device: the disk that it is, or is a part of
	own := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		disks[name] = name
		// A partition's directory is within that of its disk.
		if at, err := filepath.EvalSymlinks(n.Path(class + "/" + name)); err == nil && attribute(name, "partition") != "" {
			disks[name] = filepath.Base(filepath.Dir(at))
		}
		if used[attribute(name, "dev")] || ownDevice.MatchString(name) {
			own[disks[name]] = true
		}
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if size, _ := strconv.ParseInt(attribute(name, "size"), 10, 64); size > 0 && !own[disks[name]] {
			names = append(names, name)
		}
	}
	return names, nil
}

// inUse are the numbers (major:minor) of devices that are mounted
// (proc_pid_mountinfo(5)).
func inUse(n *node.Node) (map[string]bool, error) {
	text, err := n.Read("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 {
			used[f[2]] = true
		}
	}
	return used, nil
}
