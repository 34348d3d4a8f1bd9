package plan

import (
	"slices"
	"strings"
	"time"
)

// BackupPort is where pgBackRest answers, on the repository and on databases.
const BackupPort = 8432

// RepositoryRole is the role of a node that keeps backups.
const RepositoryRole = "repository"

// Names of the secrets of backups. What S3 asks for is the administrator's to
// give (slipway secret set); the passphrase is made.
const (
	BackupCipher = "backup-passphrase"
	S3Key        = "backup-s3-key"
	S3KeySecret  = "backup-s3-key-secret"
)

// Names of the secrets of backups that another cluster made; all are the
// administrator's to give, from that cluster's store.
const (
	SourceCipher      = "restore-passphrase"
	SourceS3Key       = "restore-s3-key"
	SourceS3KeySecret = "restore-s3-key-secret"
)

// Backup says where the database's backups and its WAL are kept, and for how long.
type Backup struct {
	// Repository is the node that keeps them, "" where S3 does.
	Repository string `json:"repository,omitempty"`
	S3         *S3    `json:"s3,omitempty"`
	// Full and Diff are when backups are made; "" is never.
	Full When `json:"full,omitempty"`
	Diff When `json:"diff,omitempty"`
	// KeepFull and KeepDiff are how many are kept.
	KeepFull int `json:"keep_full"`
	KeepDiff int `json:"keep_diff"`
	// ArchiveTimeout is after how many seconds a started WAL file is archived.
	ArchiveTimeout int `json:"archive_timeout"`
	// WALQueue is how much WAL may wait for the repository, MiB.
	WALQueue int `json:"wal_queue"`
	// From are backups that another cluster made, to be restored from; nil for none.
	From *Source `json:"from,omitempty"`
}

// Source is where the backups of another cluster are.
type Source struct {
	Cluster string `json:"cluster"`
	// S3 is nil where they are beside this cluster's own: in its repository, or in its
	// bucket.
	S3 *S3 `json:"s3,omitempty"`
}

// Reads is the storage that databases read another cluster's backups from by
// themselves, or nil where the repository does that for them.
func (b *Backup) Reads() *S3 {
	switch {
	case b == nil || b.From == nil:
		return nil
	case b.From.S3 != nil:
		return b.From.S3
	}
	return b.S3
}

// S3 is storage that speaks the protocol of Amazon S3.
type S3 struct {
	Endpoint string `json:"endpoint"` // host name, with a port if it is not 443
	Bucket   string `json:"bucket"`
	Region   string `json:"region"`
	Path     string `json:"path"`
	Style    string `json:"style"` // host or path: where requests name the bucket
	// CA are the authorities that the storage's certificate may be of, PEM; "": those
	// that Debian trusts.
	CA string `json:"ca,omitempty"`
}

// Stanza is what pgBackRest calls the database. All sites of a cluster are one: a
// standby site that is promoted goes on where the other stopped.
func (p *Plan) Stanza() string { return p.Cluster }

// AllDatabases are the database nodes of all sites, by name.
func (p *Plan) AllDatabases() []Node {
	return p.nodes(func(n Node) bool { return DatabaseRole(n.Role) })
}

// Keeps reports whether a node is the repository.
func (p *Plan) Keeps(name string) bool {
	return p.Backup != nil && p.Backup.Repository != "" && p.Backup.Repository == name
}

// BackupPeers are the nodes that a node speaks to about backups, each way: the
// repository with every database.
func (p *Plan) BackupPeers(name string) []Node {
	if p.Backup == nil || p.Backup.Repository == "" {
		return nil
	}
	self, err := p.Node(name)
	switch {
	case err != nil:
		return nil
	case p.Keeps(name):
		return p.AllDatabases()
	case DatabaseRole(self.Role):
		return p.nodes(func(n Node) bool { return n.Name == p.Backup.Repository })
	}
	return nil
}

// When is a time of the day, or of the week: "01:30", "sun 01:30". It is UTC, as
// the clocks of all nodes are.
type When string

var days = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// read takes a When apart; day is -1 for every day.
func (w When) read() (day, minute int, ok bool) {
	day = -1
	clock := string(w)
	if name, rest, two := strings.Cut(clock, " "); two {
		if day = slices.Index(days, name); day < 0 {
			return 0, 0, false
		}
		clock = rest
	}
	at, err := time.Parse("15:04", clock)
	return day, at.Hour()*60 + at.Minute(), err == nil && len(clock) == len("15:04")
}

// Valid reports whether a When can be read.
func (w When) Valid() bool {
	_, _, ok := w.read()
	return ok
}

// Last is the latest time at or before now that a When names, or the zero time if
// it names none.
func (w When) Last(now time.Time) time.Time {
	day, minute, ok := w.read()
	if !ok {
		return time.Time{}
	}
	now = now.UTC()
	at := time.Date(now.Year(), now.Month(), now.Day(), minute/60, minute%60, 0, 0, time.UTC)
	for at.After(now) || day >= 0 && int(at.Weekday()) != day {
		at = at.AddDate(0, 0, -1)
	}
	return at
}
