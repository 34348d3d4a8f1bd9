package backup

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	lookAgain   = time.Minute     // at the repository
	tryAgain    = 2 * time.Minute // to make a backup that failed
	pause       = 2 * time.Second
	backupLimit = 48 * time.Hour
)

// Start lets pgBackRest's server start, and on the node that makes backups makes
// them by the schedule, as long as the node runs.
type Start struct {
	mu      sync.Mutex
	busy    bool
	running string    // kind of the backup under way
	looked  time.Time // when the repository was last asked
	failed  time.Time // when a backup last failed
	info    Info
	err     error
}

// Name implements steps.Step.
func (*Start) Name() string { return "backup" }

// Apply implements steps.Step.
func (*Start) Apply(ctx context.Context, n *node.Node) error {
	if !Takes(n.Member) || len(n.Member.Plan.BackupPeers(n.Member.Self.Name)) == 0 {
		return nil
	}
	return n.ReleaseAndWait(ctx, Unit)
}

// Observe implements steps.Observer. The work goes on beside it, since an observer
// must not take long.
func (s *Start) Observe(ctx context.Context, n *node.Node, c *status.Cluster) error {
	m := n.Member
	if !makes(m) || m.Plan.Backup.S3 != nil && !leads(c) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.busy && time.Since(s.looked) >= lookAgain {
		s.busy = true
		own := *n
		go func() {
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), backupLimit)
			defer cancel()
			s.round(limited, &own, time.Now())
		}()
	}
	c.Backup = s.report(n)
	return s.err
}

// leads reports whether this node is the writable primary.
func leads(c *status.Cluster) bool {
	return c.Database != nil && slices.ContainsFunc(c.Database.Members, func(v status.DatabaseMember) bool { return v.Node == c.Node && v.Role == "leader" })
}

func (s *Start) report(n *node.Node) *status.Backup {
	b := n.Member.Plan.Backup
	r := &status.Backup{Where: b.Repository, Running: s.running, FirstWAL: s.info.First, LastWAL: s.info.Last}
	if b.S3 != nil {
		r.Where = "s3://" + b.S3.Bucket + b.S3.Path
	}
	r.Sets = slices.Clone(s.info.Sets[max(0, len(s.info.Sets)-setsLimit):])
	return r
}

// round looks at the repository and does what is due there. What went wrong with a
// backup is told until one has been made.
func (s *Start) round(ctx context.Context, n *node.Node, now time.Time) {
	info, err := created(ctx, n)
	if err != nil {
		s.end(nil, err, false)
		return
	}
	kind := due(n.Member.Plan.Backup, info.Sets, now)
	s.mu.Lock()
	wait := !s.failed.IsZero() && time.Since(s.failed) < tryAgain
	s.info = info
	if kind != "" && !wait {
		s.running = kind
	}
	s.mu.Unlock()
	switch {
	case kind == "":
		s.end(&info, damaged(info), false)
		return
	case wait:
		s.end(&info, nil, true)
		return
	}
	made, err := Make(ctx, n, kind)
	if err == nil {
		n.Changed("made the %s backup %s", made.Type, made.Label)
		if info, err = Look(ctx, n, ""); err == nil {
			s.end(&info, damaged(info), false)
			return
		}
	}
	s.mu.Lock()
	s.failed = time.Now()
	s.mu.Unlock()
	s.end(nil, fmt.Errorf("no %s backup was made: %w", kind, err), true)
}

// end notes how a round has ended. failed says that a backup is still owed.
func (s *Start) end(info *Info, err error, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy, s.running, s.looked = false, "", time.Now()
	if info != nil {
		s.info = *info
	}
	if !failed && err == nil {
		s.failed = time.Time{}
	}
	if err != nil || !failed {
		s.err = err
	}
}

// damaged tells of backups of which pages are lost.
func damaged(info Info) error {
	var labels []string
	for _, set := range info.Sets {
		if set.Damaged {
			labels = append(labels, set.Label)
		}
	}
	if len(labels) > 0 {
		return fmt.Errorf("backups with pages whose checksums are wrong: %s", strings.Join(labels, ", "))
	}
	return nil
}

// created is what the repository holds, after the stanza was made if there was none.
// One that is there for another database stays as it is: what it holds may be all
// that is left of it.
func created(ctx context.Context, n *node.Node) (Info, error) {
	info, err := Look(ctx, n, "")
	if err != nil || info.Exists {
		return info, err
	}
	if err := stanzaCommand(ctx, n, "stanza-create"); err != nil {
		return info, err
	}
	n.Changed("made the stanza %s", n.Member.Plan.Stanza())
	return Look(ctx, n, "")
}

// stanzaCommand changes the stanza.
func stanzaCommand(ctx context.Context, n *node.Node, command string) error {
	for try := 0; ; try++ {
		_, err := Command(ctx, n, "", infoLimit, command)
		// A database that tries to archive holds the stanza for a moment.
		if exitCode(err) != exitLock || try == 30 || !node.Sleep(ctx, pause) {
			return words(n, err)
		}
	}
}

// Take has the repository take the database that leads now for the cluster's own,
// after another cluster's was restored, and makes the first backup of it. The backups of
// the one before stay until there are enough of this one.
func Take(ctx context.Context, n *node.Node) (Info, error) {
	if _, err := created(ctx, n); err != nil {
		return Info{}, err
	}
	if err := stanzaCommand(ctx, n, "stanza-upgrade"); err != nil {
		return Info{}, err
	}
	info, err := Look(ctx, n, "")
	if err != nil || len(info.Sets) > 0 {
		return info, err
	}
	if _, err := Make(ctx, n, "full"); err != nil {
		return Info{}, err
	}
	return Look(ctx, n, "")
}

// Make makes a backup of a kind (full, diff, incr), takes away those that are not
// kept any more, and returns the new one.
func Make(ctx context.Context, n *node.Node, kind string) (status.BackupSet, error) {
	if _, err := created(ctx, n); err != nil {
		return status.BackupSet{}, err
	}
	if _, err := Command(ctx, n, "", backupLimit, "backup", "--type="+kind); err != nil {
		return status.BackupSet{}, words(n, err)
	}
	info, err := Look(ctx, n, "")
	if err != nil {
		return status.BackupSet{}, err
	}
	if len(info.Sets) == 0 {
		return status.BackupSet{}, fault.New(fault.Internal, "pgBackRest has made a backup, and knows of none")
	}
	return info.Sets[len(info.Sets)-1], nil
}

// Exit codes of pgBackRest (src/build/error/error.yaml).
const (
	exitFileInvalid    = 28 // the stanza is another database's
	exitLock           = 50 // another pgBackRest is at it
	exitBackupMismatch = 51 // the stanza is another database's
	exitDBConnect      = 56 // no primary
)

// UnderWay begins the refusal of a backup while the repository makes another one.
const UnderWay = "another backup is under way"

// exitCode is how pgBackRest has ended; 0 for anything else.
func exitCode(err error) int {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0
	}
	return exit.ExitCode()
}

// words says what pgBackRest's complaint means here.
func words(n *node.Node, err error) error {
	var failed *node.CommandError
	if !errors.As(err, &failed) {
		return err
	}
	said := strings.Join(strings.Fields(failed.Said), " ")
	switch exitCode(err) {
	case exitFileInvalid, exitBackupMismatch:
		return fault.New(fault.Integrity, "the repository holds the backups of another database under the name %s: %s", n.Member.Plan.Stanza(), said).
			WithMend("to bring that database back: slipway restore --to latest; to keep this one, move its backups away or empty the repository")
	case exitLock:
		return fault.New(fault.Failed, UnderWay+" on %s", n.Member.Self.Name)
	case exitDBConnect:
		return fault.New(fault.Network, "no writable primary can be reached: %s", said)
	}
	return err
}
