package profile

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"strings"

	"github.com/coreos/ignition/v2/config/v3_5/types"
	"github.com/vincent-petithory/dataurl"
	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// maxUnpacked bounds a gzip-compressed resource.
const maxUnpacked = 256 << 20

// applier puts an Ignition config into the tree. doc is the Butane source that it
// came from: places in errors are found there, since Butane keeps the order of
// its lists.
type applier struct {
	*build
	doc *document
}

func (a *applier) apply(cfg types.Config) error {
	for i, g := range cfg.Passwd.Groups {
		if err := a.accounts.addGroup(g); err != nil {
			return a.at("passwd", "groups", i, "", err)
		}
	}
	for i, u := range cfg.Passwd.Users {
		if err := a.addUser(u); err != nil {
			return a.at("passwd", "users", i, "", err)
		}
	}
	for i, d := range cfg.Storage.Directories {
		if err := a.directory(d); err != nil {
			return a.at("storage", "directories", i, "path", err)
		}
	}
	for i, f := range cfg.Storage.Files {
		if err := a.file(f); err != nil {
			return a.at("storage", "files", i, "path", err)
		}
	}
	for i, l := range cfg.Storage.Links {
		if err := a.link(l); err != nil {
			return a.at("storage", "links", i, "path", err)
		}
	}
	for i, u := range cfg.Systemd.Units {
		if err := a.unit(u); err != nil {
			return a.at("systemd", "units", i, "name", err)
		}
	}
	return nil
}

// at places an error at an item of the Butane source. Items that came from
// storage.trees have no line of their own; the list is named then.
func (a *applier) at(section, list string, i int, key string, err error) error {
	n := a.doc.find(section, list)
	field := section + "." + list
	if n.Kind == yaml.SequenceNode && i < len(n.Content) {
		n = a.doc.find(section, list, i)
		field = fmt.Sprintf("%s[%d]", field, i)
		if key != "" {
			n, field = a.doc.find(section, list, i, key), field+"."+key
		}
	}
	out := a.doc.errorAt(n, field, "%v", err)
	if mend := fault.Mend(err); mend != "" {
		out = out.WithMend("%s", mend)
	}
	return out
}

func (a *applier) addUser(u types.PasswdUser) error {
	home, err := a.accounts.addUser(u, a.in.Date)
	if err != nil || home == nil || a.lookup(home.Path) != nil {
		return err
	}
	a.markExplicit(home.Path)
	return a.put(home)
}

func (a *applier) markExplicit(p string) {
	if a.explicit == nil {
		a.explicit = map[string]bool{}
	}
	a.explicit[p] = true
}

// node is the part that files, directories and links share: where it stands and
// whose it is. before is what stands there already, in this layer.
func (a *applier) node(n types.Node) (e *tree.Entry, before *tree.Entry, err error) {
	p, err := tree.Clean(n.Path)
	if err != nil {
		return nil, nil, err
	}
	e, before = &tree.Entry{Path: p}, a.tree.Get(p)
	if known := a.lookup(p); known != nil {
		e.UID, e.GID = known.UID, known.GID
	}
	if e.UID, err = a.accounts.userID(n.User, e.UID); err != nil {
		return nil, nil, err
	}
	if e.GID, err = a.accounts.groupID(n.Group, e.GID); err != nil {
		return nil, nil, err
	}
	return e, before, nil
}

func (a *applier) directory(d types.Directory) error {
	e, _, err := a.node(d.Node)
	if err != nil {
		return err
	}
	known := a.lookup(e.Path)
	if known != nil && known.Kind != tree.Dir {
		return fmt.Errorf("%s is there already and is not a directory", d.Path)
	}
	e.Kind, e.Perm = tree.Dir, 0o755
	if known != nil {
		e.Perm = known.Perm
	}
	if d.Mode != nil {
		e.Perm = uint32(*d.Mode)
	}
	a.markExplicit(e.Path)
	return a.put(e)
}

// file adds a file, or with no contents changes the mode and owner of one that an
// overlay or a package brought.
func (a *applier) file(f types.File) error {
	e, before, err := a.node(f.Node)
	if err != nil {
		return err
	}
	known := a.lookup(e.Path)
	if known != nil && known.Kind != tree.Regular {
		return fmt.Errorf("%s is there already and is not a regular file", f.Path)
	}
	e.Kind, e.Perm = tree.Regular, 0o644
	if known != nil {
		e.Perm = known.Perm
	}
	if f.Mode != nil {
		e.Perm = uint32(*f.Mode)
	}
	content, given, err := fetch(f.Contents)
	switch {
	case err != nil:
		return err
	case given && before != nil && (f.Overwrite == nil || !*f.Overwrite):
		return fault.New(fault.Input, "%s is there already", f.Path).
			WithMend("an overlay has it: write overwrite: true, or keep one of the two")
	case given:
	case known == nil && len(f.Append) == 0:
		return fault.New(fault.Input, "%s does not exist, and no contents are given", f.Path).
			WithMend("give contents:, or mend the path; contents: {inline: \"\"} makes an empty file")
	case known != nil:
		var ok bool
		if content, ok = a.read(e.Path); !ok {
			return fmt.Errorf("%s cannot be read in the layers below", f.Path)
		}
	}
	for _, more := range f.Append {
		extra, _, err := fetch(more)
		if err != nil {
			return err
		}
		content = append(content[:len(content):len(content)], extra...)
	}
	setContent(e, content)
	return a.put(e)
}

func (a *applier) link(l types.Link) error {
	e, before, err := a.node(l.Node)
	if err != nil {
		return err
	}
	if l.Target == nil || *l.Target == "" {
		return fmt.Errorf("a link needs a target")
	}
	if l.Hard != nil && *l.Hard {
		return fault.New(fault.Input, "hard links cannot cross layers").WithMend("make it a symbolic link")
	}
	if before != nil && before.Kind != tree.Symlink && (l.Overwrite == nil || !*l.Overwrite) {
		return fault.New(fault.Input, "%s is there already", l.Path).WithMend("write overwrite: true to replace it")
	}
	e.Kind, e.Perm, e.Target = tree.Symlink, 0o777, *l.Target
	return a.put(e)
}

// fetch yields a resource's bytes. Only data URLs (RFC 2397) are resources that a
// build can reach; Butane turns inline and local ones into such.
func fetch(r types.Resource) (content []byte, given bool, err error) {
	if r.Source == nil {
		return nil, false, nil
	}
	if *r.Source == "" {
		return nil, true, nil // Ignition's empty file
	}
	if !strings.HasPrefix(*r.Source, "data:") {
		scheme, _, _ := strings.Cut(*r.Source, ":")
		return nil, false, fault.New(fault.Input, "contents from %s: cannot be fetched by a build", scheme).
			WithMend("put the file beside the profile and name it with contents: {local: …}")
	}
	u, err := dataurl.DecodeString(*r.Source)
	if err != nil {
		return nil, false, fmt.Errorf("data URL: %w", err)
	}
	if r.Compression == nil || *r.Compression == "" {
		return u.Data, true, nil
	}
	if *r.Compression != "gzip" {
		return nil, false, fmt.Errorf("compression %q is not known; gzip is", *r.Compression)
	}
	z, err := gzip.NewReader(bytes.NewReader(u.Data))
	if err != nil {
		return nil, false, fmt.Errorf("gzip: %w", err)
	}
	content, err = io.ReadAll(io.LimitReader(z, maxUnpacked+1))
	if err != nil {
		return nil, false, fmt.Errorf("gzip: %w", err)
	}
	if len(content) > maxUnpacked {
		return nil, false, fmt.Errorf("gzip: more than %d bytes unpacked", maxUnpacked)
	}
	return content, true, nil
}
