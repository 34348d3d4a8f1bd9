package lab

import (
	"net/netip"
	"time"
)

// NodeState is what the host knows of a node's machine, without asking the guest.
type NodeState struct {
	Name    string     `json:"name"`
	Role    string     `json:"role"`
	Site    string     `json:"site"`
	Address netip.Addr `json:"address"` // where its peers reach it
	On      bool       `json:"on"`
	Since   time.Time  `json:"since"`   // of On; zero if it was never on in this lab
	Blocked bool       `json:"blocked"` // its network is cut
	PID     int        `json:"pid,omitempty"`
	Dir     string     `json:"dir"` // its disk and logs
}
