package node

import (
	"encoding/json"
	"strings"
	"time"
)

// maintenancePath is the note of a node in maintenance. It outlives versions and
// boots: only who ends the maintenance takes it away.
const maintenancePath = "/var/lib/slipway/maintenance.json"

// Maintenance says that a node gives up what others can do instead: it leads no
// database, answers no reads through the balancers and holds no virtual address.
// It goes on replicating, and voting.
type Maintenance struct {
	Since time.Time `json:"since"`
	By    string    `json:"by"`
	Start string    `json:"start,omitempty"` // the start of the machine (Start) that it began in
}

// Start names the present start of the machine: the kernel's boot_id, random each time
// (proc_sys_kernel(5)); "" if it cannot be told.
func (n *Node) Start() string {
	id, err := n.Read("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// Maintenance is the maintenance that the node is in; nil if it is in none. A note
// that cannot be read counts: to come back by mistake would be worse than not to.
func (n *Node) Maintenance() *Maintenance {
	text, err := n.Read(maintenancePath)
	if err == nil && text == nil {
		return nil
	}
	var m Maintenance
	if err != nil || json.Unmarshal(text, &m) != nil {
		return &Maintenance{By: "unknown"}
	}
	return &m
}

// BeginMaintenance puts the node into maintenance; one that began before goes on.
// What the node has to give up, the steps then see to.
func (n *Node) BeginMaintenance(m Maintenance) error {
	if n.Maintenance() != nil {
		return nil
	}
	m.Start = n.Start()
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = n.Write(maintenancePath, 0o600, append(text, '\n'))
	return err
}

// EndMaintenance is the contrary.
func (n *Node) EndMaintenance() error {
	_, err := n.Remove(maintenancePath)
	return err
}
