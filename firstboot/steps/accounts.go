package steps

import (
	"bufio"
	"bytes"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/node"
)

// accounts is the node's passwd, group and shadow (passwd(5), group(5),
// shadow(5)), read anew whenever they may have changed.
type accounts struct {
	users  map[string]account
	groups map[string]int
	member map[string][]string // group → members
	shadow map[string]shadow
}

type account struct {
	uid, gid           int
	gecos, home, shell string
}

type shadow struct{ password, expires string }

func readAccounts(n *node.Node) (*accounts, error) {
	a := &accounts{users: map[string]account{}, groups: map[string]int{}, member: map[string][]string{}, shadow: map[string]shadow{}}
	err := eachLine(n, "/etc/passwd", 7, func(f []string) {
		uid, uidErr := strconv.Atoi(f[2])
		gid, gidErr := strconv.Atoi(f[3])
		if uidErr == nil && gidErr == nil {
			a.users[f[0]] = account{uid, gid, f[4], f[5], f[6]}
		}
	})
	if err != nil {
		return nil, err
	}
	err = eachLine(n, "/etc/group", 4, func(f []string) {
		if gid, err := strconv.Atoi(f[2]); err == nil {
			a.groups[f[0]] = gid
			if f[3] != "" {
				a.member[f[0]] = strings.Split(f[3], ",")
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return a, eachLine(n, "/etc/shadow", 9, func(f []string) { a.shadow[f[0]] = shadow{f[1], f[7]} })
}

func eachLine(n *node.Node, path string, fields int, visit func([]string)) error {
	data, err := n.Read(path)
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if f := strings.Split(lines.Text(), ":"); len(f) == fields {
			visit(f)
		}
	}
	return nil
}

// user finds an account by name or number.
func (a *accounts) user(name string) (account, bool) {
	if u, ok := a.users[name]; ok {
		return u, true
	}
	uid, err := strconv.Atoi(name)
	if err != nil || uid < 0 {
		return account{}, false
	}
	for _, u := range a.users {
		if u.uid == uid {
			return u, true
		}
	}
	return account{uid: uid, gid: uid}, true
}

// group finds a group by name or number.
func (a *accounts) group(name string) (int, bool) {
	if gid, ok := a.groups[name]; ok {
		return gid, true
	}
	gid, err := strconv.Atoi(name)
	return gid, err == nil && gid >= 0
}

// freeNumber is the first number from first on that neither a user nor a group
// has, nor ever had by the agent's records: files on the state partition may
// still belong to it.
func (a *accounts) freeNumber(first int, kept *node.State) int {
	taken := map[int]bool{}
	for _, u := range a.users {
		taken[u.uid] = true
	}
	for _, gid := range a.groups {
		taken[gid] = true
	}
	for _, u := range kept.Users {
		taken[u.UID], taken[u.GID] = true, true
	}
	for _, gid := range kept.Groups {
		taken[gid] = true
	}
	for taken[first] {
		first++
	}
	return first
}

// uidTaken reports whether another user than name has the number.
func (a *accounts) uidTaken(uid int, name string) bool {
	for other, u := range a.users {
		if u.uid == uid && other != name {
			return true
		}
	}
	return false
}

func (a *accounts) gidTaken(gid int, name string) bool {
	for other, g := range a.groups {
		if g == gid && other != name {
			return true
		}
	}
	return false
}
