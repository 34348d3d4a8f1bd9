package profile

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/coreos/ignition/v2/config/v3_5/types"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// The account databases (passwd(5), group(5), shadow(5)). A build without any
// packages below has none of them and starts from root alone.
const (
	passwdPath  = "etc/passwd"
	groupPath   = "etc/group"
	shadowPath  = "etc/shadow"
	gshadowPath = "etc/gshadow"
)

// maxID is the largest id that has no special meaning (65534 is nobody).
const maxID = 65533

var accountName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,30}$`)

// accounts is the users and groups of an appliance: the packages' and Butane's.
// Butane's are written into the databases themselves, not into sysusers.d, since
// files of the layer are theirs by number and must be so before any boot.
type accounts struct {
	users, groups   map[string]uint32
	passwd, group   []string
	shadow, gshadow []string
	changed         bool
}

func (b *build) readAccounts() error {
	a := accounts{
		users: map[string]uint32{}, groups: map[string]uint32{},
		passwd: b.lines(passwdPath), group: b.lines(groupPath), shadow: b.lines(shadowPath), gshadow: b.lines(gshadowPath),
	}
	if len(a.passwd) == 0 {
		a.passwd, a.shadow = []string{"root:x:0:0:root:/root:/bin/bash"}, []string{"root:*:::::::"}
	}
	if len(a.group) == 0 {
		a.group, a.gshadow = []string{"root:x:0:"}, []string{"root:*::"}
	}
	for file, db := range map[string]struct {
		lines []string
		ids   map[string]uint32
	}{passwdPath: {a.passwd, a.users}, groupPath: {a.group, a.groups}} {
		for i, line := range db.lines {
			fields := strings.Split(line, ":")
			if len(fields) < 4 {
				return fault.New(fault.Input, "/%s of the packages, line %d: fewer than 4 fields", file, i+1)
			}
			id, err := strconv.ParseUint(fields[2], 10, 32)
			if err != nil {
				return fault.New(fault.Input, "/%s of the packages, line %d: %q is not an id", file, i+1, fields[2])
			}
			db.ids[fields[0]] = uint32(id)
		}
	}
	b.accounts = a
	return nil
}

func (b *build) lines(p string) []string {
	data, _ := b.read(p)
	text := strings.TrimRight(string(data), "\n")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// userID resolves Ignition's user of a node; unset is what the node has already.
func (a *accounts) userID(u types.NodeUser, unset uint32) (uint32, error) {
	return resolveID("user", u.ID, u.Name, a.users, unset)
}

func (a *accounts) groupID(g types.NodeGroup, unset uint32) (uint32, error) {
	return resolveID("group", g.ID, g.Name, a.groups, unset)
}

func resolveID(what string, id *int, name *string, known map[string]uint32, unset uint32) (uint32, error) {
	switch {
	case id != nil && (*id < 0 || *id > maxID):
		return 0, fmt.Errorf("%s id %d is not between 0 and %d", what, *id, maxID)
	case id != nil:
		return uint32(*id), nil
	case name == nil || *name == "":
		return unset, nil
	}
	n, ok := known[*name]
	if !ok {
		names := make([]string, 0, len(known))
		for k := range known {
			names = append(names, k)
		}
		err := fault.New(fault.Input, "there is no %s %q in the packages or in passwd:", what, *name)
		if near := Nearest(*name, names); near != "" {
			return 0, err.WithMend("did you mean %s?", near)
		}
		return 0, err.WithMend("add it under passwd.%ss, or add the package that makes it", what)
	}
	return n, nil
}

func (a *accounts) addGroup(g types.PasswdGroup) error {
	if !accountName.MatchString(g.Name) {
		return fmt.Errorf("%q is not a group name", g.Name)
	}
	if have, ok := a.groups[g.Name]; ok {
		if g.Gid != nil && uint32(*g.Gid) != have {
			return fmt.Errorf("group %s has gid %d already, not %d", g.Name, have, *g.Gid)
		}
		return nil
	}
	if g.Gid == nil {
		return fault.New(fault.Input, "group %s needs a gid", g.Name).
			WithMend("give one from 850 to 899: what is kept in state directories belongs to numbers, so they must not move")
	}
	return a.newGroup(g.Name, *g.Gid)
}

func (a *accounts) newGroup(name string, gid int) error {
	if gid < 1 || gid > maxID {
		return fmt.Errorf("gid %d is not between 1 and %d", gid, maxID)
	}
	for other, id := range a.groups {
		if id == uint32(gid) {
			return fmt.Errorf("gid %d is group %s already", gid, other)
		}
	}
	a.groups[name] = uint32(gid)
	a.group = append(a.group, fmt.Sprintf("%s:x:%d:", name, gid))
	a.gshadow = append(a.gshadow, name+":!::")
	a.changed = true
	return nil
}

// addUser adds a user without a password, and returns its home directory if one
// is to be made. A user that a package made can only join further groups.
func (a *accounts) addUser(u types.PasswdUser, date int64) (home *tree.Entry, err error) {
	if !accountName.MatchString(u.Name) {
		return nil, fmt.Errorf("%q is not a user name", u.Name)
	}
	if have, ok := a.users[u.Name]; ok {
		if u.UID != nil && uint32(*u.UID) != have || u.HomeDir != nil || u.Shell != nil || u.PrimaryGroup != nil || u.Gecos != nil {
			return nil, fault.New(fault.Input, "user %s is there already with uid %d", u.Name, have).
				WithMend("give only its name and groups: a user that a package made can join groups, no more")
		}
		return nil, a.join(u.Name, u.Groups)
	}
	if u.UID == nil {
		return nil, fault.New(fault.Input, "user %s needs a uid", u.Name).
			WithMend("give one from 850 to 899: what is kept in state directories belongs to numbers, so they must not move")
	}
	uid := *u.UID
	if uid < 1 || uid > maxID {
		return nil, fmt.Errorf("uid %d is not between 1 and %d", uid, maxID)
	}
	for other, id := range a.users {
		if id == uint32(uid) {
			return nil, fmt.Errorf("uid %d is user %s already", uid, other)
		}
	}
	gid, err := a.primaryGroup(u, uid)
	if err != nil {
		return nil, err
	}
	system := u.System != nil && *u.System
	homeDir, shell, gecos := "/home/"+u.Name, "/bin/bash", ""
	if system {
		homeDir, shell = "/nonexistent", "/usr/sbin/nologin"
	}
	for _, o := range []struct{ to, from *string }{{&homeDir, u.HomeDir}, {&shell, u.Shell}, {&gecos, u.Gecos}} {
		if o.from != nil {
			*o.to = *o.from
		}
		if strings.ContainsAny(*o.to, ":\n\x00") {
			return nil, fmt.Errorf("%q cannot stand in /etc/passwd", *o.to)
		}
	}
	a.users[u.Name] = uint32(uid)
	a.passwd = append(a.passwd, fmt.Sprintf("%s:x:%d:%d:%s:%s:%s", u.Name, uid, gid, gecos, homeDir, shell))
	a.shadow = append(a.shadow, fmt.Sprintf("%s:!*:%d::::::", u.Name, date/86400))
	a.changed = true
	if err := a.join(u.Name, u.Groups); err != nil {
		return nil, err
	}
	if system || u.NoCreateHome != nil && *u.NoCreateHome {
		return nil, nil
	}
	p, err := tree.Clean(homeDir)
	if err != nil {
		return nil, err
	}
	return &tree.Entry{Path: p, Kind: tree.Dir, Perm: 0o700, UID: uint32(uid), GID: gid}, nil
}

// primaryGroup finds the user's group or makes the one of its own name and number.
func (a *accounts) primaryGroup(u types.PasswdUser, uid int) (uint32, error) {
	if u.PrimaryGroup != nil {
		return resolveID("group", nil, u.PrimaryGroup, a.groups, 0)
	}
	if gid, ok := a.groups[u.Name]; ok {
		return gid, nil
	}
	if u.NoUserGroup != nil && *u.NoUserGroup {
		return 0, fault.New(fault.Input, "user %s has no group", u.Name).WithMend("give primary_group")
	}
	return uint32(uid), a.newGroup(u.Name, uid)
}

// join adds a user to further groups.
func (a *accounts) join(user string, groups []types.Group) error {
	for _, g := range groups {
		name := string(g)
		if _, err := resolveID("group", nil, &name, a.groups, 0); err != nil {
			return err
		}
		addMember(a.group, name, 3, user)
		addMember(a.gshadow, name, 3, user)
		a.changed = true
	}
	return nil
}

func addMember(lines []string, group string, field int, user string) {
	for i, line := range lines {
		fields := strings.Split(line, ":")
		if fields[0] != group || len(fields) <= field {
			continue
		}
		members := strings.FieldsFunc(fields[field], func(r rune) bool { return r == ',' })
		for _, m := range members {
			if m == user {
				return
			}
		}
		fields[field] = strings.Join(append(members, user), ",")
		lines[i] = strings.Join(fields, ":")
	}
}

// putAccounts writes the databases into the layer if Butane changed them.
func (b *build) putAccounts() error {
	if !b.accounts.changed {
		return nil
	}
	for _, f := range []struct {
		path  string
		perm  uint32
		lines []string
	}{
		{passwdPath, 0o644, b.accounts.passwd}, {groupPath, 0o644, b.accounts.group},
		{shadowPath, 0o640, b.accounts.shadow}, {gshadowPath, 0o640, b.accounts.gshadow},
	} {
		e := &tree.Entry{Path: f.path, Kind: tree.Regular, Perm: f.perm}
		if known := b.lookup(f.path); known != nil {
			e.Perm, e.UID, e.GID = known.Perm, known.UID, known.GID
		}
		setContent(e, []byte(strings.Join(f.lines, "\n")+"\n"))
		if err := b.put(e); err != nil {
			return err
		}
	}
	return nil
}
