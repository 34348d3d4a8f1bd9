package status

import (
	"slices"
	"time"
)

// Cluster is what a node knows of its cluster. It is nil on a node that belongs
// to none.
type Cluster struct {
	Name       string    `json:"name"`
	ID         string    `json:"id"` // see plan.Plan
	Node       string    `json:"node"`
	Site       string    `json:"site"`
	Generation int64     `json:"generation"`          // of the plan in effect
	Expires    time.Time `json:"certificate_expires"` // the first of the node's certificates to do so
	// Issue is the number of the certificates and passwords in effect; 0 are the first.
	Issue int64 `json:"issue,omitempty"`
	// Retired says why the node does nothing for the cluster any more; "" if it does.
	Retired   string     `json:"retired,omitempty"`
	Peers     []Peer     `json:"peers"`
	Consensus *Consensus `json:"consensus,omitempty"` // as this node sees it; nil if it has no part in it
	Database  *Database  `json:"database,omitempty"`  // as this node sees it; nil if it has no part in it
	Restored  *Restored  `json:"restored,omitempty"`  // the last time that this node's database was brought back; nil for never
	Backup    *Backup    `json:"backup,omitempty"`    // on the node that makes backups
	VIPs      []VIP      `json:"vips"`                // those that may sit on this node
	Backends  []Backend  `json:"backends"`            // of HAProxy, on a balancer
	Problems  []string   `json:"problems"`            // what is wrong now, in words
}

// Peer is another node, as this one sees it.
type Peer struct {
	Name    string    `json:"name"`
	Role    string    `json:"role"`
	Site    string    `json:"site"`
	Address string    `json:"address"`
	Answers bool      `json:"answers"`
	State   State     `json:"state,omitempty"` // its own word; "maintenance" stays when it does not answer any more
	Since   time.Time `json:"since"`           // of Answers
	Problem string    `json:"problem,omitempty"`
	Expires time.Time `json:"certificate_expires"` // zero if it has not been seen
}

// Why is why the node does nothing for its cluster any more, in words.
func (c *Cluster) Why() string {
	if c == nil || c.Retired == "" {
		return "this node was taken out of its cluster"
	}
	return c.Retired
}

// Consensus is etcd.
type Consensus struct {
	Members []ConsensusMember `json:"members"`
	// Strangers are members that the plan does not name.
	Strangers []string `json:"strangers,omitempty"`
	Quorum    bool     `json:"quorum"`
}

// ConsensusMember is an etcd member.
type ConsensusMember struct {
	Node    string `json:"node"`
	Healthy bool   `json:"healthy"`
	Leader  bool   `json:"leader"`
	Problem string `json:"problem,omitempty"`
}

// Database is a site's Patroni cluster.
type Database struct {
	Scope    string           `json:"scope"`
	SystemID string           `json:"system_id,omitempty"` // PostgreSQL's database system identifier
	Standby  bool             `json:"standby"`             // replicates another site's
	Paused   bool             `json:"paused"`
	Members  []DatabaseMember `json:"members"`
	// Demoting is the node that stops, in a pause, to have its site follow another one; ""
	// unless that is under way, or was interrupted.
	Demoting string `json:"demoting,omitempty"`
	// Furnished is the issue of the credentials by which this node, as the primary, has made
	// sure of all roles and their passwords; nil on others, and until it has.
	Furnished *int64 `json:"furnished,omitempty"`
	// Archiver is nil where no WAL is archived, and on nodes other than the primary.
	Archiver *Archiver `json:"archiver,omitempty"`
	// Restore is how far this node is with bringing the database back; nil if it is not.
	Restore *Restore `json:"restore,omitempty"`
}

// Restore is a database that is being brought back to what it was.
type Restore struct {
	Target string `json:"target"` // a time, or latest
	Set    string `json:"set,omitempty"`
	From   string `json:"from,omitempty"` // the cluster that made the backup; "" is this one
	Node   string `json:"node"`           // restores; the others clone it
	// Round tells apart restores that have all the rest in common; the first is 0.
	Round     int  `json:"round,omitempty"`
	Aside     bool `json:"aside"`     // Patroni is stopped, the former data are kept beside
	Back      bool `json:"back"`      // the restored database is there, on Node
	Committed bool `json:"committed"` // the former data are not put back any more
	Taken     bool `json:"taken"`     // this node takes part again; the former data are still there
}

// Restored is a restore that has ended; see Restore.
type Restored struct {
	Target string    `json:"target"`
	Set    string    `json:"set,omitempty"`
	From   string    `json:"from,omitempty"`
	Node   string    `json:"node"`
	Round  int       `json:"round,omitempty"`
	At     time.Time `json:"at"` // when it ended on this node
}

// Archiver is how the primary's WAL gets into the archive.
type Archiver struct {
	LastWAL string    `json:"last_wal,omitempty"` // the last file that is there
	Last    time.Time `json:"last"`               // since when; zero for none
	Waiting int       `json:"waiting"`            // files that are not there yet
	Failing bool      `json:"failing"`
	// Dropped are files that are lost to the archive, since too many waited.
	Dropped []string `json:"dropped,omitempty"`
}

// Backup is what is known of backups where they are made.
type Backup struct {
	Where    string      `json:"where"` // a node, or s3://BUCKET/PATH
	Running  string      `json:"running,omitempty"`
	Sets     []BackupSet `json:"sets"` // the oldest first
	FirstWAL string      `json:"first_wal,omitempty"`
	LastWAL  string      `json:"last_wal,omitempty"`
}

// BackupSet is one backup.
type BackupSet struct {
	Label    string    `json:"label"`
	Type     string    `json:"type"` // full, diff, incr
	Start    time.Time `json:"start"`
	Stop     time.Time `json:"stop"`
	FirstWAL string    `json:"first_wal"` // WAL that it needs to be consistent
	LastWAL  string    `json:"last_wal"`
	Size     int64     `json:"size"`   // of the database
	Stored   int64     `json:"stored"` // what this backup takes in the repository
	Damaged  bool      `json:"damaged,omitempty"`
}

// CompleteBy reports whether a database can be brought back to a time with the backup:
// whether it had ended, which is known to the second.
func (s BackupSet) CompleteBy(at time.Time) bool { return !s.Stop.Add(time.Second).After(at) }

// DatabaseMember is a PostgreSQL instance under Patroni, in Patroni's words.
type DatabaseMember struct {
	Node     string `json:"node"`
	Role     string `json:"role"`  // leader, standby_leader, replica, sync_standby, quorum_standby
	State    string `json:"state"` // running, streaming, starting, stopped, …
	Timeline int    `json:"timeline,omitempty"`
	Lag      *int64 `json:"lag_bytes,omitempty"` // nil: not known
	// NoFailover keeps it from leading: Patroni's tag nofailover, which a node in
	// maintenance has.
	NoFailover bool `json:"no_failover,omitempty"`
}

// VIP is a virtual address on this node.
type VIP struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Held    bool   `json:"held"`              // this node has it now
	Problem string `json:"problem,omitempty"` // why this node could not take it
}

// Backend is a server behind HAProxy.
type Backend struct {
	Name   string `json:"name"`   // read-write or read-only
	Server string `json:"server"` // a node
	Up     bool   `json:"up"`
	Check  string `json:"check,omitempty"` // what the last health check said
}

// Clone is a copy that shares nothing with c.
func (c *Cluster) Clone() *Cluster {
	if c == nil {
		return nil
	}
	copied := *c
	copied.Peers = append([]Peer{}, c.Peers...)
	copied.VIPs = append([]VIP{}, c.VIPs...)
	copied.Backends = append([]Backend{}, c.Backends...)
	copied.Problems = append([]string{}, c.Problems...)
	if c.Restored != nil {
		restored := *c.Restored
		copied.Restored = &restored
	}
	if c.Backup != nil {
		backup := *c.Backup
		backup.Sets = append([]BackupSet{}, c.Backup.Sets...)
		copied.Backup = &backup
	}
	if c.Consensus != nil {
		consensus := *c.Consensus
		consensus.Members = append([]ConsensusMember{}, c.Consensus.Members...)
		consensus.Strangers = slices.Clone(c.Consensus.Strangers)
		copied.Consensus = &consensus
	}
	if c.Database != nil {
		database := *c.Database
		database.Members = slices.Clone(c.Database.Members)
		if database.Furnished != nil {
			issue := *database.Furnished
			database.Furnished = &issue
		}
		if database.Restore != nil {
			restore := *database.Restore
			database.Restore = &restore
		}
		if database.Archiver != nil {
			archiver := *database.Archiver
			archiver.Dropped = slices.Clone(archiver.Dropped)
			database.Archiver = &archiver
		}
		for i, m := range database.Members {
			if m.Lag != nil {
				lag := *m.Lag
				database.Members[i].Lag = &lag
			}
		}
		copied.Database = &database
	}
	return &copied
}
