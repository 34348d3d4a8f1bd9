package profile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/butane/config"
	"github.com/coreos/butane/config/common"
	ignition "github.com/coreos/ignition/v2/config/v3_5"
	"github.com/coreos/ignition/v2/config/v3_5/types"
	"github.com/coreos/vcontext/report"
	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/internal/fault"
)

// applied is the part of Butane that an image can hold, as a tree of keys. "*" is
// any list item, nil a value. Whatever is not here is refused by applyButane.
type keys map[string]keys

var resource = keys{"inline": nil, "local": nil, "source": nil, "compression": nil}
var owner = keys{"id": nil, "name": nil}
var dropin = keys{"*": {"name": nil, "contents": nil, "contents_local": nil}}

var applied = keys{
	"variant": nil, "version": nil,
	"passwd": {
		"users": {"*": {
			"name": nil, "uid": nil, "gecos": nil, "home_dir": nil, "no_create_home": nil, "shell": nil,
			"primary_group": nil, "no_user_group": nil, "groups": {"*": nil}, "system": nil,
		}},
		"groups": {"*": {"name": nil, "gid": nil, "system": nil}},
	},
	"storage": {
		"directories": {"*": {"path": nil, "mode": nil, "user": owner, "group": owner, "overwrite": nil}},
		"files": {"*": {
			"path": nil, "mode": nil, "user": owner, "group": owner, "overwrite": nil,
			"contents": resource, "append": {"*": resource},
		}},
		"links": {"*": {"path": nil, "target": nil, "hard": nil, "user": owner, "group": owner, "overwrite": nil}},
		"trees": {"*": {"local": nil, "path": nil}},
	},
	"systemd": {
		"units": {"*": {
			"name": nil, "enabled": nil, "mask": nil, "contents": nil, "contents_local": nil, "dropins": dropin,
		}},
	},
}

// refused explains why some of what Butane knows has no place in an image.
var refused = map[string]string{
	"password_hash":       "no image carries a password; give it in the node's metadata",
	"ssh_authorized_keys": "no image carries a key; give it in the node's metadata",
	"filesystems":         "init makes the state partition; list directories to keep under state: in the profile",
	"disks":               "the disk's layout is the builder's; further disks are the node's metadata's",
	"kernel_arguments":    "the kernel's command line is the builder's",
	"ignition":            "nothing is fetched or merged at boot; put the content here",
	"verification":        "the content is here already, there is nothing to verify",
}

// applyButane translates a Butane file to Ignition and applies it to the tree.
func (b *build) applyButane(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fault.New(fault.Input, "Butane: %w", err).
			WithMend("write it, or remove butane: from the profile")
	}
	doc, err := parseDocument(file, data)
	if err != nil {
		return err
	}
	if err := doc.allow(doc.root, "", applied); err != nil {
		return err
	}
	cfg, err := b.translate(file, data)
	if err != nil {
		return err
	}
	return (&applier{build: b, doc: doc}).apply(cfg)
}

// translate runs Butane. Its warnings are errors here: they say that something is
// without effect.
func (b *build) translate(file string, data []byte) (types.Config, error) {
	raw, rep, err := config.TranslateBytes(data, common.TranslateBytesOptions{
		TranslateOptions: common.TranslateOptions{
			FilesDir: filepath.Dir(filepath.Clean(b.in.Overlays)),
			// Contents are laid into a tree at once: packing them would be work
			// for nothing.
			NoResourceAutoCompression: true,
		},
		Raw: true,
	})
	for _, entry := range rep.Entries {
		if entry.Kind != report.Info {
			return types.Config{}, reportError(file, entry)
		}
	}
	if err != nil {
		return types.Config{}, fault.New(fault.Input, "%s: %w", file, err).
			WithMend("write variant: fcos and version: 1.6.0")
	}
	cfg, rep, err := ignition.ParseCompatibleVersion(raw)
	if err != nil || rep.IsFatal() {
		return types.Config{}, fault.New(fault.Input, "%s: Ignition: %v %s", file, err, rep.String()).
			WithMend("write variant: fcos and version: 1.6.0")
	}
	return cfg, nil
}

func reportError(file string, entry report.Entry) error {
	where := file
	if p := entry.Marker.StartP; p != nil {
		where = fmt.Sprintf("%s:%d:%d", file, p.Line, p.Column)
	}
	field := strings.TrimPrefix(entry.Context.String(), "$.")
	return fault.New(fault.Input, "%s: %s: %s", where, field, entry.Message).
		WithMend("see \"Fedora CoreOS Specification v1.6.0\" in Butane's documentation")
}

// allow refuses keys that are not among those that an image can hold.
func (d *document) allow(n *yaml.Node, field string, known keys) error {
	switch n.Kind {
	case yaml.SequenceNode:
		for i, item := range n.Content {
			if err := d.allow(item, fmt.Sprintf("%s[%d]", field, i), known["*"]); err != nil {
				return err
			}
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			name := strings.TrimPrefix(field+"."+key.Value, ".")
			sub, ok := known[key.Value]
			if !ok {
				return d.refuse(key, name, known)
			}
			if err := d.allow(n.Content[i+1], name, sub); err != nil {
				return err
			}
		}
	case yaml.AliasNode:
		return d.errorAt(n, field, "aliases are not followed here").WithMend("write the value out")
	}
	return nil
}

func (d *document) refuse(key *yaml.Node, name string, known keys) error {
	if why, ok := refused[key.Value]; ok {
		return d.errorAt(key, name, "this cannot stand in an image").WithMend("remove it: %s", why)
	}
	names := make([]string, 0, len(known))
	for k := range known {
		names = append(names, k)
	}
	err := d.errorAt(key, name, "this field is not known, or cannot be applied to an image")
	if near := Nearest(key.Value, names); near != "" {
		return err.WithMend("did you mean %s?", near)
	}
	return err.WithMend("remove it; docs/formats.md lists what is applied")
}
