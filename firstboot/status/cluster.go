package status

import (
	"slices"
	"time"
)

// Cluster is what a node knows of its cluster. It is nil on a node that belongs
// to none.
type Cluster struct {
	Name       string     `json:"name"`
	ID         string     `json:"id"` // see plan.Plan
	Node       string     `json:"node"`
	Site       string     `json:"site"`
	Generation int64      `json:"generation"`          // of the plan in effect
	Expires    time.Time  `json:"certificate_expires"` // the first of the node's certificates to do so
	Peers      []Peer     `json:"peers"`
	Consensus  *Consensus `json:"consensus,omitempty"` // as this node sees it; nil if it has no part in it
	Database   *Database  `json:"database,omitempty"`  // as this node sees it; nil if it has no part in it
	VIPs       []VIP      `json:"vips"`                // those that may sit on this node
	Backends   []Backend  `json:"backends"`            // of HAProxy, on a balancer
	Problems   []string   `json:"problems"`            // what is wrong now, in words
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

// Consensus is etcd.
type Consensus struct {
	Members []ConsensusMember `json:"members"`
	Quorum  bool              `json:"quorum"`
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
}

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
	if c.Consensus != nil {
		consensus := *c.Consensus
		consensus.Members = append([]ConsensusMember{}, c.Consensus.Members...)
		copied.Consensus = &consensus
	}
	if c.Database != nil {
		database := *c.Database
		database.Members = slices.Clone(c.Database.Members)
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
