// Package seeding writes the seeds of a cluster: for every node the medium, or the
// properties, that tell it who it is. Powered on with its seed, a node needs
// nothing else to take its part.
//
// In go a Topology (package topology) and the administrator's store (package
// vault), which makes and keeps certificates, passwords and the signed plan. Out
// come, for each node, cloud-init's meta-data with the block slipway (package
// member), user-data and network-config, on the media that package seed writes:
//
//	NODE.nocloud.iso      a CD for NoCloud
//	NODE.configdrive.iso  a CD as OpenStack's config drive
//	NODE.ovf.json         OVF properties, as options for "govc import.ova"
//	NODE.ovf.iso          the same properties as a CD
//
// A seed holds the private keys and passwords that its node needs, and those of
// no other node. Seeding again changes nothing that need not change: keys,
// passwords and certificates stay, and so do the bytes and dates of the files. A
// node that is added gets a seed, and the others keep theirs: they learn of it
// from their peers, since the plan that they carry is signed and only grows.
package seeding

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Options say what is written.
type Options struct {
	Formats   []Format // nil for all
	Nodes     []string // nil for all
	All       bool     // write what has not changed too
	Renew     bool     // make new certificates and keys
	Prune     bool     // remove what belongs to nodes that the topology no longer has
	DryRun    bool     // write nothing, neither files nor the store
	ExtraKeys []string // SSH keys of the user "slipway", beside those of the topology's users
	// Formed names sites whose etcd was seen to have a quorum (plan.Site.Formed), and Anew
	// those where all members of it are lost, so that it has to form anew.
	Formed, Anew []string
}

// State is what has become of a node's seed.
type State string

const (
	Written   State = "written"   // the node needs this seed
	Unchanged State = "unchanged" // the node needs nothing
	Outdated  State = "outdated"  // it was not to be written and would change
	Leftover  State = "leftover"  // the topology no longer has the node; its files are still there
	Removed   State = "removed"   // the same, and they are gone
)

// Result is what was done, or would be.
type Result struct {
	Cluster    string `json:"cluster"`
	ID         string `json:"id"`
	Store      string `json:"store"`
	NewStore   bool   `json:"new_store"` // the store was made, and with it the cluster
	Dir        string `json:"dir"`
	Generation int64  `json:"generation"` // of the plan
	DryRun     bool   `json:"dry_run"`
	// Nodes are those that were asked for, in the topology's order, others whose
	// seeds are outdated, and then those that the topology no longer has.
	Nodes []NodeResult `json:"nodes"`
	// Learn names the nodes whose seeds stay as they are although the plan has
	// grown: they get it from their peers.
	Learn []string `json:"learn"`
}

// NodeResult is what was done for a node.
type NodeResult struct {
	Node    string     `json:"node"`
	State   State      `json:"state"`
	Reasons []string   `json:"reasons,omitempty"`
	Files   []string   `json:"files,omitempty"`   // names in Dir
	Expires *time.Time `json:"expires,omitempty"` // the first of its certificates to end
}

// Count tells how many nodes are in a state.
func (r *Result) Count(s State) int {
	n := 0
	for _, node := range r.Nodes {
		if node.State == s {
			n++
		}
	}
	return n
}

// Write brings a directory of seeds up to date with a topology. Before the first
// file is written, the store is saved: a seed whose keys nobody knows cannot come
// to be. Interrupted anywhere, it is completed by running it again.
func Write(ctx context.Context, t *topology.Topology, v *vault.Vault, out string, o Options) (*Result, error) {
	if err := checkNodes(t, o.Nodes); err != nil {
		return nil, err
	}
	if len(o.Formats) == 0 {
		o.Formats = Formats()
	}
	if err := checkOut(out); err != nil {
		return nil, err
	}
	w := writer{t: t, v: v, out: out, o: o, known: v.Nodes()}
	if o.Prune { // before the plan is signed, which names what was revoked
		w.forget()
	}
	r := &Result{Cluster: v.Cluster(), ID: v.ID(), Store: v.Dir(), NewStore: v.New(), Dir: out, DryRun: o.DryRun, Learn: []string{}}
	if err := w.updatePlan(); err != nil {
		return nil, err
	}
	r.Generation = w.plan.Generation
	for _, n := range t.Nodes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		result, err := w.node(n)
		if err != nil {
			return nil, err
		}
		if result.State != "" {
			r.Nodes = append(r.Nodes, result)
		}
		if w.change == added && result.State != Written && result.State != Outdated {
			r.Learn = append(r.Learn, n.Name)
		}
	}
	gone, err := w.gone()
	if err != nil {
		return nil, err
	}
	r.Nodes = append(r.Nodes, gone...)
	if o.DryRun {
		return r, nil
	}
	if err := v.Save(); err != nil {
		return nil, err
	}
	return r, w.flush(ctx)
}

// writer is one run of Write.
type writer struct {
	t      *topology.Topology
	v      *vault.Vault
	out    string
	o      Options
	known  []string // nodes that had certificates before
	plan   *plan.Plan
	change change
	files  []file // to be written, in the end
}

// change is how the plan differs from the one before.
type change int

const (
	same    change = iota
	added          // there are more nodes, or revoked certificates, and nothing else is new
	altered        // anything else
)

// updatePlan signs the topology's plan, if it is not the one that the store has.
func (w *writer) updatePlan() error {
	last, err := w.v.Plan()
	if err != nil {
		return err
	}
	next := w.t.Plan()
	next.Revoked = w.v.Revoked()
	if err := next.Keep(last); err != nil {
		return err
	}
	for _, name := range w.o.Anew {
		if _, err := next.Site(name); err != nil {
			return fault.New(fault.Usage, "the topology has no site %q", name)
		}
	}
	for i, s := range next.Sites {
		next.Sites[i].Formed = (s.Formed || slices.Contains(w.o.Formed, s.Name)) && !slices.Contains(w.o.Anew, s.Name)
	}
	if w.change, err = compare(last, next); err != nil {
		return err
	}
	if w.change == same {
		w.plan = last
		return nil
	}
	if err := w.v.AddPlan(next); err != nil {
		return err
	}
	w.plan = next
	if w.change != altered {
		return nil
	}
	for _, name := range w.v.Nodes() {
		if _, ok := w.t.Node(name); !ok {
			continue // it keeps the plan in which it stands: that tells where it is
		}
		if err := w.v.UseNewestPlan(name); err != nil {
			return err
		}
	}
	return nil
}

// forget drops the nodes that the topology no longer has.
func (w *writer) forget() {
	for _, name := range w.known {
		if _, ok := w.t.Node(name); !ok {
			w.v.Forget(name)
		}
	}
}

// compare tells how a plan differs from the one before, identity and generation
// left aside.
func compare(last, next *plan.Plan) (change, error) {
	if last == nil {
		return altered, nil
	}
	text := func(p plan.Plan, keep func(plan.Node) bool) ([]byte, error) {
		p.ID, p.Generation, p.Revoked = "", 0, nil
		p.Sites = slices.Clone(p.Sites)
		for i := range p.Sites {
			p.Sites[i].Formed = false
		}
		p.Nodes = slices.DeleteFunc(slices.Clone(p.Nodes), func(n plan.Node) bool { return !keep(n) })
		return json.Marshal(p)
	}
	all := func(plan.Node) bool { return true }
	before, err := text(*last, all)
	if err != nil {
		return same, err
	}
	after, err := text(*next, all)
	if err != nil {
		return same, err
	}
	if bytes.Equal(before, after) {
		how := same
		if !slices.Equal(last.Revoked, next.Revoked) {
			how = added
		}
		for i, s := range next.Sites { // they have the same names here
			switch {
			case last.Sites[i].Formed && !s.Formed:
				return altered, nil // nodes that have lost everything know only their seeds
			case last.Sites[i].Formed != s.Formed:
				how = added
			}
		}
		return how, nil
	}
	old, err := text(*next, func(n plan.Node) bool {
		_, err := last.Node(n.Name)
		return err == nil
	})
	if err == nil && bytes.Equal(before, old) {
		return added, nil
	}
	return altered, err
}

// node decides on the seed of one node. Of a node that was not asked for, it
// tells only whether its seed is outdated for certain.
func (w *writer) node(n topology.Node) (NodeResult, error) {
	isNew := !slices.Contains(w.known, n.Name)
	if len(w.o.Nodes) > 0 && !slices.Contains(w.o.Nodes, n.Name) {
		switch {
		case isNew:
			return NodeResult{Node: n.Name, State: Outdated, Reasons: []string{"it has no seed yet"}}, nil
		case w.change == altered:
			return NodeResult{Node: n.Name, State: Outdated, Reasons: []string{"the plan has changed"}}, nil
		}
		return NodeResult{}, nil
	}
	r := NodeResult{Node: n.Name, State: Unchanged}
	c, issued, err := w.content(n)
	if err != nil {
		return r, err
	}
	r.Expires = &c.expires
	w.v.Holds(n.Name, slices.Concat(slices.Sorted(maps.Keys(c.certificates)), slices.Sorted(maps.Keys(c.secrets))))
	if isNew {
		if err := w.v.UseNewestPlan(n.Name); err != nil {
			return r, err
		}
	}
	files, err := w.render(n, c)
	if err != nil {
		return r, err
	}
	missing, differs := 0, 0
	for _, f := range files {
		r.Files = append(r.Files, filepath.Base(f.path))
		switch f.onDisk() {
		case fileMissing:
			missing++
		case fileDiffers:
			differs++
		}
	}
	if missing == 0 && differs == 0 && !w.o.All {
		return r, nil
	}
	r.State = Written
	switch {
	case isNew:
		r.Reasons = []string{"the node is new"}
	case w.change == altered:
		r.Reasons = []string{"the plan has changed"}
	}
	if issued && !isNew {
		r.Reasons = append(r.Reasons, "it has new certificates")
	}
	if len(r.Reasons) == 0 {
		switch {
		case differs > 0:
			r.Reasons = []string{"what is in it has changed"}
		case missing > 0:
			r.Reasons = []string{"files were missing"}
		default:
			r.Reasons = []string{"all were asked for"}
		}
	}
	// A seed that is written anew carries what is known now.
	if err := w.v.UseNewestPlan(n.Name); err != nil {
		return r, err
	}
	if files, err = w.render(n, c); err != nil {
		return r, err
	}
	w.files = append(w.files, files...)
	return r, nil
}

// gone deals with nodes that the topology no longer has.
func (w *writer) gone() ([]NodeResult, error) {
	var out []NodeResult
	for _, name := range w.known {
		if _, ok := w.t.Node(name); ok {
			continue
		}
		r := NodeResult{Node: name, State: Leftover, Reasons: []string{"the topology no longer has it"}}
		if w.o.Prune {
			r.State = Removed
		}
		for _, f := range Formats() {
			for _, ending := range f.endings() {
				path := filepath.Join(w.out, name+ending)
				if _, err := os.Lstat(path); err != nil {
					continue
				}
				r.Files = append(r.Files, filepath.Base(path))
				if w.o.Prune && !w.o.DryRun {
					if err := os.Remove(path); err != nil {
						return nil, outError(w.out, err)
					}
				}
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// flush writes the files.
func (w *writer) flush(ctx context.Context) error {
	if len(w.files) == 0 {
		return nil
	}
	if err := os.MkdirAll(w.out, 0o700); err != nil {
		return outError(w.out, err)
	}
	for _, f := range w.files {
		if err := ctx.Err(); err != nil {
			return err
		}
		// What a run that lost its power left behind holds keys.
		leftovers, _ := filepath.Glob(filepath.Join(w.out, ".tmp-"+filepath.Base(f.path)+"-*"))
		for _, path := range leftovers {
			os.Remove(path)
		}
		if err := atomicfile.WriteBytes(f.path, 0o600, f.content); err != nil {
			return outError(w.out, err)
		}
	}
	return nil
}

func checkNodes(t *topology.Topology, names []string) error {
	for _, name := range names {
		if _, ok := t.Node(name); !ok {
			return fault.New(fault.Usage, "the topology has no node %q", name)
		}
	}
	return nil
}

// checkOut refuses a directory in which others could exchange a seed.
func checkOut(out string) error {
	st, err := os.Stat(out)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return outError(out, err)
	case !st.IsDir():
		return fault.New(fault.Input, "%s is not a directory", out).WithMend("name another one with --output DIR")
	case st.Mode().Perm()&0o022 != 0:
		return fault.New(fault.Input, "others than its owner may write to %s (mode %04o), where seeds are to be", out, st.Mode().Perm()).
			WithMend("chmod 700 %s, or name another directory with --output DIR", out)
	}
	return nil
}

func outError(out string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.New(fault.Space, "the seeds in %s cannot be written: %w", out, err).WithMend("make room, then run the same command again")
	}
	return fault.New(fault.Input, "the seeds in %s cannot be written: %w", out, err)
}
