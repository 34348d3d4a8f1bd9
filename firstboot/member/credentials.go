package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Credentials are a node's certificates and passwords as the administrator hands
// them to a node that runs. They count above those of a seed with a lower Issue.
type Credentials struct {
	Cluster       string            `json:"cluster"` // the plan's ID
	Node          string            `json:"node"`
	Issue         int64             `json:"issue"` // grows whenever anything in them changes
	EtcdAuthority string            `json:"etcd_authority,omitempty"`
	Certificates  map[string]Pair   `json:"certificates"`
	Secrets       map[string]string `json:"secrets,omitempty"`
}

// String keeps secrets out of whatever prints them.
func (c Credentials) String() string { return fmt.Sprintf("credentials %d of %s", c.Issue, c.Node) }

// GoString does the same for %#v.
func (c Credentials) GoString() string { return c.String() }

// With is the member with credentials, if they are its own and newer than those
// that it has; else the member itself. The error says why they cannot be used; those
// that the time alone keeps from being used make a member nevertheless (see Parse).
func (m *Member) With(c *Credentials, now time.Time) (*Member, error) {
	if c == nil || c.Cluster != m.Plan.ID || c.Node != m.Node || c.Issue <= m.Issue {
		return m, nil
	}
	next := *m
	next.Issue, next.EtcdAuthority, next.Certificates, next.Secrets, next.Expires = c.Issue, c.EtcdAuthority, c.Certificates, c.Secrets, time.Time{}
	err := next.certificates(now)
	if err != nil && !OfTime(err) {
		return m, err
	}
	return &next, err
}

// Serial is the serial number of the certificate that the node's agent shows.
func (m *Member) Serial() string {
	cert, err := pki.ParseCertificate("certificates."+AgentCert, m.Certificates[AgentCert].Certificate)
	if err != nil {
		return ""
	}
	return pki.Serial(cert)
}

// judge notes whether a plan says that this machine was replaced.
func (m *Member) judge(p *plan.Plan) {
	if p.Generation >= m.Plan.Generation && slices.Contains(p.Revoked, m.Serial()) {
		m.Retired = Superseded
	}
}

// Reasons why a node does nothing for its cluster any more.
const (
	Superseded = "this machine was replaced by another one, or taken out of the cluster: its certificate counts no more"
	TakenOut   = "this node was taken out of the cluster"
)

// Retirement is the record that a node was taken out of its cluster.
type Retirement struct {
	Cluster string `json:"cluster"` // the plan's ID
	Node    string `json:"node"`
	// Generation is that of the plan in which the node still was. A newer one that has
	// it takes it back in.
	Generation int64 `json:"generation"`
	// Votes keeps etcd running until the node's vote has been taken.
	Votes bool `json:"votes,omitempty"`
}

// Retire notes on a member that it was taken out, if it was.
func (m *Member) Retire(r *Retirement) {
	if r == nil || r.Cluster != m.Plan.ID || r.Node != m.Node || m.Plan.Generation > r.Generation || m.Retired != "" {
		return
	}
	m.Retired, m.KeepsVote = TakenOut, r.Votes
}

// Credentials returns those that were kept; nil if none were. A file that is
// damaged is set aside, and told.
func (s *Store) Credentials() (*Credentials, error) {
	var c Credentials
	found, err := s.read("credentials.json", &c)
	if !found {
		return nil, err
	}
	return &c, nil
}

// SaveCredentials keeps credentials above the seed's.
func (s *Store) SaveCredentials(c Credentials) error { return s.write("credentials.json", c) }

// Retirement returns the record that the node was taken out; nil if there is none.
func (s *Store) Retirement() (*Retirement, error) {
	var r Retirement
	found, err := s.read("retired.json", &r)
	if !found {
		return nil, err
	}
	return &r, nil
}

// SaveRetirement records that the node was taken out.
func (s *Store) SaveRetirement(r Retirement) error { return s.write("retired.json", r) }

// read reads one of the store's further files.
func (s *Store) read(name string, into any) (found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(filepath.Dir(s.path), name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if json.Unmarshal(data, into) != nil {
		err := fault.New(fault.Integrity, "what the node kept of its cluster is damaged, and set aside as %s.damaged", name)
		return false, errors.Join(err, os.Rename(path, path+".damaged"))
	}
	return true, nil
}

// write makes one of them, whole, for root alone.
func (s *Store) write(name string, v any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(filepath.Dir(s.path), name), 0o600, data)
}
