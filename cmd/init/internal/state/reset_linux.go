package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/internal/atomicfile"
)

// Reset does the factory reset that a file in the state file system at dir asks for: what
// the versions wrote to their root file systems goes and, if that is asked for too, what
// the state directories hold, but for bootfacts.Kept. The file goes last, so a
// reset that a power cut interrupts begins again. It returns what was done: "",
// "system" or "data".
func Reset(dir string, say func(string, ...any)) (string, error) {
	file := filepath.Join(dir, filepath.Base(bootfacts.ResetPath))
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var asked bootfacts.Reset
	if err := json.Unmarshal(text, &asked); err != nil || asked.Format != 1 {
		// Nobody knows what was meant, so nothing is taken away.
		say("the file that asks for a factory reset cannot be read; nothing is reset")
		return "", os.Remove(file)
	}
	done := "system"
	say("factory reset: taking away what was changed in the root file system")
	if err := os.RemoveAll(filepath.Join(dir, "upper")); err != nil {
		return "", err
	}
	if asked.Data {
		done = "data"
		say("factory reset: taking away the data of this node")
		if err := emptyBut(filepath.Join(dir, "data"), "/", bootfacts.Kept()); err != nil {
			return "", err
		}
	}
	if err := syncFS(dir); err != nil {
		return "", err
	}
	if err := os.Remove(file); err != nil {
		return "", err
	}
	return done, atomicfile.SyncDir(dir)
}

// emptyBut takes away what is in the directory at root, but for some paths, which begin at below. A
// directory on the way to one of those stays, as one that has yet to be filled from the image.
func emptyBut(root, below string, keep []string) error {
	list, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range list {
		name, stays, leads := filepath.Join(below, e.Name()), false, false
		for _, k := range keep {
			stays = stays || k == name
			leads = leads || strings.HasPrefix(k, name+"/")
		}
		full := filepath.Join(root, e.Name())
		switch {
		case stays:
		case leads && e.IsDir():
			if err := unix.Lremovexattr(full, seededMark); err != nil && !errors.Is(err, unix.ENODATA) {
				return fmt.Errorf("%s: %w", full, err)
			}
			if err := emptyBut(full, name, keep); err != nil {
				return err
			}
		default:
			if err := os.RemoveAll(full); err != nil {
				return err
			}
		}
	}
	return nil
}

// NoteFailure writes down why a version could not be started, for the one that the machine falls
// back to.
func NoteFailure(file, version string, why error) error {
	text, err := json.Marshal(bootfacts.Failure{Version: version, Why: why.Error()})
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(file, 0o600, text)
}
