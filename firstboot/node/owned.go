package node

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/slipwayhq/slipway/internal/atomicfile"
)

// EnsureFor is Ensure for a file that a service reads: it belongs to the service's
// user. At no moment can anybody else read it.
func (n *Node) EnsureFor(user, path string, mode os.FileMode, content string) (changed bool, err error) {
	uid, gid, err := n.numbers(user)
	if err != nil {
		return false, err
	}
	full := n.Path(path)
	if info, err := os.Lstat(full); err == nil && info.Mode().IsRegular() && info.Mode().Perm() == mode && owned(info, uid, gid) {
		if old, err := os.ReadFile(full); err == nil && bytes.Equal(old, []byte(content)) {
			return false, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return false, err
	}
	err = atomicfile.Write(full, mode, func(f *os.File) error {
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
		_, err := f.WriteString(content)
		return err
	})
	if err == nil {
		n.Changed("wrote %s", path)
	}
	return true, err
}

func owned(info os.FileInfo, uid, gid int) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == uid && int(stat.Gid) == gid
}

// numbers are a user's numbers on the node (passwd(5)).
func (n *Node) numbers(user string) (uid, gid int, err error) {
	passwd, err := n.Read("/etc/passwd")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(passwd)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 7 || f[0] != user {
			continue
		}
		if uid, err = strconv.Atoi(f[2]); err == nil {
			gid, err = strconv.Atoi(f[3])
		}
		return uid, gid, err
	}
	return 0, 0, fmt.Errorf("the image has no user %s", user)
}
