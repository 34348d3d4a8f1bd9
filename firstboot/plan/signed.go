package plan

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"

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

// Open checks a signature and returns the plan. Errors are of class Integrity
// if the authority did not sign it, else of class Input.
func (s Signed) Open(authority *x509.Certificate) (*Plan, error) {
	key, ok := authority.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fault.New(fault.Input, "the cluster's authority has a key of type %T; want ECDSA", authority.PublicKey)
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
	return &p, nil
}
