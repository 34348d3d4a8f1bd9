package plan

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/internal/fault"
)

// context keeps a signature over a plan from being one over anything else.
const context = "slipway plan, format 1\n"

// Signed is a plan as it travels: its bytes, and the authority's signature over
// them (ECDSA over SHA-256, ASN.1 DER, as in RFC 3279, section 2.2.3).
type Signed struct {
	Plan      []byte `json:"plan" yaml:"plan"`           // JSON; base64 where it is text
	Signature []byte `json:"signature" yaml:"signature"` // base64 where it is text
}

func digest(plan []byte) []byte {
	h := sha256.Sum256(append([]byte(context), plan...))
	return h[:]
}

// Sign signs a plan with the key of the cluster's authority.
func Sign(p *Plan, key crypto.Signer) (Signed, error) {
	data, err := json.Marshal(p)
	if err != nil {
		return Signed{}, err
	}
	signature, err := key.Sign(rand.Reader, digest(data), crypto.SHA256)
	return Signed{Plan: data, Signature: signature}, err
}

// signedText is a signed plan as YAML has it.
type signedText struct {
	Plan      string `yaml:"plan"`
	Signature string `yaml:"signature"`
}

// MarshalYAML writes both parts in base64, as JSON does.
func (s Signed) MarshalYAML() (any, error) {
	return signedText{base64.StdEncoding.EncodeToString(s.Plan), base64.StdEncoding.EncodeToString(s.Signature)}, nil
}

// UnmarshalYAML reads what MarshalYAML writes.
func (s *Signed) UnmarshalYAML(n *yaml.Node) error {
	var text signedText
	if err := n.Decode(&text); err != nil {
		return err
	}
	var err error
	if s.Plan, err = base64.StdEncoding.DecodeString(text.Plan); err != nil {
		return fault.New(fault.Input, "line %d: plan is not base64: %w", n.Line, err)
	}
	if s.Signature, err = base64.StdEncoding.DecodeString(text.Signature); err != nil {
		return fault.New(fault.Input, "line %d: signature is not base64: %w", n.Line, err)
	}
	return nil
}

// MaxSize is the largest plan that is read. A cluster of a hundred nodes has one
// of 30 KB.
const MaxSize = 1 << 20

// Open checks a signature and returns the plan. Errors are of class Integrity
// if the authority did not sign it, else of class Input.
func (s Signed) Open(authority *x509.Certificate) (*Plan, error) {
	key, ok := authority.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fault.New(fault.Input, "the cluster's authority has a key of type %T; want ECDSA", authority.PublicKey)
	}
	if len(s.Plan) > MaxSize {
		return nil, fault.New(fault.Input, "the plan has %d bytes, more than the limit of %d", len(s.Plan), MaxSize)
	}
	if !ecdsa.VerifyASN1(key, digest(s.Plan), s.Signature) {
		return nil, fault.New(fault.Integrity, "the plan is not signed by this cluster's authority (%s)", authority.Subject.CommonName)
	}
	decoder := json.NewDecoder(bytes.NewReader(s.Plan))
	var p Plan
	if err := decoder.Decode(&p); err != nil {
		return nil, fault.New(fault.Input, "the plan cannot be read: %w", err)
	}
	if p.Format != Format {
		return nil, fault.New(fault.Input, "the plan has format %d, this version reads format %d", p.Format, Format).
			WithMend("write the seeds with the slipway that built the image, or build a newer image")
	}
	return &p, p.check()
}

// check makes sure that a plan names nothing that it has not, so that those who
// read it need not ask. It says nothing on whether the plan is a good one: the
// topology was checked for that.
func (p *Plan) check() error {
	names := map[string]bool{}
	for _, n := range p.Nodes {
		if n.Name == "" || names[n.Name] {
			return fault.New(fault.Input, "the plan names a node %q twice, or without a name", n.Name)
		}
		names[n.Name] = true
		if !n.Address.IsValid() {
			return fault.New(fault.Input, "the plan has no address for node %s", n.Name)
		}
		if _, err := p.Site(n.Site); err != nil {
			return err
		}
	}
	for _, s := range p.Sites {
		for _, name := range s.Consensus {
			if !names[name] {
				return fault.New(fault.Input, "the plan has an etcd member on %q at site %s, which is no node", name, s.Name)
			}
		}
	}
	if b := p.Backup; b != nil && (b.Repository == "") == (b.S3 == nil) || b != nil && b.Repository != "" && !names[b.Repository] {
		return fault.New(fault.Input, "the plan's backups are to be kept on %q, which is no node", b.Repository)
	}
	for _, v := range p.VIPs {
		if _, err := p.Site(v.Site); err != nil || !v.Address.IsValid() {
			return fault.New(fault.Input, "the plan's virtual address %s has no site or no address", v.Name)
		}
		for _, site := range v.Sites {
			if _, err := p.Site(site); err != nil {
				return err
			}
		}
	}
	return nil
}
