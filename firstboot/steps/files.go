package steps

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/atomicfile"
)

// Files writes the files of write_files: when the entry is new or changed, or
// the file is gone. What somebody changed on the node stays as long as the
// entry does. Late picks the entries with defer.
type Files struct{ Late bool }

func (Files) Name() string { return "files" }

// Deferred is Files for entries with defer, under a name of its own.
type Deferred struct{ Files }

func (Deferred) Name() string { return "late files" }

func (s Files) Apply(ctx context.Context, n *node.Node) error {
	var errs []error
	for i, f := range n.User.Config.WriteFiles {
		if f.Defer != s.Late {
			continue
		}
		if err := writeFile(n, i, f); err != nil {
			errs = append(errs, fmt.Errorf("write_files[%d], %s: %w", i, f.Path, err))
		}
	}
	return errors.Join(errs...)
}

func writeFile(n *node.Node, i int, f cloudconfig.WriteFile) error {
	content, err := decodeContent(f.Encoding, f.Content)
	if err != nil {
		return err
	}
	path := filepath.Clean(f.Path)
	// A file in a state directory outlives the version, and so must its record.
	state := n.Local
	if outlives(n, path) {
		state = n.Kept
	}
	key := fmt.Sprintf("file %d: %s", i, path)
	if n.Exists(path) && state.Is(key, f) {
		return nil
	}
	uid, gid, err := owner(n, f.Owner)
	if err != nil {
		return err
	}
	// A name that leads elsewhere is followed, as when one writes to the file.
	full := n.Path(path)
	if target, err := filepath.EvalSymlinks(full); err == nil {
		full = target
	}
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if f.Permissions != nil {
		mode = permissions(*f.Permissions)
	}
	if f.Append {
		old, err := os.ReadFile(full)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if info, err := os.Stat(full); err == nil && f.Permissions == nil {
			mode = info.Mode().Perm()
		}
		if bytes.HasSuffix(old, content) && len(content) > 0 {
			content = old // it was appended, and the record of it lost with the power
		} else {
			content = append(old, content...)
		}
	}
	err = atomicfile.Write(full, mode, func(file *os.File) error {
		if err := file.Chown(uid, gid); err != nil {
			return err
		}
		_, err := file.Write(content)
		return err
	})
	if err != nil {
		return err
	}
	n.Changed("wrote %s", path)
	return state.Done(key, nil, f)
}

func permissions(m cloudconfig.Mode) os.FileMode {
	mode := os.FileMode(m) & os.ModePerm
	for bit, flag := range map[cloudconfig.Mode]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if m&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

// outlives reports whether a path is in a directory that is kept from one
// version to the next.
func outlives(n *node.Node, path string) bool {
	for _, dir := range append([]string{"/var/lib/slipway", "/var/log", "/home", "/root", "/var/lib/systemd"}, n.Role.State...) {
		if path == dir || strings.HasPrefix(path, strings.TrimRight(dir, "/")+"/") {
			return true
		}
	}
	return false
}

func decodeContent(encoding, content string) ([]byte, error) {
	data := []byte(content)
	packed, coded := false, false
	switch encoding {
	case "", "text/plain":
	case "b64", "base64":
		coded = true
	case "gz", "gzip":
		packed = true
	case "gz+b64", "gzip+b64", "gz+base64", "gzip+base64":
		packed, coded = true, true
	default:
		return nil, fmt.Errorf("encoding is not known; use b64, gzip or gz+b64")
	}
	if coded {
		decoded, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(content), ""))
		if err != nil {
			return nil, fmt.Errorf("content is not base64: %w", err)
		}
		data = decoded
	}
	if packed {
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("content is not gzip: %w", err)
		}
		if data, err = io.ReadAll(io.LimitReader(z, cloudconfig.MaxSize+1)); err != nil {
			return nil, fmt.Errorf("content is damaged gzip: %w", err)
		}
		if len(data) > cloudconfig.MaxSize {
			return nil, fmt.Errorf("content unpacks to more than %d bytes", cloudconfig.MaxSize)
		}
	}
	return data, nil
}

// owner reads user, user:group or :group, by name or number.
func owner(n *node.Node, text string) (uid, gid int, err error) {
	user, group, _ := strings.Cut(text, ":")
	accounts, err := readAccounts(n)
	if err != nil {
		return 0, 0, err
	}
	if user != "" {
		a, ok := accounts.user(user)
		if !ok {
			return 0, 0, fmt.Errorf("owner: there is no user %q yet; for one that a package or command makes, add defer: true", user)
		}
		uid, gid = a.uid, a.gid
	}
	if group != "" {
		g, ok := accounts.group(group)
		if !ok {
			return 0, 0, fmt.Errorf("owner: there is no group %q yet; for one that a package or command makes, add defer: true", group)
		}
		gid = g
	}
	return uid, gid, nil
}
