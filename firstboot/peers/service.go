package peers

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// alive is how long a machine counts as alive after it was heard of.
const alive = time.Minute

// Service is this node's agent among the others.
type Service struct {
	// Report is what the node says of itself.
	Report func() status.Report
	// Keep takes a plan that is newer than all that are known, after its
	// signature was checked.
	Keep func(p *plan.Plan, signed plan.Signed) error
	// Listen and Dial are net's, unless a test has its own.
	Listen func() (net.Listener, error)
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	Now    func() time.Time
	// Actions are what administrators can have this node do, and the audit log.
	Actions *actions.Server
	// Receive takes a blob that an administrator sends, from an offset on, and says how
	// much of it is there afterwards; nil takes none.
	Receive func(ctx context.Context, sha256 string, offset int64, body io.Reader) (have int64, err error)

	limit     time.Duration // for a whole question with its answer, other than an action
	mu        sync.Mutex
	self      *identity
	listening bool
	polling   bool
	offers    map[string]Offer     // by name
	peers     map[string]*peer     // by name
	seen      map[string]*sighting // by name: which machine has it
	taking    sync.Mutex           // a newer plan
	conflict  string               // why this node may not be who it says; "" if it may
}

// identity is who this node is at the moment.
type identity struct {
	node    node.Node // as it was when it became this member
	member  *member.Member
	cert    tls.Certificate
	machine string
	boot    string
	newest  plan.Signed
	latest  int64    // generation of newest
	revoked []string // serial numbers of certificates that count no more, as newest names them
}

// sighting is the machine that was last known to have a name.
type sighting struct {
	machine string
	at      time.Time
}

// peer is what is known of another node.
type peer struct {
	status.Peer
	asked  bool
	agreed bool // when last asked: it answers, and neither of the two plans was newer
	client *client
}

// New makes a service that listens and dials for real.
func New(report func() status.Report, keep func(*plan.Plan, plan.Signed) error, acts *actions.Server) *Service {
	return &Service{
		Report: report, Keep: keep,
		Listen:  func() (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf(":%d", plan.APIPort)) },
		Dial:    (&net.Dialer{Timeout: dialLimit}).DialContext,
		Now:     time.Now,
		Actions: acts, limit: answerLimit,
	}
}

// use makes the service speak for a member; nil has it fall silent. It begins to
// listen and to ask, until ctx ends, if it does not yet.
func (s *Service) use(n *node.Node) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.Member == nil {
		s.self, s.peers, s.conflict = nil, nil, ""
		return nil
	}
	m := n.Member
	cert, err := m.Certificates[member.AgentCert].TLS("certificates." + member.AgentCert)
	if err != nil {
		return err
	}
	id, err := n.Read("/etc/machine-id")
	if err != nil {
		return err
	}
	boot, err := n.Read("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	s.self = &identity{
		node: *n, member: m, cert: cert, machine: machineHash(m.Plan.ID, string(id)), boot: strings.TrimSpace(string(boot)),
		newest: m.Block.Plan, latest: m.Plan.Generation,
	}
	s.self.revoked = m.Plan.Revoked
	if m.Removed > m.Plan.Generation {
		s.self.newest, s.self.latest = m.Newest, m.Removed
		if p, err := m.Newest.Open(m.CA); err == nil {
			s.self.revoked = p.Revoked
		}
	}
	s.know()
	return nil
}

// machineHash tells machines apart without telling their ids.
func machineHash(cluster, id string) string {
	sum := sha256.Sum256([]byte("slipway machine\n" + cluster + "\n" + strings.TrimSpace(id)))
	return hex.EncodeToString(sum[:8])
}

// know brings the list of peers to the plan's; what is known of one stays.
func (s *Service) know() {
	before := s.peers
	s.peers = map[string]*peer{}
	if s.seen == nil {
		s.seen = map[string]*sighting{}
	}
	for _, n := range s.self.member.Plan.Peers(s.self.member.Self.Name) {
		p := &peer{Peer: status.Peer{Since: s.Now().UTC().Truncate(time.Second)}}
		if old := before[n.Name]; old != nil && old.Address == n.Address.String() {
			p.Peer, p.asked = old.Peer, old.asked
		}
		p.Name, p.Role, p.Site, p.Address = n.Name, n.Role, n.Site, n.Address.String()
		p.client = s.client(n)
		s.peers[n.Name] = p
	}
	for _, old := range before {
		old.client.close()
	}
}

// current is who this node is; nil if it is nobody.
func (s *Service) current() *identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.self
}

// counts reports whether a certificate is not one that a plan has revoked.
func (s *Service) counts(cert *x509.Certificate) bool {
	self := s.current()
	return self == nil || !slices.Contains(self.revoked, pki.Serial(cert))
}

// claim notes that a machine has the name of a node, or tells which other
// machine lives that has it.
func (s *Service) claim(name, machine string) (taken string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.Now()
	if s.self != nil && name == s.self.member.Self.Name && machine != s.self.machine {
		return s.self.machine
	}
	if was := s.seen[name]; was != nil && was.machine != machine && now.Sub(was.at) < alive {
		return was.machine
	}
	if s.seen == nil || len(s.seen) > 4096 {
		s.seen = map[string]*sighting{}
	}
	s.seen[name] = &sighting{machine, now}
	return ""
}

// offer takes a plan from somebody. It reports whether it is newer than what was
// known; then it stands in the audit log.
func (s *Service) offer(signed plan.Signed, by actions.Caller) (newer bool, err error) {
	self := s.current()
	if self == nil {
		return false, errNobody
	}
	p, err := signed.Open(self.member.CA)
	if err != nil {
		return false, err
	}
	if p.ID != self.member.Plan.ID {
		return false, errForeignPlan
	}
	s.taking.Lock() // two at once: the second one may be no newer any more
	defer s.taking.Unlock()
	if now := s.current(); now == nil || now.member != self.member || p.Generation <= now.latest {
		return false, nil
	}
	end, err := s.Actions.Log.Begin(actions.Entry{
		By: by.Name, Serial: by.Serial, From: by.From, Action: "plan", Args: json.RawMessage(fmt.Sprintf(`{"generation":%d}`, p.Generation)),
	})
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	if s.self != nil && s.self.member == self.member {
		next := *s.self
		next.newest, next.latest, next.revoked = signed, p.Generation, p.Revoked
		s.self = &next
	}
	s.mu.Unlock()
	err, outcome := s.Keep(p, signed), "done"
	if err != nil {
		outcome = err.Error()
		s.mu.Lock()
		if s.self != nil && s.self.latest == p.Generation {
			s.self = self // it was not kept, and is taken again when a peer next tells of it
		}
		s.mu.Unlock()
	}
	return true, errors.Join(err, end(outcome))
}
