package database

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Bringing a database back takes six deeds, each of which can be done again, and
// each node remembers on disk how far it is:
//
//	StepAside  every node: Patroni stops and stays stopped, the data are kept beside
//	BringBack  one node: restores, recovers up to the time, and proves it by reading
//	Commit     every node: there is no way back from here on
//	Forget     one node a site: etcd forgets who led and how far, so that a database
//	           that is older than its memory may lead
//	TakePart   that node first, the others when it leads: they clone it
//	Tidy       every node: the former data are deleted, and the restore has ended
//
// Until Commit, StepBack undoes it all. Once etcd has forgotten, it would not: of the former
// data those of any node might lead, also of a replica that lacks acknowledged commits. So every
// node knows before that it must not step back, whichever of them can be asked later.
//
// A node does a restore once: what was written since would be lost by a command that somebody, or a
// script, only repeats. So it keeps which one has ended last, and the same one again is of another Round.

// restorePath remembers a restore that has not ended, endedPath the last one that has.
const (
	restorePath = "/var/lib/slipway/restore.json"
	endedPath   = "/var/lib/slipway/restored.json"
)

// aside is where the data are kept meanwhile; restoreLog is what the server says
// while it recovers.
const (
	aside      = dataDir + ".before-restore"
	restoreLog = baseDir + "/restore.log"
	stopLimit  = 15 * time.Minute
)

// Latest is the end of the archive as a target.
const Latest = "latest"

// Request is what a database is to be brought back to.
type Request struct {
	// Target is a time (RFC 3339), or Latest.
	Target string `json:"target"`
	// Set is the backup to begin with; "" is the newest that was complete by then.
	Set string `json:"set,omitempty"`
	// Node restores; the others clone it.
	Node string `json:"node"`
	// From is the cluster that made the backup; "" is this one.
	From string `json:"from,omitempty"`
	// Round tells apart restores that have all the rest in common; the first is 0.
	Round int `json:"round,omitempty"`
}

// Restore is how far a node is with a restore.
type Restore struct {
	Request
	Aside bool `json:"aside"` // Patroni is stopped, and the data are beside
	// Back says that the data directory holds the database as it was then.
	Back bool `json:"back"`
	// Committed says that the former data are not put back any more.
	Committed bool `json:"committed,omitempty"`
	// Taken says that this node takes part again. The former data are still there.
	Taken bool `json:"taken"`
	// Facts of the database that is back.
	System   string     `json:"system,omitempty"`
	Timeline int        `json:"timeline,omitempty"`
	Reached  *time.Time `json:"reached,omitempty"` // of the last transaction; nil if none was replayed
	Tables   int        `json:"tables,omitempty"`  // that were opened
}

// Ended is a restore that has ended on a node.
type Ended struct {
	Request
	At time.Time `json:"at"`
}

var setLabel = regexp.MustCompile(`^[0-9]{8}-[0-9]{6}F(_[0-9]{8}-[0-9]{6}[DI])?$`)

// Check tells whether a request can be one.
func (r Request) Check() error {
	if r.Target != Latest {
		if _, err := time.Parse(time.RFC3339Nano, r.Target); err != nil {
			return fault.New(fault.Usage, "%q is no time to restore to", r.Target).WithMend("give a time such as 2026-03-01T14:05:00Z, or %s", Latest)
		}
	}
	if r.Set != "" && !setLabel.MatchString(r.Set) {
		return fault.New(fault.Usage, "%q is no label of a backup", r.Set).WithMend("slipway backups names them")
	}
	return nil
}

// Again is the command that goes on with a restore.
func (r Request) Again() string {
	command := "slipway restore --to " + r.Target
	if r.Set != "" {
		command += " --set " + r.Set
	}
	if r.From != "" {
		command += " --from " + r.From
	}
	return command
}

// Time is the target as a time; latest says that it is the end of the archive.
func (r Request) Time() (at time.Time, latest bool) {
	at, err := time.Parse(time.RFC3339Nano, r.Target)
	return at, err != nil
}

// restoring reads how far a restore is; nil if there is none.
func restoring(n *node.Node) (*Restore, error) {
	text, err := n.Read(restorePath)
	if err != nil || len(text) == 0 {
		return nil, err
	}
	var r Restore
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", restorePath, err)
	}
	return &r, nil
}

func (r Restore) save(n *node.Node) error { return keep(n, restorePath, r) }

func keep(n *node.Node, path string, what any) error {
	text, err := json.Marshal(what)
	if err != nil {
		return err
	}
	_, err = n.Write(path, 0o600, append(text, '\n'))
	return err
}

// ended reads which restore has ended last; nil if none has.
func ended(n *node.Node) (*Ended, error) {
	text, err := n.Read(endedPath)
	if err != nil || len(text) == 0 {
		return nil, err
	}
	var e Ended
	if err := json.Unmarshal(text, &e); err != nil {
		return nil, fmt.Errorf("%s: %w", endedPath, err)
	}
	return &e, nil
}

func (r *Restore) report() *status.Restore {
	return &status.Restore{Target: r.Target, Set: r.Set, From: r.From, Node: r.Node, Round: r.Round, Aside: r.Aside, Back: r.Back, Committed: r.Committed, Taken: r.Taken}
}

func (e *Ended) report() *status.Restored {
	if e == nil {
		return nil
	}
	return &status.Restored{Target: e.Target, Set: e.Set, From: e.From, Node: e.Node, Round: e.Round, At: e.At}
}

// once refuses a restore that has ended here already.
func once(n *node.Node, want Request) error {
	e, err := ended(n)
	if err != nil || e == nil || e.Target != want.Target || e.Set != want.Set || e.From != want.From || e.Round < want.Round {
		return err
	}
	return fault.New(fault.Failed, "%s was brought back to %s already, on %s; what was written since would be lost", n.Member.Self.Name, e.Target, e.At.Format(time.RFC3339)).
		WithMend("see slipway status; to do it once more all the same: %s --again", want.Again())
}

// restored waits while the database is being brought back: this node may have lost
// its power in the middle.
func restored(ctx context.Context, n *node.Node) error {
	for {
		r, err := restoring(n)
		if err != nil || r == nil || r.Taken {
			return err
		}
		n.Waiting("the database is being brought back to %s: slipway restore goes on with it", r.Target)
		if !node.Sleep(ctx, lookAgain) {
			return ctx.Err()
		}
	}
}

// same refuses a request that is not the one under way.
func same(r *Restore, want Request) error {
	if r != nil && r.Request != want {
		return fault.New(fault.Failed, "a restore to %s on %s is under way already", r.Target, r.Node).
			WithMend("go on with that one, or give it up: slipway restore --undo")
	}
	return nil
}

// StepAside stops Patroni, keeps it stopped, and moves the data aside.
func StepAside(ctx context.Context, n *node.Node, want Request, say func(string)) (*Restore, error) {
	if !runs(n.Member) {
		return nil, fault.New(fault.Usage, "%s is no database node", n.Member.Self.Name)
	}
	if err := want.Check(); err != nil {
		return nil, err
	}
	if err := backup.Knows(n, want.From); err != nil {
		return nil, err
	}
	r, err := restoring(n)
	if err != nil {
		return nil, err
	}
	if err := same(r, want); err != nil {
		return nil, err
	}
	if r == nil {
		if err := once(n, want); err != nil {
			return nil, err
		}
		// What an earlier restore has kept is not the database of today.
		if err := os.RemoveAll(n.Path(aside)); err != nil {
			return nil, err
		}
		r = &Restore{Request: want}
		if err := r.save(n); err != nil {
			return nil, err
		}
	}
	switch {
	case r.Taken:
		return r, nil
	case r.Aside:
		return r, n.Hold(Unit)
	}
	if err := n.Hold(Unit); err != nil {
		return nil, err
	}
	say("stopping PostgreSQL")
	if err := stop(ctx, n); err != nil {
		return nil, err
	}
	if !n.Exists(aside) && n.Exists(dataDir) {
		if err := os.Rename(n.Path(dataDir), n.Path(aside)); err != nil {
			return nil, err
		}
		say("the data are kept in " + aside)
	}
	r.Aside = true
	return r, r.save(n)
}

// stop ends Patroni, and with it PostgreSQL, and makes sure of both.
func stop(ctx context.Context, n *node.Node) error {
	if _, err := n.Execute(ctx, node.Command{Argv: []string{"systemctl", "stop", Unit}, Timeout: stopLimit}); err != nil {
		return err
	}
	if n.UnitActive(ctx, Unit) {
		return fault.New(fault.Failed, "%s does not stop", Unit)
	}
	return halt(ctx, n)
}

// Commit gives up the way back.
func Commit(n *node.Node) error {
	r, err := restoring(n)
	switch {
	case err != nil:
		return err
	case r == nil || !r.Aside:
		return fault.New(fault.Failed, "%s has not stepped aside for a restore", n.Member.Self.Name)
	case r.Committed || r.Taken:
		return nil
	case r.Node == n.Member.Self.Name && !r.Back:
		return fault.New(fault.Failed, "the database is not back on %s yet", n.Member.Self.Name)
	}
	r.Committed = true
	return r.save(n)
}

// Forget has etcd forget all of the site's Patroni but its configuration.
func Forget(ctx context.Context, n *node.Node) error {
	r, err := restoring(n)
	if err != nil {
		return err
	}
	switch {
	case r == nil || !r.Aside:
		return fault.New(fault.Failed, "%s has not stepped aside for a restore", n.Member.Self.Name)
	case r.Taken:
		return nil // what etcd knows now is new
	case !r.Committed:
		return fault.New(fault.Failed, "%s may still go back to the former data", n.Member.Self.Name)
	}
	client, err := consensus.Dial(n.Member)
	if err != nil {
		return err
	}
	defer client.Close()
	prefix := "/service/" + n.Member.Site.Scope + "/"
	keys, err := client.List(ctx, prefix)
	if err != nil {
		return err
	}
	var gone []string
	for _, key := range keys {
		if key != prefix+"config" {
			gone = append(gone, key)
		}
	}
	return client.Delete(ctx, gone...)
}

// TakePart ends the restore on this node: Patroni starts on what is back, or on
// nothing, and the node leads or streams in the end.
func TakePart(ctx context.Context, n *node.Node) error {
	r, err := restoring(n)
	if err != nil {
		return err
	}
	if r != nil && !r.Taken {
		if !r.Committed {
			return fault.New(fault.Failed, "the database is not back yet, and %s may still go back to the former data", n.Member.Self.Name)
		}
		known := record{Begun: true}
		if r.Back {
			known = record{System: r.System}
		}
		if err := writeRecord(n, n.Member, known); err != nil {
			return err
		}
		r.Taken = true
		if err := r.save(n); err != nil {
			return err
		}
	}
	return (&Start{}).Apply(ctx, n)
}

// Tidy deletes what was kept of the former data. Of the restore it stays known that it has ended.
func Tidy(n *node.Node) error {
	r, err := restoring(n)
	if err != nil {
		return err
	}
	if r != nil && !r.Taken {
		return fault.New(fault.Failed, "the restore on %s has not ended", n.Member.Self.Name)
	}
	if _, err := n.Remove(restoreLog); err != nil {
		return err
	}
	if err := os.RemoveAll(n.Path(aside)); err != nil {
		return err
	}
	if r == nil {
		return nil
	}
	if err := keep(n, endedPath, Ended{r.Request, time.Now().UTC().Truncate(time.Second)}); err != nil {
		return err
	}
	_, err = n.Remove(restorePath)
	return err
}

// StepBack gives a restore up: the former data are put back.
func StepBack(ctx context.Context, n *node.Node) error {
	r, err := restoring(n)
	if err != nil || r == nil {
		return err
	}
	if r.Committed || r.Taken {
		return fault.New(fault.Failed, "there is no way back to the former data of %s: etcd forgets who led", n.Member.Self.Name).
			WithMend("end it: %s", r.Again())
	}
	if err := halt(ctx, n); err != nil {
		return err
	}
	if n.Exists(aside) {
		if err := os.RemoveAll(n.Path(dataDir)); err != nil {
			return err
		}
		if err := os.Rename(n.Path(aside), n.Path(dataDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if _, err := n.Remove(restorePath); err != nil {
		return err
	}
	return n.Release(ctx, Unit)
}

// room tells whether a backup fits beside the data that are kept.
func room(n *node.Node, set status.BackupSet) error {
	free, err := free(n.Path(baseDir))
	if err != nil {
		return err
	}
	if need := set.Size + set.Size/10 + 256<<20; free < need {
		return fault.New(fault.Space, "%s has %d MiB free, and the database takes %d MiB beside the data that are kept", n.Member.Self.Name, free>>20, need>>20).
			WithMend("give the node a larger disk")
	}
	return nil
}
