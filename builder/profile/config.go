package profile

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Where the agent stands in the root file system, and the name in the path under
// which an administrator finds it.
const (
	AgentPath = "usr/lib/slipway/firstboot"
	AgentLink = "usr/bin/firstboot"
	// CommandPath is where the command stands, in roles that have it.
	CommandPath = "usr/bin/slipway"
)

// Input is what a config layer is made from besides the profiles.
type Input struct {
	// Overlays is the overlays/ directory. Its parent is where paths of Butane's
	// "local" start, so that a tree reads as overlays/NAME there too.
	Overlays string
	// Date is the time of every file, in seconds since the Unix epoch.
	Date int64
	// Agent is the path of the firstboot binary for the appliance, or "" for a
	// tree without one.
	Agent string
	// Command is the path of the slipway binary for the appliance, for roles that ask
	// for it, or "" for a tree without one.
	Command string
	// Archives are what the role marker says of where packages are from.
	Archives []manifest.Archive
	// Lower are the trees of the layers below, bottom first. They answer which
	// users exist, what an [Install] section says and which mode a directory has.
	Lower []*tree.Tree
	// LowerKeys name the layers below by digest. Only Key looks at them, so that
	// a key costs no reading of layers.
	LowerKeys []string
}

// Config makes the config layer of a role: base's overlays, then the role's, then
// base's Butane, then the role's, then the agent and the role marker. Owners are
// root unless Butane says otherwise, and nothing depends on who runs it.
func (s *Set) Config(p *Profile, in Input) (*tree.Tree, error) {
	b := &build{tree: tree.New(), in: in}
	for _, part := range []*Profile{s.Base, p} {
		for _, name := range part.Overlays {
			if err := b.layOverlay(part, name); err != nil {
				return nil, err
			}
		}
	}
	if err := b.readAccounts(); err != nil {
		return nil, err
	}
	for _, part := range []*Profile{s.Base, p} {
		if part.Butane == "" {
			continue
		}
		if err := b.applyButane(filepath.Join(s.dir, part.Butane)); err != nil {
			return nil, err
		}
	}
	if err := b.putAccounts(); err != nil {
		return nil, err
	}
	if err := b.putAgent(); err != nil {
		return nil, err
	}
	if err := b.putCommand(p); err != nil {
		return nil, err
	}
	if err := b.putMarker(s.marker(p, in)); err != nil {
		return nil, err
	}
	b.adoptDirectories()
	return b.tree, nil
}

// build is a config layer under construction.
type build struct {
	tree     *tree.Tree
	in       Input
	accounts accounts
	// explicit holds the directories whose mode and owner Butane gave.
	explicit map[string]bool
}

// put adds an entry after checking that it does not shadow a symbolic link that a
// layer below has in the middle of its path.
func (b *build) put(e *tree.Entry) error {
	if link := aliasPrefix(e.Path); link != "" {
		return fmt.Errorf("/%s: /%s is a symbolic link in Debian and must stay one; write %s",
			e.Path, link, canonical[link]+e.Path[len(link):])
	}
	e.MTime = b.in.Date
	return b.tree.Put(e)
}

// canonical maps paths that are symbolic links in every Debian system (merged
// /usr, and /run) to where they lead. A directory at such a path in an upper layer
// would hide the link and all that is behind it.
var canonical = map[string]string{
	"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib32": "usr/lib32", "lib64": "usr/lib64",
	"libx32": "usr/libx32", "var/run": "run", "var/lock": "run/lock",
}

func aliasPrefix(p string) string {
	for link := range canonical {
		if p == link || len(p) > len(link) && p[:len(link)] == link && p[len(link)] == '/' {
			return link
		}
	}
	return ""
}

// lower finds what the layers below have at a path; nil if nothing.
func (b *build) lower(p string) *tree.Entry {
	for i := len(b.in.Lower) - 1; i >= 0; i-- {
		if e := b.in.Lower[i].Get(p); e != nil {
			if e.Kind == tree.Char && e.Major == 0 && e.Minor == 0 {
				return nil // a whiteout: a layer in between removed it
			}
			return e
		}
	}
	return nil
}

// lookup finds an entry in the layer itself, else below.
func (b *build) lookup(p string) *tree.Entry {
	if e := b.tree.Get(p); e != nil {
		return e
	}
	return b.lower(p)
}

// read returns a file's content from the layer itself, else from those below.
func (b *build) read(p string) ([]byte, bool) {
	for _, t := range append([]*tree.Tree{b.tree}, reversed(b.in.Lower)...) {
		if t.Get(p) == nil {
			continue
		}
		data, err := t.ReadFile(p)
		return data, err == nil
	}
	return nil, false
}

func reversed(in []*tree.Tree) []*tree.Tree {
	out := make([]*tree.Tree, 0, len(in))
	for i := len(in) - 1; i >= 0; i-- {
		out = append(out, in[i])
	}
	return out
}

// adoptDirectories gives directories that also exist below the mode and owner they
// have there: in an overlay the topmost layer's count, so that a file added under
// /var/lib/postgresql must not make that directory root's.
func (b *build) adoptDirectories() {
	for _, e := range b.tree.Sorted() {
		if e.Kind != tree.Dir {
			continue
		}
		e.MTime = b.in.Date
		if below := b.lower(e.Path); below != nil && below.Kind == tree.Dir && !b.explicit[e.Path] {
			e.Perm, e.UID, e.GID, e.Xattrs = below.Perm, below.UID, below.GID, below.Xattrs
		}
	}
}

func (b *build) putAgent() error {
	if b.in.Agent == "" {
		return nil
	}
	info, err := os.Stat(b.in.Agent)
	if err != nil {
		return fault.New(fault.Input, "the first-boot agent: %w", err).
			WithMend("build it: go build ./cmd/firstboot")
	}
	agent := b.in.Agent
	err = b.put(&tree.Entry{
		Path: AgentPath, Kind: tree.Regular, Perm: 0o755, Size: info.Size(),
		Open: func() (io.ReadCloser, error) { return os.Open(agent) },
	})
	if err != nil {
		return err
	}
	return b.put(&tree.Entry{Path: AgentLink, Kind: tree.Symlink, Perm: 0o777, Target: "/" + AgentPath})
}

// putCommand adds the command to a role that asks for it.
func (b *build) putCommand(p *Profile) error {
	if !p.Slipway || b.in.Command == "" {
		return nil
	}
	info, err := os.Stat(b.in.Command)
	if err != nil {
		return fault.New(fault.Input, "the command for %s: %w", p.Role, err).WithMend("build it: go build ./cmd/slipway")
	}
	command := b.in.Command
	return b.put(&tree.Entry{Path: CommandPath, Kind: tree.Regular, Perm: 0o755, Size: info.Size(),
		Open: func() (io.ReadCloser, error) { return os.Open(command) }})
}

// marker is the role marker with what the build knows.
func (s *Set) marker(p *Profile, in Input) manifest.Role {
	m := s.Marker(p)
	m.Archives = in.Archives
	return m
}

func (b *build) putMarker(role manifest.Role) error {
	data, err := json.MarshalIndent(role, "", "  ")
	if err != nil {
		return err
	}
	return b.tree.PutFile(manifest.RolePath, 0o644, b.in.Date, append(data, '\n'))
}
