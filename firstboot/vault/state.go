package vault

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// format is the version of the store's layout.
const format = 1

// state is the store's file.
type state struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	// Recipients are the age keys that the file is encrypted for.
	Recipients    []string              `json:"age_recipients,omitempty"`
	Authority     pki.Pair              `json:"authority"`
	EtcdAuthority pki.Pair              `json:"etcd_authority"`
	Secrets       map[string]string     `json:"secrets"`
	Nodes         map[string]*nodeState `json:"nodes"`
	// Revoked are certificates of agents that count no more; every plan names them.
	Revoked []revoked `json:"revoked,omitempty"`
	// Rotating are the former values of passwords that are being exchanged.
	Rotating map[string]string `json:"rotating,omitempty"`
	// Renewing says that all nodes are being given new certificates.
	Renewing bool `json:"renewing,omitempty"`
	// Plans are those that seeds carry, the newest last.
	Plans []plan.Signed `json:"plans,omitempty"`
}

// nodeState is what the store knows of a node.
type nodeState struct {
	Certificates map[string]pki.Pair `json:"certificates"` // by purpose
	// Generation is that of the plan in the node's seed; 0 before the first.
	Generation int64 `json:"generation"`
	// Issue grows whenever a certificate or password changes that the node has.
	Issue int64 `json:"issue,omitempty"`
	// Holds names the certificates and passwords that are in its seed.
	Holds []string `json:"holds,omitempty"`
	// Former are earlier certificates of its agent: whoever has one passes for the
	// node as long as it is valid.
	Former []revoked `json:"former,omitempty"`
	// Replacing says that the node is being replaced by a fresh machine.
	Replacing bool `json:"replacing,omitempty"`
}

// revoked is a certificate, by its serial number, and when it ends by itself.
type revoked struct {
	Serial string    `json:"serial"`
	Until  time.Time `json:"until"`
}

// parse reads a store's JSON and checks that all of it holds together. A field
// that this version does not know is an error, since saving would lose it.
func parse(data []byte) (*state, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var s state
	if err := decoder.Decode(&s); err != nil {
		return nil, jsonError(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something stands behind the end")
	}
	if s.Format != format {
		return nil, fault.New(fault.Input, "it has format %d, this version reads format %d", s.Format, format).
			WithMend("use the slipway that wrote it, or a newer one")
	}
	if s.Cluster == "" {
		return nil, errors.New("it does not name its cluster")
	}
	cluster, _, err := s.authorities()
	if err != nil {
		return nil, err
	}
	for name, n := range s.Nodes {
		if n == nil {
			return nil, fmt.Errorf("node %s is empty", name)
		}
		if n.Certificates == nil {
			n.Certificates = map[string]pki.Pair{}
		}
		for purpose, p := range n.Certificates {
			if _, _, err := p.Parse(fmt.Sprintf("node %s, %s", name, purpose)); err != nil {
				return nil, err
			}
		}
	}
	for _, p := range s.Plans {
		if _, err := p.Open(cluster.Cert); err != nil {
			return nil, err
		}
	}
	if s.Secrets == nil {
		s.Secrets = map[string]string{}
	}
	if s.Nodes == nil {
		s.Nodes = map[string]*nodeState{}
	}
	return &s, nil
}

// jsonError says what is wrong with JSON without quoting from it: what
// encoding/json quotes may be part of a secret.
func jsonError(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it is cut off")
	case errors.As(err, &syntax):
		return fmt.Errorf("it is not valid JSON at byte %d", syntax.Offset)
	case errors.As(err, &kind):
		return fmt.Errorf("%s has the wrong type, at byte %d", kind.Field, kind.Offset)
	}
	return errors.New("it holds what this version of slipway does not know")
}

func (s *state) authorities() (cluster, etcd *pki.Authority, err error) {
	if cluster, err = pki.LoadAuthority("the cluster authority", s.Authority); err != nil {
		return nil, nil, err
	}
	etcd, err = pki.LoadAuthority("etcd's authority", s.EtcdAuthority)
	return cluster, etcd, err
}

// encode is the file's text. Plans that no seed carries any more are dropped.
func (s *state) encode(authority *pki.Authority) ([]byte, error) {
	carried := map[int64]bool{}
	for _, n := range s.Nodes {
		carried[n.Generation] = true
	}
	var keep []plan.Signed
	for i, signed := range s.Plans {
		p, err := signed.Open(authority.Cert)
		if err != nil {
			return nil, err
		}
		if carried[p.Generation] || i == len(s.Plans)-1 {
			keep = append(keep, signed)
		}
	}
	s.Plans = keep
	data, err := json.MarshalIndent(s, "", "  ")
	return append(data, '\n'), err
}
