package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/slipwayhq/slipway/internal/atomicfile"
)

// MachineID returns the machine's identity (machine-id(5)): the one that the
// state file system at dir keeps or, at the first boot, a new random one.
func MachineID(dir string) (string, error) {
	file := filepath.Join(dir, "machine-id")
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	// A damaged file counts as none: a node with a new identity can be looked
	// at, one that does not boot cannot.
	if id := strings.TrimSpace(string(text)); validID(id) {
		return id, nil
	}
	id, err := newID(rand.Reader)
	if err != nil {
		return "", err
	}
	return id, atomicfile.WriteBytes(file, 0o444, []byte(id+"\n"))
}

// newID makes a version 4 UUID without its hyphens, as machine-id(5) asks.
func newID(random io.Reader) (string, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(random, b); err != nil {
		return "", err
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return hex.EncodeToString(b), nil
}

func validID(s string) bool {
	if len(s) != 32 || strings.Trim(s, "0123456789abcdef") != "" {
		return false
	}
	return strings.Trim(s, "0") != ""
}

// InstallMachineID writes the identity into the root file system at root,
// unless it already stands there.
func InstallMachineID(root, id string) error {
	file := filepath.Join(root, "etc/machine-id")
	if text, err := os.ReadFile(file); err == nil && string(text) == id+"\n" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return atomicfile.WriteBytes(file, 0o444, []byte(id+"\n"))
}
