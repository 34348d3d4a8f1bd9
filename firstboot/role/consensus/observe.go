package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

type consensusMember = status.ConsensusMember

// observer keeps a client, with its connections, from one look to the next.
type observer struct {
	mu     sync.Mutex
	of     *member.Member
	client *Client
}

func (o *observer) dial(m *member.Member) (*Client, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.client != nil && o.of == m {
		return o.client, nil
	}
	client, err := Dial(m)
	if err != nil {
		return nil, err
	}
	if o.client != nil {
		o.client.Close()
	}
	o.of, o.client = m, client
	return client, nil
}

// Observe implements steps.Observer: it asks every member of the site.
func (s *Start) Observe(ctx context.Context, n *node.Node, c *status.Cluster) error {
	m := n.Member
	if !votes(m) {
		return dismissed(ctx, n, m)
	}
	client, err := s.observer.dial(m)
	if err != nil {
		return err
	}
	found := look(ctx, client, m)
	c.Consensus = &found
	var wrong []string
	for _, v := range found.Members {
		if !v.Healthy && !c.Excused(v.Node) {
			wrong = append(wrong, v.Node+": "+v.Problem)
		}
	}
	if !found.Quorum {
		return errors.New(missing(found))
	}
	if known, err := client.members(ctx, Endpoint(m.Self)); err == nil {
		if found.Strangers = strangers(m, known); len(found.Strangers) > 0 {
			wrong = append(wrong, "members that the plan gives no vote: "+strings.Join(found.Strangers, ", "))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("there is a quorum, and %s", strings.Join(wrong, "; "))
	}
	return nil
}

// look asks all members at once. A member is healthy if it answers and follows a
// leader; there is a quorum if more than half of them follow the same one.
func look(ctx context.Context, client *Client, m *member.Member) status.Consensus {
	nodes := m.Plan.ConsensusNodes(m.Site.Name)
	c := status.Consensus{Members: make([]consensusMember, len(nodes))}
	leaders := make([]string, len(nodes)) // whom those who vote follow
	var asked sync.WaitGroup
	for i, peer := range nodes {
		asked.Go(func() {
			s, err := client.status(ctx, Endpoint(peer))
			c.Members[i], leaders[i] = describe(peer.Name, s, err)
		})
	}
	asked.Wait()
	slices.Sort(leaders)
	for i := 0; i < len(leaders); {
		same := 1
		for i+same < len(leaders) && leaders[i+same] == leaders[i] {
			same++
		}
		c.Quorum = c.Quorum || leaders[i] != "" && same > len(nodes)/2
		i += same
	}
	return c
}

// learning is the problem of a member that has no vote yet.
const learning = "it learns what the others know, and has no vote yet"

// describe is what a member's answer comes to, and which leader it follows.
func describe(name string, s memberStatus, err error) (v consensusMember, leader string) {
	v.Node = name
	switch {
	case err != nil:
		v.Problem = noanswer.Words(err)
	case s.Leader == "" || s.Leader == "0":
		v.Problem = "it has no leader"
	case s.Learner:
		v.Problem = learning
	default:
		v.Healthy, v.Leader, leader = true, s.Leader == s.Header.MemberID, s.Leader
	}
	if len(s.Errors) > 0 {
		v.Healthy, v.Problem = false, strings.Join(s.Errors, ", ")
	}
	return v, leader
}

// missing says who of the members does not answer, and why.
func missing(c status.Consensus) string {
	healthy := 0
	var wrong []string
	for _, v := range c.Members {
		if v.Healthy {
			healthy++
		} else {
			wrong = append(wrong, v.Node+": "+v.Problem)
		}
	}
	return fmt.Sprintf("no quorum: %d of %d members of etcd are well: %s", healthy, len(c.Members), strings.Join(wrong, ", "))
}

// hexadecimal is a member's identity as etcdctl writes it.
func hexadecimal(decimal string) string {
	id, err := strconv.ParseUint(decimal, 10, 64)
	if err != nil {
		return decimal
	}
	return strconv.FormatUint(id, 16)
}
