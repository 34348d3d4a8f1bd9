package member

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Dir is where a node keeps who it is, through all versions of its image. To
// take it away is to make the node forget its cluster.
const Dir = "/var/lib/slipway/cluster"

// keptFormat is the version of Kept's layout.
const keptFormat = 1

// Kept is who a node is: what it was when its block was last found right.
type Kept struct {
	Format  int    `json:"format"`
	ID      string `json:"id"` // of the cluster
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	Machine string `json:"machine"` // /etc/machine-id
	// Block is the last block that was right.
	Block string `json:"block"`
	// Plan is the newest plan with this node that was ever heard of; newer, maybe,
	// than the block's.
	Plan *plan.Signed `json:"plan,omitempty"`
	// Without is a newer plan that has no such node any more.
	Without *plan.Signed `json:"without,omitempty"`
}

// Store keeps it in a file that root alone may read: it holds keys.
type Store struct {
	path string
	mu   sync.Mutex
}

// NewStore keeps in this directory.
func NewStore(dir string) *Store { return &Store{path: filepath.Join(dir, "member.json")} }

// Load returns what is kept; nil if nothing is. A file that is damaged is set
// aside, and told.
func (s *Store) Load() (*Kept, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.load()
}

func (s *Store) load() (*Kept, error) {
	data, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	k, err := parseKept(data)
	if err != nil {
		return nil, errors.Join(err, os.Rename(s.path, s.path+".damaged"))
	}
	return k, nil
}

func parseKept(data []byte) (*Kept, error) {
	var k Kept
	if err := json.Unmarshal(data, &k); err != nil || k.Format != keptFormat || k.ID == "" || k.Node == "" {
		return nil, fault.New(fault.Integrity, "what the node kept of its cluster is damaged, and set aside as member.json.damaged")
	}
	return &k, nil
}

// Save keeps k.
func (s *Store) Save(k Kept) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.save(k)
}

func (s *Store) save(k Kept) error {
	k.Format = keptFormat
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(s.path); err == nil && string(old) == string(data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteBytes(s.path, 0o600, data)
}

// SavePlan keeps a newer plan beside the block.
func (s *Store) SavePlan(p *plan.Plan, signed plan.Signed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.load()
	if err != nil {
		return err
	}
	if k == nil || k.ID != p.ID {
		return fault.New(fault.Internal, "a plan came for a cluster that the node does not belong to")
	}
	if _, err := p.Node(k.Node); err != nil {
		k.Without = &signed
	} else {
		k.Plan, k.Without = &signed, nil
	}
	return s.save(*k)
}

// Upgrade is the member with the kept plans, where they are newer than the
// block's and still this cluster's. One that has no such node any more is noted and not
// taken.
func (m *Member) Upgrade(k *Kept) (*Member, error) {
	m, err := m.upgrade(k.Plan)
	m, withoutErr := m.upgrade(k.Without)
	m.judge(m.Plan)
	return m, errors.Join(err, withoutErr)
}

func (m *Member) upgrade(signed *plan.Signed) (*Member, error) {
	if signed == nil {
		return m, nil
	}
	p, err := signed.Open(m.CA)
	if err != nil {
		return m, err
	}
	if p.ID != m.Plan.ID || p.Generation <= m.Plan.Generation {
		return m, nil
	}
	upgraded := *m
	if _, err := p.Node(m.Node); err != nil {
		upgraded.Newest, upgraded.Removed = *signed, p.Generation
		upgraded.judge(p)
		return &upgraded, nil
	}
	upgraded.Plan, upgraded.Block.Plan = p, *signed
	return &upgraded, upgraded.locate()
}
