// Package peers is how the agents of a cluster talk to each other.
//
// Each agent answers at port 7420 over TLS 1.3 (RFC 8446) to those alone that
// show a certificate of the cluster's authority: nodes, and administrators. It
// asks all others the same way. What goes in is a member with its plan, what
// comes out is who answers, since when, why not, and newer plans. Nothing that
// another agent sends is trusted further than its certificate goes: every
// answer has limits in size and time, and a plan counts by its signature.
//
//	GET  /v1/hello         who the node is and how it is, briefly
//	GET  /v1/status        status.Report, as `firstboot status --json` prints it
//	GET  /v1/plan          the newest plan it knows, signed
//	PUT  /v1/plan          takes a newer plan
//	GET  /v1/offers/NAME   something that the node has for others, to nodes alone (Offer)
//	POST /v1/actions/NAME  has the node do something (package actions)
//	POST /v1/looks/NAME    has it look at something that takes a while, and changes nothing
//	GET  /v1/audit         what it was made to do, and by whom
//	PUT  /v1/blobs/SHA256  takes a part of an image from ?offset=N on, if an action
//	                       has announced it (package versions)
//
// Nodes may do the first five. Administrators may look with the right pki.AdminRead;
// what changes something (actions, blobs, PUT /v1/plan) takes pki.AdminWrite, and stands in
// the audit log. Neither right is part of the other.
//
// Every node says in its requests which machine it is. An agent that hears of
// two machines with the name of one node refuses the newcomer (409) as long as
// the other one lives.
package peers

import (
	"encoding/json"
	"time"

	"github.com/slipwayhq/slipway/firstboot/status"
)

// Headers of requests between nodes.
const (
	machineHeader = "Slipway-Machine"
	bootHeader    = "Slipway-Boot"
)

// Limits of what is read from others.
const (
	maxHeader = 16 << 10
	maxAnswer = 1 << 20
	maxPlan   = 3 << 20 // a plan of plan.MaxSize in base64, and its signature
)

// Hello is the short answer.
type Hello struct {
	Format     int          `json:"format"`
	Node       string       `json:"node"`
	Machine    string       `json:"machine"` // a hash of the machine's id
	Boot       string       `json:"boot"`    // differs from start to start of the machine
	Generation int64        `json:"generation"`
	State      status.State `json:"state"`
	Expires    time.Time    `json:"certificate_expires"`
}

// helloFormat is the version of Hello.
const helloFormat = 1

// refusal is the body of an answer that is an error, as package actions has it too.
type refusal struct {
	Error   string `json:"error"`
	Mend    string `json:"mend,omitempty"`
	Class   string `json:"class,omitempty"`
	Machine string `json:"machine,omitempty"` // the one that has the caller's name
}

// parseHello reads another agent's word.
func parseHello(data []byte) (Hello, error) {
	var h Hello
	if err := json.Unmarshal(data, &h); err != nil {
		return h, errNotJSON
	}
	if h.Format != helloFormat || len(h.Node) > 255 || len(h.Machine) > 64 || len(h.Boot) > 64 || len(h.State) > 32 {
		return h, errStrange
	}
	return h, nil
}
