package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/builder/ownership"
	"golang.org/x/sys/unix"
)

// volatile are the files that scripts leave and that differ from build to
// build, or must be born on the node: logs, locks, backups, caches, identities.
var volatile = []string{
	"run/*", "tmp/*", "var/tmp/*", "dev/*",
	"var/log/dpkg.log", "var/log/alternatives.log", "var/log/bootstrap.log", "var/log/apt/*",
	"var/lib/apt/lists/lock", "var/lib/apt/lists/*_*", "var/cache/apt/*.bin", "var/cache/apt/archives/*.deb", "var/cache/apt/archives/lock",
	"var/cache/ldconfig/aux-cache", "var/cache/man/*", "var/cache/debconf/*-old",
	"var/lib/systemd/catalog/database", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret",
	"var/lib/dbus/machine-id", "var/lib/ucf/*.[0-9]",
	"var/lib/dpkg/*-old", "var/lib/dpkg/lock*", "var/lib/dpkg/triggers/Lock",
	"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "etc/.pwd.lock",
	"etc/ssh/ssh_host_*", "etc/ssl/private/ssl-cert-snakeoil.key", "etc/ssl/certs/ssl-cert-snakeoil.pem",
	"etc/.updated", "var/.updated", "root/.cache", "root/.bash_history",
}

// shadowGroup is Debian's fixed group id of "shadow" (base-passwd).
const shadowGroup = 42

// clean ends the session and makes the layer the same for every builder.
func (b *builder) clean(context.Context) error {
	b.root.Close()
	b.root = nil
	if err := b.session.Close(); err != nil {
		return err
	}
	root, err := deb.OpenRoot(b.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, pattern := range volatile {
		if err := root.RemoveMatching(path.Dir(pattern), path.Base(pattern)); err != nil {
			return err
		}
	}
	// An empty file is what systemd fills on the node's first boot
	// (machine-id(5), "FIRST BOOT SEMANTICS").
	if b.base() || root.Exists("etc/machine-id") {
		if err := root.WriteFile("etc/machine-id", 0o444, nil); err != nil {
			return err
		}
	}
	for _, name := range []string{"etc/shadow", "etc/gshadow"} {
		if err := b.fixShadow(root, name); err != nil {
			return err
		}
	}
	if err := forgetTemporaryNames(root); err != nil {
		return err
	}
	return widenModes(b.Dir)
}

// temporaryName is a variable in debconf's database that names a temporary
// file: ucf keeps the last one it asked about.
var temporaryName = regexp.MustCompile(`(?m)^ \S+ = /tmp/.*\n`)

// forgetTemporaryNames removes random file names from debconf's database.
func forgetTemporaryNames(root *deb.Root) error {
	const name = "var/cache/debconf/config.dat"
	content, err := root.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !temporaryName.Match(content) {
		return err
	}
	return root.WriteFile(name, 0o644, temporaryName.ReplaceAll(content, nil))
}

// fixShadow gives a shadow file back its group, which the tools that rewrite it
// cannot see in the sandbox, and sets the days on which passwords were changed to
// the layer's date (shadow(5), third field).
func (b *builder) fixShadow(root *deb.Root, name string) error {
	content, err := root.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if name == "etc/shadow" {
		day := strconv.FormatInt(b.Date/(24*60*60), 10)
		lines := strings.Split(string(content), "\n")
		for i, line := range lines {
			if fields := strings.Split(line, ":"); len(fields) > 2 && fields[2] != "" && fields[2] != "0" {
				fields[2] = day
				lines[i] = strings.Join(fields, ":")
			}
		}
		content = []byte(strings.Join(lines, "\n"))
	}
	if err := root.WriteFile(name, 0o640, content); err != nil {
		return err
	}
	return root.SetOwner(name, 0, shadowGroup)
}

// widenModes lets the caller read every file of the layer, be it an ordinary
// user, and records the true mode where that changes it.
func widenModes(dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() && !d.Type().IsRegular() {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: name, Err: err}
		}
		perm := st.Mode & 0o7777
		disk := ownership.Readable(perm, d.IsDir())
		if disk == perm {
			return nil
		}
		// Setting the attribute needs the right to write.
		if err := unix.Chmod(name, perm|0o700); err != nil {
			return &os.PathError{Op: "chmod", Path: name, Err: err}
		}
		if err := unix.Lsetxattr(name, ownership.Mode, ownership.FormatMode(perm), 0); err != nil {
			return fmt.Errorf("recording the mode of %s: %w", name, err)
		}
		return unix.Chmod(name, disk)
	})
}
