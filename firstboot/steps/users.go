package steps

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/node"
)

// DefaultUser is the account that gets the keys and the password which name no
// user. It exists only if there are any: an image has no way in by itself.
const DefaultUser = "slipway"

// Users makes groups and accounts, their keys, passwords and sudo rules.
//
// /etc/passwd belongs to one version of the image and /home to all: so the
// agent keeps the numbers of the accounts it made and gives them the same ones
// in the next version. An account that the metadata no longer names is locked,
// never deleted; its files stay.
type Users struct{}

func (Users) Name() string { return "users" }

// loginName is what useradd(8) accepts, and what is safe as a file name.
var loginName = regexp.MustCompile(`^[a-z_][a-z0-9_.-]{0,30}\$?$`)

func (Users) Apply(ctx context.Context, n *node.Node) error {
	if n.Seed == nil {
		return nil // nothing was said, so whoever could get in still can
	}
	var errs []error
	for _, g := range n.User.Config.Groups {
		if err := ensureGroup(ctx, n, g.Name, 1000); err != nil {
			errs = append(errs, err)
		}
	}
	users := wantedUsers(n)
	for _, u := range users {
		if err := applyUser(ctx, n, u); err != nil {
			errs = append(errs, fmt.Errorf("user %s (%s): %w", u.Name, u.Where, err))
		}
	}
	for _, g := range n.User.Config.Groups {
		for _, member := range g.Members {
			errs = append(errs, ensureMember(ctx, n, member, g.Name))
		}
	}
	errs = append(errs, applyPasswords(ctx, n), retire(ctx, n, users), sshLogin(ctx, n))
	return errors.Join(errs...)
}

// wantedUsers lists the accounts that the metadata asks for, the default user
// among them if there is a way into it.
func wantedUsers(n *node.Node) []cloudconfig.User {
	c := &n.User.Config
	var users []cloudconfig.User
	keys := slices.Clone(c.SSHAuthorizedKeys)
	if c.AllowPublicKeys == nil || *c.AllowPublicKeys {
		keys = append(keys, n.Seed.PublicKeys...)
	}
	password := c.Password
	if password == "" {
		password = n.Seed.Password
	}
	def := cloudconfig.User{
		Name: DefaultUser, Gecos: "Administrator", Groups: cloudconfig.Groups{{Name: "adm"}, {Name: "sudo"}},
		Shell: "/bin/bash", Sudo: cloudconfig.Rules{"ALL=(ALL) NOPASSWD:ALL"}, Where: cloudconfig.Place{File: n.Seed.Source},
	}
	if c.User != nil {
		def = override(def, *c.User)
	}
	namesDefault := !c.Users.Given || c.Users.Default
	for i, u := range c.Users.List {
		if !loginName.MatchString(u.Name) {
			n.Warn(u.Where.String(), "users", "a name that no account can have; use at most 31 lower-case letters, digits, hyphens and underscores")
			continue
		}
		if u.Name == def.Name {
			namesDefault = false
			c.Users.List[i].SSHAuthorizedKeys = append(u.SSHAuthorizedKeys, keys...)
			u = c.Users.List[i]
		}
		users = append(users, u)
	}
	if namesDefault {
		def.SSHAuthorizedKeys = append(def.SSHAuthorizedKeys, keys...)
		if password != "" && def.PlainTextPasswd == "" {
			unlocked := false
			def.LockPasswd = &unlocked
			if hashed(password) {
				def.Passwd = password
			} else {
				def.PlainTextPasswd = password
			}
		}
		_, hasPassword := passwordFor(c, def.Name)
		if len(def.SSHAuthorizedKeys) > 0 || password != "" || hasPassword || c.Users.Default || c.User != nil {
			users = append([]cloudconfig.User{def}, users...)
		}
	} else if len(c.SSHAuthorizedKeys) > 0 && !slices.ContainsFunc(users, func(u cloudconfig.User) bool { return u.Name == def.Name }) {
		n.Warn("", "ssh_authorized_keys", "given to nobody: users does not name default; add - default, or give the keys to one of the users")
	}
	if c.DisableRoot != nil && !*c.DisableRoot && len(keys) > 0 {
		users = append(users, cloudconfig.User{Name: "root", SSHAuthorizedKeys: keys, Where: def.Where})
	}
	return users
}

// override lets user: change the default account, key by key.
func override(def, given cloudconfig.User) cloudconfig.User {
	if given.Name == "" || given.Name == "default" {
		given.Name = def.Name
	}
	if given.Gecos == "" {
		given.Gecos = def.Gecos
	}
	if given.Groups == nil {
		given.Groups = def.Groups
	}
	if given.Shell == "" {
		given.Shell = def.Shell
	}
	if given.Sudo == nil {
		given.Sudo = def.Sudo
	}
	return given
}

// applyUser makes one account what it is to be.
func applyUser(ctx context.Context, n *node.Node, u cloudconfig.User) error {
	for _, field := range []string{u.Gecos, u.Homedir, u.Shell, u.PrimaryGroup} {
		if strings.ContainsAny(field, ":\n") {
			return fmt.Errorf("gecos, homedir, shell and primary_group may hold no colon and no line break")
		}
	}
	if u.CreateGroups == nil || *u.CreateGroups {
		for _, g := range u.Groups {
			if err := ensureGroup(ctx, n, g.Name, 1000); err != nil {
				return err
			}
		}
	}
	a, err := readAccounts(n)
	if err != nil {
		return err
	}
	present, exists := a.users[u.Name]
	if !exists {
		if err := createUser(ctx, n, a, u); err != nil {
			return err
		}
		if a, err = readAccounts(n); err != nil {
			return err
		}
		present = a.users[u.Name]
	} else if err := adjustUser(ctx, n, u, present, a.shadow[u.Name]); err != nil {
		return err
	}
	var errs []error
	for _, g := range u.Groups {
		errs = append(errs, ensureMember(ctx, n, u.Name, g.Name))
	}
	errs = append(errs, authorizeKeys(n, u, present), sudoRules(ctx, n, u), userPassword(ctx, n, u))
	return errors.Join(errs...)
}

func createUser(ctx context.Context, n *node.Node, a *accounts, u cloudconfig.User) error {
	first := 1000
	if u.System {
		first = 400 // the image's own system users count down from 999 or have fixed numbers from 800 on
	}
	kept, known := n.Kept.Users[u.Name]
	uid := kept.UID
	if u.UID != "" {
		given, err := strconv.Atoi(u.UID)
		if err != nil || given < 1 || given > 1<<31 {
			return fmt.Errorf("uid is not a number that a user can have")
		}
		if known && kept.UID != given {
			n.Warn(u.Where.String(), "users", "%s had the uid %d before; files of that number are not handed over", u.Name, kept.UID)
		}
		uid = given
	} else if known && a.uidTaken(kept.UID, u.Name) {
		n.Warn(u.Where.String(), "users", "%s cannot have its former uid %d, which the image now gives to another; files of that number are not handed over", u.Name, kept.UID)
		known = false
	}
	if uid == 0 || u.UID == "" && !known {
		uid = a.freeNumber(first, n.Kept)
	}
	group := u.PrimaryGroup
	argv := []string{"useradd", "--uid", strconv.Itoa(uid)}
	switch {
	case group != "":
		if err := ensureGroup(ctx, n, group, first); err != nil {
			return err
		}
		argv = append(argv, "--gid", group)
	case u.NoUserGroup:
		argv = append(argv, "--no-user-group")
	default:
		if err := ensureGroup(ctx, n, u.Name, uid); err != nil {
			return err
		}
		argv = append(argv, "--gid", u.Name)
	}
	if u.System {
		argv = append(argv, "--system")
	}
	if u.NoCreateHome || u.System {
		argv = append(argv, "--no-create-home")
	} else {
		argv = append(argv, "--create-home")
	}
	var groups []string
	for _, g := range u.Groups {
		if _, ok := a.groups[g.Name]; ok {
			groups = append(groups, g.Name)
		}
	}
	if len(groups) > 0 {
		argv = append(argv, "--groups", strings.Join(groups, ","))
	}
	if u.NoLogInit {
		argv = append(argv, "--no-log-init")
	}
	shell := u.Shell
	if shell == "" && !u.System {
		shell = "/bin/bash"
	}
	for _, option := range [][2]string{{"--shell", shell}, {"--comment", u.Gecos}, {"--home-dir", u.Homedir}, {"--expiredate", u.ExpireDate}, {"--inactive", u.Inactive}} {
		if option[1] != "" {
			argv = append(argv, option[0], option[1])
		}
	}
	if _, err := n.Command(ctx, append(argv, "--", u.Name)...); err != nil {
		return err
	}
	n.Changed("made the user %s", u.Name)
	a, err := readAccounts(n)
	if err != nil {
		return err
	}
	made := a.users[u.Name]
	kept.UID, kept.GID, kept.Made = made.uid, made.gid, true
	n.Kept.Users[u.Name] = kept
	return n.Kept.Save()
}

// adjustUser brings an account that is there already in line. Home directory
// and number stay: files depend on them.
func adjustUser(ctx context.Context, n *node.Node, u cloudconfig.User, present account, s shadow) error {
	var argv []string
	if u.Shell != "" && u.Shell != present.shell {
		argv = append(argv, "--shell", u.Shell)
	}
	if u.Gecos != "" && u.Gecos != present.gecos {
		argv = append(argv, "--comment", u.Gecos)
	}
	if u.ExpireDate != "" && !n.Local.Is("expiry of "+u.Name, u.ExpireDate) {
		argv = append(argv, "--expiredate", u.ExpireDate)
	} else if n.Kept.Users[u.Name].Made && s.expires == retiredOn && u.ExpireDate == "" {
		argv = append(argv, "--expiredate", "") // it was retired, and is back
	}
	if u.UID != "" && u.UID != strconv.Itoa(present.uid) {
		n.Warn(u.Where.String(), "users", "%s keeps its uid %d: files depend on it", u.Name, present.uid)
	}
	if u.Homedir != "" && u.Homedir != present.home {
		n.Warn(u.Where.String(), "users", "%s keeps its home directory %s", u.Name, present.home)
	}
	if len(argv) == 0 {
		return nil
	}
	if _, err := n.Command(ctx, append(append([]string{"usermod"}, argv...), "--", u.Name)...); err != nil {
		return err
	}
	n.Changed("adjusted the user %s", u.Name)
	if u.ExpireDate != "" {
		return n.Local.Done("expiry of "+u.Name, nil, u.ExpireDate)
	}
	return nil
}

// ensureGroup makes a group with the number it had before, or the first free one.
func ensureGroup(ctx context.Context, n *node.Node, name string, first int) error {
	if !loginName.MatchString(name) {
		return fmt.Errorf("a group's name must be lower-case letters, digits, hyphens and underscores, at most 31")
	}
	a, err := readAccounts(n)
	if err != nil {
		return err
	}
	if _, ok := a.groups[name]; ok {
		return nil
	}
	gid, known := n.Kept.Groups[name]
	if !known || a.gidTaken(gid, name) {
		gid = first
		if a.gidTaken(gid, name) || first == 1000 {
			gid = a.freeNumber(first, n.Kept)
		}
	}
	if _, err := n.Command(ctx, "groupadd", "--gid", strconv.Itoa(gid), "--", name); err != nil {
		return err
	}
	n.Changed("made the group %s", name)
	n.Kept.Groups[name] = gid
	return n.Kept.Save()
}

func ensureMember(ctx context.Context, n *node.Node, user, group string) error {
	a, err := readAccounts(n)
	if err != nil {
		return err
	}
	u, ok := a.users[user]
	if !ok {
		return fmt.Errorf("group %s: there is no user %q", group, user)
	}
	gid, ok := a.groups[group]
	if !ok {
		return fmt.Errorf("user %s: there is no group %q", user, group)
	}
	if slices.Contains(a.member[group], user) || u.gid == gid {
		return nil
	}
	if _, err := n.Command(ctx, "usermod", "--append", "--groups", group, "--", user); err != nil {
		return err
	}
	n.Changed("%s is in the group %s", user, group)
	return nil
}

// retiredOn is the expiry of a retired account: the first day after the epoch,
// which no metadata asks for.
const retiredOn = "1"

// retire locks the agent's accounts that the metadata no longer names.
func retire(ctx context.Context, n *node.Node, wanted []cloudconfig.User) error {
	a, err := readAccounts(n)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(n.Kept.Users)) {
		named := slices.ContainsFunc(wanted, func(u cloudconfig.User) bool { return u.Name == name })
		present, exists := a.users[name]
		if named || !exists {
			continue
		}
		gone := cloudconfig.User{Name: name}
		errs = append(errs, authorizeKeys(n, gone, present), sudoRules(ctx, n, gone))
		if !n.Kept.Users[name].Made || a.shadow[name].expires == retiredOn {
			continue
		}
		if _, err := n.Command(ctx, "usermod", "--lock", "--expiredate", "1970-01-02", "--", name); err != nil {
			errs = append(errs, err)
			continue
		}
		n.Changed("locked the user %s, whom the metadata no longer names", name)
	}
	return errors.Join(errs...)
}
