// Package overview asks all agents of a cluster how they are and puts their
// answers together: what each node says of itself, and what of it cannot be
// true at once.
//
// In goes a plan and an administrator's certificate, out comes an Overview, as a
// table or as JSON. It looks on from outside: no answer is believed beyond what
// the answering node's certificate says that it is, and each has limits in size
// and time (package peers).
package overview

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// Format is the version of the overview's layout; fields are only ever added.
const Format = 1

// atOnce is how many nodes are asked at the same time.
const atOnce = 16

// Overview is a cluster as its nodes tell it.
type Overview struct {
	Format     int       `json:"format"`
	Cluster    string    `json:"cluster"`
	Generation int64     `json:"generation"` // of the plan that the nodes were asked by
	At         time.Time `json:"at"`
	Nodes      []Node    `json:"nodes"` // in the plan's order
	// Writable are the sites that take writes, where more than one has a database.
	Writable []string `json:"writable,omitempty"`
	// Contradictions are what cannot be true at once, or must not be, in words.
	Contradictions []string `json:"contradictions"`

	plan *plan.Plan
}

// Node is a node and its answer.
type Node struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	Site    string `json:"site"`
	Address string `json:"address"`
	// Problem is why there is no answer that can be used; "" if there is one.
	Problem string         `json:"problem,omitempty"`
	Report  *status.Report `json:"report,omitempty"`
}

// Gather asks every node of a plan. The configuration holds the certificate to
// show, and the cluster's authority in RootCAs; each node must show the
// certificate of that node.
func Gather(ctx context.Context, p *plan.Plan, config *tls.Config, dial func(ctx context.Context, network, address string) (net.Conn, error)) Overview {
	o := Overview{Format: Format, Cluster: p.Cluster, Generation: p.Generation, At: time.Now().UTC(), Nodes: make([]Node, len(p.Nodes)), Contradictions: []string{}, plan: p}
	var cert tls.Certificate
	if len(config.Certificates) > 0 {
		cert = config.Certificates[0]
	}
	places := make(chan struct{}, atOnce)
	var group sync.WaitGroup
	for i, n := range p.Nodes {
		o.Nodes[i] = Node{Name: n.Name, Role: n.Role, Site: n.Site, Address: n.Address.String()}
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			data, err := peers.Fetch(ctx, n, peers.Refusing(peers.TLS(cert, config.RootCAs, p.ID, n.Name, time.Now), p), dial)
			if err != nil {
				o.Nodes[i].Problem = err.Error()
				return
			}
			o.Nodes[i].Report, o.Nodes[i].Problem = parseReport(data, p.ID)
		})
	}
	group.Wait()
	o.contradict()
	return o
}

// parseReport reads a node's answer; the problem says why it cannot be used.
func parseReport(data []byte, id string) (report *status.Report, problem string) {
	var r status.Report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, "answered something that is no report"
	}
	switch {
	case r.Format != status.Format:
		return nil, "answered in a format that this version does not read"
	case r.Cluster != nil && r.Cluster.ID != id:
		return nil, "answered for another cluster"
	}
	return &r, ""
}

// ExitCode is an exit status as `firstboot status` has it, for the worst of the
// nodes: 6 if one failed, does not answer or knows of no cluster, then 4 if one is
// under way, then 3 if something is not as it should be, else 0.
func (o Overview) ExitCode() int {
	worst := 0
	if len(o.Contradictions) > 0 {
		worst = 3
	}
	rank := map[int]int{0: 0, 3: 1, 4: 2, 6: 3}
	for _, n := range o.Nodes {
		code := 6
		if n.Report != nil && n.Report.State != status.Unconfigured && n.Report.State != status.Removed {
			code = n.Report.State.ExitCode()
		}
		if rank[code] > rank[worst] {
			worst = code
		}
	}
	return worst
}

// cluster is what a node says of the cluster; nil if it says nothing.
func (n Node) cluster() *status.Cluster {
	if n.Report == nil {
		return nil
	}
	return n.Report.Cluster
}

// Node finds a node by its name.
func (o Overview) Node(name string) (Node, bool) {
	for _, n := range o.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// Word is what a node says of its cluster; nil if it does not answer, or knows of
// none.
func (o Overview) Word(node string) *status.Cluster {
	n, _ := o.Node(node)
	return n.cluster()
}
