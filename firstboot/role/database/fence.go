package database

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

// A site that the plan has taken the right to write from fences itself: each of its
// nodes makes it a standby in etcd, stops PostgreSQL, puts aside what the promoted
// site lacks, and only then joins again (docs/operations.md, "Losing a site").

// divergedPrefix begins the name of a data directory that was kept aside.
const divergedPrefix = dataDir + ".diverged-"

// configKey is where Patroni keeps the cluster's dynamic configuration.
func configKey(m *member.Member) string { return "/service/" + m.Site.Scope + "/config" }

// leaderKey is where Patroni keeps who leads.
func leaderKey(m *member.Member) string { return "/service/" + m.Site.Scope + "/leader" }

// turned reports whether another site was promoted since this node was last known to
// hold nothing that that one lacks.
func turned(m *member.Member, r record) bool {
	return m.Site.StandbyOf != "" && m.Plan.Turn > r.Turn
}

const (
	fenceLimit = 10 * time.Second
	standLimit = 3 * time.Minute
)

// fence keeps this node from taking writes, and readies it to join as a standby.
// Interrupted anywhere, it is begun anew.
func (s *Start) fence(ctx context.Context, n *node.Node, rest *patroni) error {
	m := n.Member
	n.Waiting("site %s takes the writes now: this site becomes its standby", m.Plan.WritableSite())
	// First in etcd, so that no other node of this site is promoted as this one stops.
	limited, cancel := context.WithTimeout(ctx, fenceLimit)
	err := standBy(limited, n)
	cancel()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := standStill(ctx, n); err != nil {
		return err
	}
	for err != nil {
		n.Waiting("PostgreSQL is stopped; etcd does not take up that this site is a standby now: %s", noanswer.Words(err))
		if !node.Sleep(ctx, lookAgain) {
			return ctx.Err()
		}
		err = standBy(ctx, n)
	}
	d, err := inspect(ctx, n)
	if err != nil {
		return err
	}
	r, err := readRecord(n, m)
	if err != nil {
		return err
	}
	if d.system != "" {
		aside, err := s.keepAside(ctx, n, rest)
		if err != nil {
			return err
		}
		if aside {
			r = record{Begun: true}
		}
	}
	r.Turn = m.Plan.Turn
	if err := writeRecord(n, m, r); err != nil {
		return err
	}
	return Configure{}.Apply(ctx, n) // pg_rewind may be used again
}

// standBy makes the site a standby in Patroni's dynamic configuration, unless it is
// one, or no configuration has been made yet.
func standBy(ctx context.Context, n *node.Node) error {
	client, err := consensus.Dial(n.Member)
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		text, found, err := client.Get(ctx, configKey(n.Member))
		if err != nil || !found {
			return err
		}
		next, err := fenced(text, n.Member)
		if err != nil || next == "" {
			return err
		}
		done, err := client.Replace(ctx, configKey(n.Member), text, next)
		if err != nil {
			return err
		}
		if done {
			n.Changed("made site %s a standby of site %s", n.Member.Site.Name, n.Member.Site.StandbyOf)
			return nil
		}
	}
}

// fenced is a running configuration as that of a standby site; "" if it is that of
// one already. A pause ends: it would keep Patroni from obeying.
func fenced(text string, m *member.Member) (string, error) {
	var running tree
	if err := json.Unmarshal([]byte(text), &running); err != nil {
		return "", fault.New(fault.Integrity, "Patroni's dynamic configuration is no JSON")
	}
	want, err := canonical(follows(m))
	if err != nil {
		return "", err
	}
	now, _ := running["standby_cluster"].(tree)
	if now != nil && now["host"] == want["host"] && now["port"] == want["port"] && running["pause"] != true {
		return "", nil
	}
	change, err := patch(running, m)
	if err != nil {
		return "", err
	}
	next := applied(running, merged(change, tree{"standby_cluster": want, "pause": nil}))
	data, err := json.Marshal(next)
	return string(data), err
}

// applied is a JSON merge patch (RFC 7396) applied to a tree.
func applied(to, change tree) tree {
	out := tree{}
	for key, value := range to {
		out[key] = value
	}
	for key, value := range change {
		sub, isTree := value.(tree)
		old, _ := out[key].(tree)
		switch {
		case value == nil:
			delete(out, key)
		case isTree:
			out[key] = applied(old, sub)
		default:
			out[key] = value
		}
	}
	return out
}

// standStill stops Patroni, keeps it from starting, and makes sure that PostgreSQL has
// stopped too: a paused Patroni leaves it running.
func standStill(ctx context.Context, n *node.Node) error {
	if err := n.Hold(Unit); err != nil {
		return err
	}
	if n.UnitActive(ctx, Unit) {
		if _, err := n.Execute(ctx, node.Command{Argv: []string{"systemctl", "stop", Unit}, Timeout: standLimit}); err != nil {
			return err
		}
		n.Changed("stopped PostgreSQL")
	}
	return halt(ctx, n)
}

// keepAside puts the data directory aside if it holds what the promoted site lacks,
// or if that cannot be told.
func (s *Start) keepAside(ctx context.Context, n *node.Node, rest *patroni) (bool, error) {
	m := n.Member
	f, err := forked(ctx, n, rest)
	if err != nil {
		return false, err
	}
	end, err := lastRecord(ctx, n)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err == nil && (!f.lacks(end) || f.went(ctx, n, end)) {
		return false, nil
	}
	why := fmt.Sprintf("this node's log goes on to %s on timeline %d; site %s went its own way at %s on timeline %d", end.at, end.timeline, m.Plan.WritableSite(), f.At, f.Timeline)
	if err != nil {
		why = err.Error()
	}
	if err := roomBeside(n); err != nil {
		return false, err
	}
	if m.Site.Bootstrap == m.Self.Name {
		if err := uninitialize(ctx, n, rest); err != nil {
			return false, err
		}
	}
	name := divergedPrefix + time.Now().UTC().Format("20060102T150405Z")
	if err := putAside(n, name); err != nil {
		return false, err
	}
	n.Changed("kept data aside that site %s may lack: %s (%s)", m.Plan.WritableSite(), name, why)
	return true, nil
}

// putAside gives the data directory another name. That it is going to is noted first,
// or an empty one would count as a loss after a power cut in between; what was in it is
// noted too, or a whole one would count as half made.
func putAside(n *node.Node, name string) error {
	r, err := readRecord(n, n.Member)
	if err != nil {
		return err
	}
	r.Begun = true
	if err := writeRecord(n, n.Member, r); err != nil {
		return err
	}
	if err := os.Rename(n.Path(dataDir), n.Path(name)); err != nil {
		return err
	}
	return syncDir(n.Path(filepath.Dir(dataDir)))
}

// syncDir has a directory's entries survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// roomBeside makes sure that a second copy of the database has room beside the first.
func roomBeside(n *node.Node) error {
	var size int64
	err := filepath.WalkDir(n.Path(dataDir), func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			size += info.Size()
		}
		return nil
	})
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(n.Path(dataDir), &fs); err != nil {
		return err
	}
	if free := int64(fs.Bavail) * int64(fs.Bsize); free < size {
		return fault.New(fault.Space, "Patroni is not started: the data of this node holds what the promoted site lacks, and a clone beside it needs %d MiB more", (size-free)>>20).
			WithMend("enlarge the disk, or move %s to another one; what need not be kept may be deleted", dataDir)
	}
	return nil
}

// uninitialize lets the site's first node clone the other site once more. Patroni would
// wait for somebody with data otherwise, and all may have put theirs aside.
func uninitialize(ctx context.Context, n *node.Node, rest *patroni) error {
	m := n.Member
	client, err := consensus.Dial(m)
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		lead, found, err := client.Get(ctx, leaderKey(m))
		if err == nil && found {
			if peer, err := m.Plan.Node(lead); err == nil && lead != m.Self.Name {
				if o, err := rest.own(ctx, peer); err == nil && o.State == "running" {
					return nil // to be cloned from
				}
			}
			err = fmt.Errorf("%s still counts as the leader", lead)
		}
		if err == nil {
			var key string
			if key, found, err = client.Get(ctx, initializeKey(m)); err == nil {
				if found {
					_, err = client.DeleteIf(ctx, initializeKey(m), key)
				}
				if err == nil {
					return nil
				}
			}
		}
		n.Waiting("etcd: %s", noanswer.Words(err))
		if !node.Sleep(ctx, lookAgain) {
			return ctx.Err()
		}
	}
}

// mark is what a promoted site writes into its dynamic configuration: by which turn
// it was, on which timeline it stood before, and with which record the next began.
// The last is there once the site takes writes.
type mark struct {
	Turn     int64  `json:"turn"`
	Timeline int    `json:"timeline"`
	Begins   string `json:"begins,omitempty"`
}

// markKey is where it stands.
const markKey = "slipway_site"

// forked waits until the promoted site tells where it left the common history.
func forked(ctx context.Context, n *node.Node, rest *patroni) (fork, error) {
	m := n.Member
	site := m.Plan.WritableSite()
	for {
		var wrong []string
		for _, other := range m.Plan.DatabaseNodes(site) {
			f, err := rest.forkOf(ctx, other, m.Plan.Turn)
			if err == nil {
				return f, nil
			}
			wrong = append(wrong, other.Name+": "+noanswer.Words(err))
		}
		n.Waiting("PostgreSQL is stopped until site %s's primary answers, to compare with it: %s", site, strings.Join(wrong, ", "))
		if !node.Sleep(ctx, lookAgain) {
			return fork{}, ctx.Err()
		}
	}
}

// forkOf asks another site's primary.
func (p *patroni) forkOf(ctx context.Context, n plan.Node, turn int64) (fork, error) {
	o, err := p.own(ctx, n)
	if err != nil {
		return fork{}, err
	}
	if o.Role != "primary" || o.State != "running" {
		return fork{}, fmt.Errorf("%s, %s", o.Role, o.State)
	}
	m, err := p.marked(ctx, n)
	if err != nil {
		return fork{}, err
	}
	if m.Turn != turn {
		return fork{}, fmt.Errorf("was promoted by the plan of generation %d, not %d", m.Turn, turn)
	}
	// Each entry is a list: a timeline, where it ended, why, when, who led the next.
	var history [][]json.RawMessage
	if err := p.mtls.JSON(ctx, http.MethodGet, rest(n)+"/history", nil, &history); err != nil {
		return fork{}, err
	}
	for _, entry := range history {
		var timeline int
		var end uint64
		if len(entry) >= 2 && json.Unmarshal(entry[0], &timeline) == nil && json.Unmarshal(entry[1], &end) == nil && timeline == m.Timeline && m.Begins != "" {
			return fork{timeline, lsn(end), m.Begins}, nil
		}
	}
	return fork{}, errors.New("its history is not known yet")
}

// marked is the mark of a node's site.
func (p *patroni) marked(ctx context.Context, n plan.Node) (mark, error) {
	var config struct {
		Mark mark `json:"slipway_site"`
	}
	err := p.mtls.JSON(ctx, http.MethodGet, rest(n)+"/config", nil, &config)
	return config.Mark, err
}

// complete adds to the mark of a promoted site, on its primary, with which record its
// own timeline began.
func (p *patroni) complete(ctx context.Context, n *node.Node) error {
	m, err := p.marked(ctx, p.m.Self)
	if err != nil || m.Turn == 0 || m.Turn != p.m.Plan.Turn || m.Begins != "" {
		return err
	}
	o, err := p.own(ctx, p.m.Self)
	if err != nil {
		return err
	}
	if m.Begins, err = onward(ctx, n, o.Timeline, m.Timeline); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m.Begins = unknown
	}
	return p.patchConfig(ctx, tree{markKey: m})
}

// keptAside are the data directories that were put aside, oldest first.
func keptAside(n *node.Node) []string {
	found, _ := filepath.Glob(n.Path(divergedPrefix + "*"))
	var names []string
	for _, path := range found {
		names = append(names, filepath.Dir(dataDir)+"/"+filepath.Base(path))
	}
	slices.Sort(names)
	return names
}

// asideProblems tell of them until somebody has taken them away.
func asideProblems(n *node.Node) (problems []string) {
	for _, name := range keptAside(n) {
		problems = append(problems, fmt.Sprintf("what this node had written and the promoted site lacked is kept in %s: look whether it matters, then remove it", name))
	}
	return problems
}
