package member

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/internal/fault"
)

// MaxSize is the largest block that is read. A node's takes 20 KB.
const MaxSize = 4 << 20

// EarlyError says that a certificate is not valid yet by this machine's clock,
// which most likely is wrong.
type EarlyError struct {
	Now, Begins time.Time
	What        string // whose certificate
}

func (e *EarlyError) Error() string {
	return fmt.Sprintf("the clock says %s, which is before %s: %s is not valid yet", day(e.Now), day(e.Begins), e.What)
}

// ExpiredError says that a certificate is not valid any more by this machine's
// clock.
type ExpiredError struct {
	Now, Ended time.Time
	What       string
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("%s expired on %s, and the clock says %s", e.What, day(e.Ended), day(e.Now))
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") + " UTC" }

// OfTime reports whether an error may end by itself when the clock is set.
func OfTime(err error) bool {
	var early *EarlyError
	var expired *ExpiredError
	return errors.As(err, &early) || errors.As(err, &expired)
}

// Parse reads a block and checks all of it: that certificates, keys and plan
// belong to each other, and that they are valid now. Errors name the field, and
// hold nothing of what is secret in it; EarlyError and ExpiredError come only of
// a block that is right otherwise, together with the member that it makes.
func Parse(text string, now time.Time) (*Member, error) {
	b, err := read(text)
	if err != nil {
		return nil, err
	}
	m := &Member{Block: *b}
	if m.CA, err = authority("authority", b.Authority); err != nil {
		return nil, err
	}
	if m.Plan, err = b.Plan.Open(m.CA); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	if id := pki.ID(m.CA); m.Plan.ID != id {
		return nil, fault.New(fault.Integrity, "plan: it is for the cluster with the id %s; the authority is that of %s", short(m.Plan.ID), short(id))
	}
	if err := m.locate(); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	if err := m.certificates(now); err != nil {
		if OfTime(err) {
			return m, err
		}
		return nil, err
	}
	return m, nil
}

// locate finds the node and its site in the plan.
func (m *Member) locate() (err error) {
	if m.Self, err = m.Plan.Node(m.Node); err != nil {
		return err
	}
	m.Site, err = m.Plan.Site(m.Self.Site)
	return err
}

// read decodes the block strictly: what stands in it and is not known would be
// something that the node does not do.
func read(text string) (*Block, error) {
	if len(text) > MaxSize {
		return nil, fault.New(fault.Input, "it has %d bytes, more than the limit of %d", len(text), MaxSize)
	}
	var begin struct {
		Format int `yaml:"format"`
	}
	if err := yaml.Unmarshal([]byte(text), &begin); err != nil {
		return nil, unreadable(err)
	}
	if begin.Format != Format {
		return nil, fault.New(fault.Input, "format: it is %d; this version reads format %d", begin.Format, Format).
			WithMend("write the seeds with the slipway that built the image, or build a newer image")
	}
	decoder := yaml.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.KnownFields(true)
	var b Block
	if err := decoder.Decode(&b); err != nil && !errors.Is(err, io.EOF) {
		return nil, unreadable(err)
	}
	for name, value := range map[string]string{"cluster": b.Cluster, "node": b.Node} {
		if value == "" {
			return nil, fault.New(fault.Input, "%s: it is missing", name)
		}
	}
	return &b, nil
}

// unreadable is what a decoder complains of, without the values that it quotes:
// one may be a secret.
func unreadable(err error) error {
	var wrong *yaml.TypeError
	if !errors.As(err, &wrong) {
		var classed *fault.Error
		if errors.As(err, &classed) {
			return classed
		}
		text, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "yaml: "), "`")
		return fault.New(fault.Input, "it cannot be read as YAML: %s", strings.TrimSpace(text))
	}
	var lines []string
	for _, text := range wrong.Errors {
		if i := strings.Index(text, "`"); i >= 0 {
			if j := strings.LastIndex(text, "`"); j > i {
				text = text[:i] + "…" + text[j+1:]
			}
		}
		lines = append(lines, strings.ReplaceAll(text, " in type member.Block", ""))
	}
	return fault.New(fault.Input, "%s", strings.Join(lines, "; "))
}

// certificates checks every certificate of the block.
func (m *Member) certificates(now time.Time) error {
	etcd := m.CA
	var err error
	if m.EtcdAuthority != "" {
		if etcd, err = authority("etcd_authority", m.EtcdAuthority); err != nil {
			return err
		}
	}
	if _, ok := m.Certificates[AgentCert]; !ok {
		return fault.New(fault.Input, "certificates.%s: it is missing", AgentCert)
	}
	var untimely error // the first says enough: they are all made at the same time
	for _, purpose := range slices.Sorted(maps.Keys(m.Certificates)) {
		field := "certificates." + purpose
		issuer := m.CA
		switch purpose {
		case AgentCert, ServiceCert, BackupCert:
		case EtcdCert, EtcdClient:
			if issuer = etcd; m.EtcdAuthority == "" {
				return fault.New(fault.Input, "%s: there is no etcd_authority for it", field)
			}
		default:
			return fault.New(fault.Input, "%s: no such purpose; there are %s, %s, %s, %s and %s", field, AgentCert, ServiceCert, EtcdCert, EtcdClient, BackupCert)
		}
		certificate, _, err := m.Certificates[purpose].Parse(field)
		if err != nil {
			return err
		}
		if err := m.fits(field, purpose, certificate, issuer); err != nil {
			return err
		}
		if m.Expires.IsZero() || certificate.NotAfter.Before(m.Expires) {
			m.Expires = certificate.NotAfter
		}
		for _, c := range []*x509.Certificate{certificate, issuer} {
			if err := validNow(field, c, now); err != nil && untimely == nil {
				untimely = err
			}
		}
	}
	return untimely
}

// fits checks that a certificate is this node's, and its authority's.
func (m *Member) fits(field, purpose string, c, issuer *x509.Certificate) error {
	// Whether it is valid now comes last, and the usage depends on the purpose.
	if _, err := c.Verify(x509.VerifyOptions{Roots: pki.Pool(issuer), CurrentTime: c.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fault.New(fault.Integrity, "%s: it is not signed by the authority %q: %w", field, issuer.Subject.CommonName, err)
	}
	if c.Subject.CommonName != m.Node {
		return fault.New(fault.Integrity, "%s: it is for %q; the block is for node %q", field, c.Subject.CommonName, m.Node)
	}
	if purpose != AgentCert {
		return nil
	}
	want := "slipway://" + m.Plan.ID + "/node/" + m.Node
	for _, u := range c.URIs {
		if u.String() == want {
			return nil
		}
	}
	return fault.New(fault.Integrity, "%s: it does not carry the name %s", field, want)
}

func validNow(field string, c *x509.Certificate, now time.Time) error {
	what := "the certificate of " + c.Subject.CommonName + " (" + field + ")"
	switch {
	case now.Before(c.NotBefore):
		return &EarlyError{Now: now, Begins: c.NotBefore, What: what}
	case now.After(c.NotAfter):
		return &ExpiredError{Now: now, Ended: c.NotAfter, What: what}
	}
	return nil
}

// authority reads the certificate of an authority.
func authority(field, text string) (*x509.Certificate, error) {
	c, err := pki.ParseCertificate(field, text)
	if err != nil {
		return nil, err
	}
	if !c.IsCA || !c.BasicConstraintsValid {
		return nil, fault.New(fault.Input, "%s: the certificate is not that of an authority", field)
	}
	if _, ok := c.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, fault.New(fault.Input, "%s: the key is of type %T; want ECDSA", field, c.PublicKey)
	}
	return c, nil
}

// short is enough of an id for people to compare.
func short(id string) string { return id[:min(len(id), 12)] }
