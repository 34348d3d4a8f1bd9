package product

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	// recordPath is what the node knows of its shared files; it outlives versions.
	recordPath   = "/var/lib/slipway/shared.json"
	recordFormat = 1
	// maxShared is what fits into the answer of an agent.
	maxShared = 1 << 20
	offerName = "shared"
)

// record says which version of each shared file the node has.
type record struct {
	Format int                `json:"format"`
	Files  map[string]version `json:"files"` // by path
}

// version is one state of a shared file. Of two, the one of the higher generation
// counts; of two that were made at once on two nodes, the one of the higher hash, so
// that all nodes agree.
type version struct {
	Generation int64     `json:"generation"`
	SHA256     string    `json:"sha256"`
	Node       string    `json:"node"` // that made it
	At         time.Time `json:"at"`
}

// above reports whether v counts rather than w.
func (v version) above(w version) bool {
	if v.Generation != w.Generation {
		return v.Generation > w.Generation
	}
	return v.SHA256 > w.SHA256
}

// recording keeps two tasks of this agent from writing the record at once.
var recording sync.Mutex

func readRecord(n *node.Node) (record, error) {
	r := record{Format: recordFormat, Files: map[string]version{}}
	data, err := n.Read(recordPath)
	if err != nil || len(data) == 0 {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil || r.Format != recordFormat || r.Files == nil {
		return r, fault.New(fault.Integrity, "%s is damaged", recordPath).
			WithMend("remove it: the shared files are then taken anew from another node; if this is the only node, run slipway share for each")
	}
	return r, nil
}

func (r record) save(n *node.Node) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	_, err = n.Write(recordPath, 0o600, append(data, '\n'))
	return err
}

// parseRecord reads the record of another node, which may be broken or hostile.
func parseRecord(data []byte) (record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil || r.Format != recordFormat || len(r.Files) > 1000 {
		return record{}, errors.New("answered something that this version does not understand")
	}
	for path, v := range r.Files {
		if sum, err := hex.DecodeString(v.SHA256); err != nil || len(sum) != sha256.Size || v.Generation < 1 || len(path) > 4096 {
			return record{}, errors.New("answered something that this version does not understand")
		}
	}
	return r, nil
}

// next is the version after one.
func next(n *node.Node, v version, content []byte) version {
	if v.SHA256 == hash(content) {
		return v
	}
	return version{v.Generation + 1, hash(content), self(n.Member), time.Now().UTC().Truncate(time.Second)}
}

func hash(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// readShared reads a shared file; os.ErrNotExist if there is none.
func readShared(n *node.Node, path string) ([]byte, error) {
	f, err := os.Open(n.Path(path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxShared+1))
	if err == nil && len(data) > maxShared {
		err = fault.New(fault.Input, "%s has more than %d bytes, too many for a shared file", path, maxShared)
	}
	return data, err
}

// give offers the node's shared files to the others of its role: the record, or with
// "path" a file.
func give(_ context.Context, n *node.Node, to plan.Node, ask url.Values) ([]byte, error) {
	if n.Member == nil || to.Role != n.Member.Self.Role {
		return nil, peers.ErrNotForYou
	}
	recording.Lock()
	r, err := readRecord(n)
	recording.Unlock()
	if err != nil {
		return nil, err
	}
	path := ask.Get("path")
	if path == "" {
		return json.Marshal(r)
	}
	if _, ok := file(of(n), path); !ok {
		return nil, peers.ErrNotForYou
	}
	content, err := readShared(n, path)
	if err != nil || r.Files[path].SHA256 != hash(content) {
		return nil, peers.ErrNothing // edited, and not shared yet
	}
	return content, nil
}

// take brings the node's shared files to the newest versions that any node of the
// role has. It returns those files that no node has, with why.
func take(ctx context.Context, n *node.Node, others peers.Offers) (missing []string, err error) {
	p := of(n)
	var (
		trouble []string
		wrong   []error
		best    = map[string]version{}
		at      = map[string]string{} // who has it
	)
	for _, peer := range alike(n.Member) {
		data, err := others.Take(ctx, peer.Name, offerName, nil)
		if errors.Is(err, peers.ErrNothing) {
			err = errors.New("has no shared files yet")
		}
		var theirs record
		if err == nil {
			theirs, err = parseRecord(data)
		}
		if err != nil {
			trouble = append(trouble, peer.Name+" "+err.Error())
			continue
		}
		for path, v := range theirs.Files {
			if _, ok := file(p, path); ok && v.above(best[path]) {
				best[path], at[path] = v, peer.Name
			}
		}
	}
	for _, f := range p.Shared {
		own, err := readRecord(n)
		if err != nil {
			return nil, err
		}
		switch v := best[f.Path]; {
		case v.above(own.Files[f.Path]):
			if err := fetch(ctx, n, others, f, at[f.Path], v); err != nil {
				wrong = append(wrong, fmt.Errorf("%s from %s: %w", f.Path, at[f.Path], err))
			}
		case own.Files[f.Path].Generation == 0:
			why := "no node of the role has it"
			if len(trouble) > 0 {
				why += " that answers: " + strings.Join(trouble, ", ")
			}
			missing = append(missing, f.Path+": "+why)
		}
	}
	return missing, errors.Join(wrong...)
}

// fetch takes one version of a file from a node.
func fetch(ctx context.Context, n *node.Node, others peers.Offers, f manifest.SharedFile, from string, v version) error {
	content, err := others.Take(ctx, from, offerName, url.Values{"path": {f.Path}})
	if err != nil {
		return err
	}
	if hash(content) != v.SHA256 {
		return errors.New("what came is not what was announced")
	}
	if _, err := n.EnsureFor(owner(of(n), f), f.Path, os.FileMode(mode(f)), string(content)); err != nil {
		return err
	}
	recording.Lock()
	defer recording.Unlock()
	r, err := readRecord(n)
	if err != nil {
		return err
	}
	r.Files[f.Path] = v
	if err := r.save(n); err != nil {
		return err
	}
	n.Changed("took %s from %s (version %d)", f.Path, from, v.Generation)
	for _, unit := range f.Restart {
		if err := n.Nudge(ctx, "restart", unit); err != nil {
			return err
		}
	}
	return nil
}

// edited are the shared files that differ from the version that the node has.
func edited(n *node.Node) (paths []string, err error) {
	r, err := readRecord(n)
	if err != nil {
		return nil, err
	}
	for _, f := range of(n).Shared {
		content, err := readShared(n, f.Path)
		if v := r.Files[f.Path]; v.Generation > 0 && (err != nil || hash(content) != v.SHA256) {
			paths = append(paths, f.Path)
		}
	}
	return paths, nil
}

// Share has the nodes of the role take a shared file as it is on this one.
func Share(others peers.Offers) actions.Action {
	return actions.Action{Name: "share", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
		var a ShareArgs
		if err := actions.Decode(args, &a); err != nil {
			return nil, err
		}
		n := e.Node
		f, ok := file(of(n), a.Path)
		if !ok {
			var known []string
			for _, f := range of(n).Shared {
				known = append(known, f.Path)
			}
			return nil, fault.New(fault.Usage, "%s is no shared file of the role %s", a.Path, n.Role.Name).
				WithMend("its shared files are: %s", strings.Join(known, ", "))
		}
		content, err := readShared(n, f.Path)
		if err != nil {
			return nil, err
		}
		// What another node has made meanwhile is older from now on.
		newest := version{}
		for _, peer := range alike(n.Member) {
			data, err := others.Take(ctx, peer.Name, offerName, nil)
			if err != nil {
				e.Say("%s %v; it takes the file when it is back", peer.Name, err)
				continue
			}
			if theirs, err := parseRecord(data); err == nil && theirs.Files[f.Path].above(newest) {
				newest = theirs.Files[f.Path]
			}
		}
		recording.Lock()
		defer recording.Unlock()
		r, err := readRecord(n)
		if err != nil {
			return nil, err
		}
		if own := r.Files[f.Path]; own.above(newest) {
			newest = own
		}
		v := next(n, newest, content)
		changed := v != r.Files[f.Path]
		r.Files[f.Path] = v
		if err := r.save(n); err != nil {
			return nil, err
		}
		if changed {
			e.Say("%s is version %d", f.Path, v.Generation)
			for _, unit := range f.Restart {
				if err := n.Nudge(ctx, "restart", unit); err != nil {
					return nil, err
				}
			}
		}
		return ShareResult{Generation: v.Generation, SHA256: v.SHA256, Changed: changed}, nil
	}}
}

// ShareArgs name the file.
type ShareArgs struct {
	Path string `json:"path"`
}

// ShareResult is the version that the file has now.
type ShareResult struct {
	Generation int64  `json:"generation"`
	SHA256     string `json:"sha256"`
	Changed    bool   `json:"changed"`
}
