package cloudconfig

import (
	"fmt"
	"reflect"
	"strings"

	"gopkg.in/yaml.v3"
)

// Users is the list under the key users. Given says that the key is there, be
// it empty.
type Users struct {
	Given   bool
	Default bool // the list names the default user
	List    []User
}

// User is one account.
type User struct {
	Name              string   `cloud:"name"`
	Gecos             string   `cloud:"gecos"`
	Homedir           string   `cloud:"homedir"`
	UID               string   `cloud:"uid"`
	PrimaryGroup      string   `cloud:"primary_group,primary-group"`
	Groups            Groups   `cloud:"groups"`
	CreateGroups      *bool    `cloud:"create_groups,create-groups"`
	NoUserGroup       bool     `cloud:"no_user_group,no-user-group"`
	NoCreateHome      bool     `cloud:"no_create_home,no-create-home"`
	NoLogInit         bool     `cloud:"no_log_init,no-log-init"`
	System            bool     `cloud:"system"`
	Shell             string   `cloud:"shell"`
	Sudo              Rules    `cloud:"sudo"`
	LockPasswd        *bool    `cloud:"lock_passwd,lock-passwd"` // true unless given
	Passwd            string   `cloud:"passwd"`
	HashedPasswd      string   `cloud:"hashed_passwd,hashed-passwd"`
	PlainTextPasswd   string   `cloud:"plain_text_passwd,plain-text-passwd"`
	ExpireDate        string   `cloud:"expiredate"`
	Inactive          string   `cloud:"inactive"`
	SSHAuthorizedKeys []string `cloud:"ssh_authorized_keys,ssh-authorized-keys"`

	_ struct{} `cloud:"ssh_import_id,ssh-import-id" why:"a node fetches no keys from the network; list them under ssh_authorized_keys"`
	_ struct{} `cloud:"ssh_redirect_user,ssh-redirect-user" why:"an account without keys and password cannot be logged in to anyway"`
	_ struct{} `cloud:"selinux_user,selinux-user" why:"the image has no SELinux"`
	_ struct{} `cloud:"snapuser" why:"the image has no snap"`
	_ struct{} `cloud:"doas" why:"the image has sudo; give the rule under sudo"`

	// Where the account stands in the document, for messages.
	Where Place
}

// Place is where something stands in a document.
type Place struct {
	File string
	Line int
}

// String is file:line.
func (p Place) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

func (u *User) decodeCloud(d *decoder, n *yaml.Node, path string) {
	u.Where = Place{d.file, n.Line}
	if n.Kind == yaml.ScalarNode {
		u.Name, _ = d.text(n, path)
	} else {
		d.structure(n, reflect.ValueOf(u).Elem(), path)
	}
}

func (u *Users) decodeCloud(d *decoder, n *yaml.Node, path string) {
	*u = Users{Given: true}
	add := func(name string, n *yaml.Node, path string) {
		user := User{Where: Place{d.file, n.Line}}
		if n.Kind == yaml.MappingNode {
			user.decodeCloud(d, n, path)
		}
		if user.Name == "" {
			user.Name = name
		}
		switch {
		case user.Name == "":
			d.report(Invalid, n, path, "a user without a name; add name:")
		case user.Name == "default":
			u.Default = true
		default:
			u.List = append(u.List, user)
		}
	}
	names := func(words []string, n *yaml.Node, path string) {
		for _, word := range words {
			add(word, n, path)
		}
	}
	switch n.Kind {
	case yaml.ScalarNode:
		var words Words
		words.decodeCloud(d, n, path)
		names(words, n, path)
	case yaml.MappingNode: // name → account, an old form that cloud-init still takes
		d.mapping(n, path, func(name string, keyNode, value *yaml.Node) {
			if value, ok := d.resolve(value, path); ok {
				if value.Kind == yaml.ScalarNode {
					value = keyNode
				}
				add(name, value, join(path, name))
			}
		})
	case yaml.SequenceNode:
		for i, item := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			item, ok := d.resolve(item, at)
			if !ok {
				continue
			}
			switch item.Kind {
			case yaml.SequenceNode:
				names(d.texts(item, at), item, at)
			case yaml.ScalarNode:
				name, _ := d.text(item, at)
				names(strings.Fields(strings.ReplaceAll(name, ",", " ")), item, at)
			default:
				add("", item, at)
			}
		}
	}
}

// Rules is what a user may do with sudo: rules without the user's name, or
// none at all.
type Rules []string

func (r *Rules) decodeCloud(d *decoder, n *yaml.Node, path string) {
	*r = nil
	if n.ShortTag() == "!!bool" {
		if allowed, _ := d.boolean(n, path); allowed {
			d.report(Invalid, n, path, "must be a rule such as \"ALL=(ALL) NOPASSWD:ALL\", not true")
		}
		return
	}
	if n.Kind == yaml.SequenceNode {
		*r = d.texts(n, path)
	} else if s, ok := d.text(n, path); ok && s != "" && !strings.EqualFold(s, "false") {
		*r = Rules{s}
	}
}
