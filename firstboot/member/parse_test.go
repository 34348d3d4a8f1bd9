package member_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

func TestABlockMakesAMember(t *testing.T) {
	c := membertest.New(t)
	m := c.Member(t, "a-db2")
	if m.Self.Name != "a-db2" || m.Site.Scope != "shop-a" || m.Plan.Generation != 1 || m.Secrets[plan.SuperuserPassword] != "correct-horse" {
		t.Errorf("member: %+v", m)
	}
	if m.Expires.Before(c.Begins.Add(365 * 24 * time.Hour)) {
		t.Errorf("expires %s", m.Expires)
	}
}

func TestEveryMistakeInABlockIsNamedAndNoSecretIsTold(t *testing.T) {
	c, other := membertest.New(t), membertest.New(t)
	good, foreign, neighbour := c.Block(t, "a-db1"), other.Block(t, "a-db1"), c.Block(t, "a-db2")
	tampered := good.Plan
	tampered.Plan = []byte(strings.Replace(string(tampered.Plan), `"generation":1`, `"generation":9`, 1))
	for says, spoil := range map[string]func(b *member.Block){
		"format: it is 7":                       func(b *member.Block) { b.Format = 7 },
		"node: it is missing":                   func(b *member.Block) { b.Node = "" },
		`has no node "a-db9"`:                   func(b *member.Block) { b.Node = "a-db9" },
		"authority: the certificate is not PEM": func(b *member.Block) { b.Authority = "x" },
		"is not signed by this cluster":         func(b *member.Block) { b.Authority = foreign.Authority },
		"plan: the plan is not signed":          func(b *member.Block) { b.Plan = tampered },
		"certificates.agent: it is missing":     func(b *member.Block) { delete(b.Certificates, member.AgentCert) },
		"certificates.agent: it is not signed by the authority": func(b *member.Block) {
			b.Certificates[member.AgentCert] = foreign.Certificates[member.AgentCert]
		},
		`certificates.agent: it is for "a-db2"`: func(b *member.Block) {
			b.Certificates[member.AgentCert] = neighbour.Certificates[member.AgentCert]
		},
		"certificates.agent: it does not carry the name": func(b *member.Block) {
			b.Certificates[member.AgentCert] = b.Certificates[member.ServiceCert]
		},
		"certificates.etcd: it is not signed by the authority": func(b *member.Block) {
			b.Certificates[member.EtcdCert] = b.Certificates[member.ServiceCert]
		},
		"certificates.service: the private key is not that of the certificate": func(b *member.Block) {
			b.Certificates[member.ServiceCert] = member.Pair{Certificate: b.Certificates[member.ServiceCert].Certificate, Key: b.Certificates[member.AgentCert].Key}
		},
		"certificates.vpn: no such purpose": func(b *member.Block) { b.Certificates["vpn"] = b.Certificates[member.AgentCert] },
	} {
		b := c.Block(t, "a-db1")
		spoil(&b)
		m, err := member.Parse(membertest.Text(t, b), c.Begins)
		if err == nil || m != nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want %q, got: %v", says, err)
			continue
		}
		if strings.Contains(err.Error(), "correct-horse") || strings.Contains(err.Error(), "PRIVATE KEY-----\n") {
			t.Errorf("the error tells a secret: %v", err)
		}
	}
	for text, says := range map[string]string{
		"format: 1\nnode: x\nsecret: correct-horse\n":          "line 3: field secret not found",
		"format: 1\nsecrets: correct-horse\n":                  "line 2: cannot unmarshal",
		"format: 1\nsecrets: {a: correct-horse\n":              "cannot be read as YAML",
		"format: 1\nplan: {plan: correct-horse, signature: x}": "not base64",
	} {
		_, err := member.Parse(text, c.Begins)
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "correct-horse") {
			t.Errorf("want %q, got: %v", says, err)
		}
	}
}

func TestAWrongClockIsToldFromAnExpiredCertificate(t *testing.T) {
	c := membertest.New(t)
	text := membertest.Text(t, c.Block(t, "a-db1"))
	var early *member.EarlyError
	m, err := member.Parse(text, time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC))
	if !errors.As(err, &early) || m == nil || !strings.Contains(err.Error(), "2001-01-01") {
		t.Errorf("in 2001: %v", err)
	}
	var expired *member.ExpiredError
	if m, err = member.Parse(text, c.Begins.AddDate(5, 0, 0)); !errors.As(err, &expired) || m == nil || !member.OfTime(err) {
		t.Errorf("five years later: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	c := membertest.New(f)
	f.Add(membertest.Text(f, c.Block(f, "a-db1")))
	f.Add("format: 1\nnode: a\ncluster: b\nplan: {plan: e30=, signature: e30=}\n")
	f.Fuzz(func(t *testing.T, text string) {
		if m, err := member.Parse(text, c.Begins); (m == nil) == (err == nil) && !member.OfTime(err) {
			t.Errorf("member %v, error %v", m, err)
		}
	})
}
