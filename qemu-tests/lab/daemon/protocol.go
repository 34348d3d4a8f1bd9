package daemon

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
)

// State is a lab as its daemon sees it: the answer to GET /v1/lab.
type State struct {
	Cluster  string          `json:"cluster"`
	Topology string          `json:"topology"` // path of the file
	Digest   string          `json:"digest"`   // SHA-256 of the file as it was when the lab was started, hexadecimal
	PID      int             `json:"pid"`
	Since    time.Time       `json:"since"`
	Nodes    []lab.NodeState `json:"nodes"`
	Forwards []Forward       `json:"forwards"`
	Faults   []Fault         `json:"faults"` // that were made and not healed yet, the oldest first
}

// Node finds a node by name.
func (s State) Node(name string) (lab.NodeState, bool) {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return lab.NodeState{}, false
}

// Forward is a port of the cluster that the host reaches on 127.0.0.1.
type Forward struct {
	Name    string `json:"name"`    // of the virtual address, or of the node
	Service string `json:"service"` // such as read-write
	Guest   string `json:"guest"`   // address and port in the cluster's network
	Host    string `json:"host"`    // address and port on this computer
}

// Action is what can be done to the power of nodes.
type Action string

const (
	Start    Action = "start"    // those that are on stay as they are
	Shutdown Action = "shutdown" // ask the guest, and cut the power after the limit
	Crash    Action = "crash"    // cut the power
)

// Order is the body of POST /v1/power.
type Order struct {
	Action Action        `json:"action"`
	Nodes  []string      `json:"nodes"`
	Limit  time.Duration `json:"limit_ns,omitempty"` // of Shutdown
}

// Outcome is the answer to an Order.
type Outcome struct {
	Changed []string `json:"changed"` // nodes that it was not so already
	Forced  []string `json:"forced"`  // nodes that did not shut down in time
}

// Fault is what was done to nodes: the body of POST /v1/faults, and an element of
// the answer to DELETE /v1/faults. Names are those of package faults.
type Fault struct {
	Name  string    `json:"name"`
	Nodes []string  `json:"nodes"`
	Since time.Time `json:"since,omitzero"`
	Lasts bool      `json:"lasts"` // whether it has to be healed; else it is over
}

// Size is the body of POST /v1/nodes/NAME/size: how large the terminal is that
// shows the console.
type Size struct {
	Rows    int `json:"rows"`
	Columns int `json:"columns"`
}

// NodeReport is what a node says of itself, or why it says nothing.
type NodeReport struct {
	Report  *status.Report `json:"report,omitempty"`
	Problem string         `json:"problem,omitempty"`
}

// streamProtocol is what a connection is upgraded to: bytes, in both directions.
const streamProtocol = "slipway-stream"

// Limits of what a request may hold.
const (
	maxBody       = 64 << 10
	maxAnswer     = 16 << 20
	headerTime    = 10 * time.Second
	dialTime      = 20 * time.Second
	maxReportTime = time.Minute
	consoleRecall = 4 << 10 // bytes of the console's past that a new viewer sees
)

// problem is how an error travels: its class decides the exit status of the
// command that asked.
type problem struct {
	Class   string `json:"class"`
	Message string `json:"message"`
	Mend    string `json:"mend,omitempty"`
}

func problemOf(err error) problem {
	return problem{Class: fault.Of(err).String(), Message: err.Error(), Mend: fault.Mend(err)}
}

func (p problem) fault() error {
	class := fault.Internal
	for c := fault.Internal; c <= fault.Failed; c++ {
		if c.String() == p.Class {
			class = c
		}
	}
	e := fault.New(class, "%s", p.Message)
	e.Mend = p.Mend
	return e
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // whoever does not read the answer has no use for it
}

func refuse(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if c := fault.Of(err); c == fault.Usage || c == fault.Input {
		status = http.StatusBadRequest
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(problemOf(err))
}
