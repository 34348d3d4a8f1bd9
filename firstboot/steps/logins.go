package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/node"
)

// authorizeKeys gives a user exactly the metadata's keys, beside those that
// somebody else put into the file.
func authorizeKeys(n *node.Node, u cloudconfig.User, a account) error {
	var keys []string
	for i, line := range u.SSHAuthorizedKeys {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err != nil || strings.ContainsAny(line, "\r\n") {
			n.Warn(u.Where.String(), fmt.Sprintf("ssh_authorized_keys[%d] of %s", i, u.Name), "not a public key in one line, as ssh-keygen writes it to a .pub file; left out")
			continue
		}
		if !slices.Contains(keys, line) {
			keys = append(keys, line)
		}
	}
	if len(keys) > 0 {
		n.Report.Login(u.Name)
	}
	kept := n.Kept.Users[u.Name]
	if len(keys) == 0 && len(kept.Keys) == 0 {
		return nil
	}
	home := a.home
	if home == "" || home == "/" || home == "/nonexistent" {
		return fmt.Errorf("has ssh keys and no home directory to keep them in")
	}
	file := home + "/.ssh/authorized_keys"
	old, err := n.Read(file)
	if err != nil {
		return err
	}
	lines := slices.Clone(keys)
	for _, line := range strings.Split(strings.TrimRight(string(old), "\n"), "\n") {
		if line != "" && !slices.Contains(kept.Keys, line) && !slices.Contains(keys, line) {
			lines = append(lines, line)
		}
	}
	// The record first: after a power cut between the two, a key that was
	// written is known as the agent's.
	if !slices.Equal(kept.Keys, keys) {
		both := kept
		both.Keys = append(slices.Clone(kept.Keys), keys...)
		n.Kept.Users[u.Name] = both
		if err := n.Kept.Save(); err != nil {
			return err
		}
	}
	if err := writeOwned(n, a, file, strings.Join(lines, "\n")+"\n"); err != nil {
		return err
	}
	if slices.Equal(kept.Keys, keys) {
		return nil
	}
	kept.Keys = keys
	kept.UID, kept.GID = a.uid, a.gid
	n.Kept.Users[u.Name] = kept
	n.Changed("%s has %d ssh keys", u.Name, len(keys))
	return n.Kept.Save()
}

// writeOwned writes a file in a user's .ssh. The user may own the directory, so
// no link in it is followed.
func writeOwned(n *node.Node, a account, file, content string) error {
	dir := filepath.Dir(file)
	full := n.Path(dir)
	if err := os.MkdirAll(n.Path(a.home), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(full, 0o700); err == nil {
		if err := os.Lchown(full, a.uid, a.gid); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	if info, err := os.Lstat(full); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if info, err := os.Lstat(n.Path(file)); err == nil {
		stat, ok := info.Sys().(*syscall.Stat_t)
		old, readErr := n.Read(file)
		if ok && info.Mode().IsRegular() && int(stat.Uid) == a.uid && readErr == nil && string(old) == content {
			return nil
		}
	}
	fresh, err := os.CreateTemp(full, ".slipway-*")
	if err != nil {
		return err
	}
	defer os.Remove(fresh.Name())
	if _, err := fresh.WriteString(content); err != nil {
		fresh.Close()
		return err
	}
	if err := errors.Join(fresh.Chown(a.uid, a.gid), fresh.Chmod(0o600), fresh.Sync(), fresh.Close()); err != nil {
		return err
	}
	return os.Rename(fresh.Name(), n.Path(file))
}

// sudoRules writes a user's rules once visudo has found nothing wrong with
// them: one bad file would take sudo away from everybody.
func sudoRules(ctx context.Context, n *node.Node, u cloudconfig.User) error {
	// sudo skips files with a dot in their name.
	file := "/etc/sudoers.d/90-slipway-" + strings.ReplaceAll(u.Name, ".", "%2e")
	if len(u.Sudo) == 0 {
		_, err := n.Ensure(file, 0, "")
		return err
	}
	content := "# Written by the slipway agent from the node's metadata.\n"
	for _, rule := range u.Sudo {
		if strings.ContainsAny(rule, "\r\n") {
			return fmt.Errorf("a sudo rule holds a line break; give several rules as a list")
		}
		content += u.Name + " " + rule + "\n"
	}
	if old, err := n.Read(file); err == nil && string(old) == content {
		return nil
	}
	candidate := "/etc/sudoers.d/.slipway-candidate"
	if _, err := n.Write(candidate, 0o440, []byte(content)); err != nil {
		return err
	}
	_, err := n.Command(ctx, "visudo", "-c", "-q", "-f", candidate)
	if _, removeErr := n.Remove(candidate); removeErr != nil {
		return removeErr
	}
	if err != nil {
		return fmt.Errorf("its sudo rules are not in effect: %w", err)
	}
	_, err = n.Ensure(file, 0o440, content)
	return err
}

// hashed reports whether a password is a hash of crypt(5).
func hashed(password string) bool {
	return strings.HasPrefix(password, "$") && strings.Count(password, "$") >= 3
}

// userPassword sets the password that a user's entry gives. It is set when it
// is new or changed, so that one which the user chose since stays.
func userPassword(ctx context.Context, n *node.Node, u cloudconfig.User) error {
	password, hash := u.PlainTextPasswd, false
	if password == "" {
		if password, hash = u.HashedPasswd, true; password == "" {
			password = u.Passwd
		}
	}
	locked := u.LockPasswd == nil || *u.LockPasswd
	if password == "" {
		if !locked {
			n.Warn(u.Where.String(), "lock_passwd", "%s has no password, so there is nothing to unlock; no account gets in without one", u.Name)
		}
		return nil
	}
	if locked {
		n.Warn(u.Where.String(), "passwd", "the password of %s is set and locked, as cloud-init does; add lock_passwd: false to use it", u.Name)
	}
	return setPassword(ctx, n, "password of "+u.Name, u.Name, password, hash, locked, false)
}

// applyPasswords does chpasswd.
func applyPasswords(ctx context.Context, n *node.Node) error {
	c := n.User.Config.Chpasswd
	if c == nil {
		return nil
	}
	var errs []error
	expire := c.Expire == nil || *c.Expire
	for _, p := range append(slices.Clone(c.Users), c.List...) {
		if p.Type == "RANDOM" {
			n.Warn("", "chpasswd", "%s gets no password: one made up would have to be shown on the console; use an ssh key", p.Name)
			continue
		}
		if p.Password == "" || strings.ContainsAny(p.Password, "\r\n") || strings.Contains(p.Name, ":") {
			errs = append(errs, fmt.Errorf("chpasswd: the password of %q is empty or holds a line break", p.Name))
			continue
		}
		errs = append(errs, setPassword(ctx, n, "chpasswd of "+p.Name, p.Name, p.Password, p.Type != "text", false, expire))
	}
	return errors.Join(errs...)
}

// passwordFor finds what chpasswd has for a user.
func passwordFor(c *cloudconfig.Config, name string) (cloudconfig.Password, bool) {
	if c.Chpasswd != nil {
		for _, p := range append(slices.Clone(c.Chpasswd.Users), c.Chpasswd.List...) {
			if p.Name == name && p.Type != "RANDOM" {
				return p, true
			}
		}
	}
	return cloudconfig.Password{}, false
}

func setPassword(ctx context.Context, n *node.Node, key, user, password string, hash, locked, expire bool) error {
	if n.Local.Is(key, password, hash, locked, expire) {
		return nil
	}
	argv := []string{"chpasswd"}
	if hash {
		if !hashed(password) || strings.ContainsAny(password, ": \t\n") {
			return fmt.Errorf("the password hash of %s is none (it must begin like $6$ or $y$); make one with: openssl passwd -6", user)
		}
		argv = append(argv, "--encrypted")
	}
	if strings.ContainsAny(password, "\r\n") {
		return fmt.Errorf("the password of %s holds a line break", user)
	}
	if _, err := n.Execute(ctx, node.Command{Argv: argv, Stdin: user + ":" + password + "\n", Private: true}); err != nil {
		return fmt.Errorf("setting the password of %s: %w", user, err)
	}
	if locked {
		if _, err := n.Command(ctx, "usermod", "--lock", "--", user); err != nil {
			return err
		}
	}
	if expire {
		if _, err := n.Command(ctx, "chage", "--lastday", "0", "--", user); err != nil {
			return err
		}
	}
	n.Changed("set the password of %s", user)
	return n.Local.Done(key, nil, password, hash, locked, expire)
}

// sshLogin says whether ssh takes passwords, and root.
func sshLogin(ctx context.Context, n *node.Node) error {
	c := &n.User.Config
	content := ""
	if c.SSHPwauth.Set {
		answer := map[bool]string{true: "yes", false: "no"}[c.SSHPwauth.Value]
		content += "PasswordAuthentication " + answer + "\nKbdInteractiveAuthentication " + answer + "\n"
	}
	if c.DisableRoot != nil {
		content += "PermitRootLogin " + map[bool]string{true: "no", false: "prohibit-password"}[*c.DisableRoot] + "\n"
	}
	// sshd takes the first value it reads, so this file's name sorts first.
	changed, err := n.Ensure("/etc/ssh/sshd_config.d/05-metadata.conf", 0o644, content)
	if err != nil || !changed {
		return err
	}
	return n.Nudge(ctx, "reload", "ssh.service")
}
