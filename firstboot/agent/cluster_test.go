package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// insertBlock puts a CD into the drive whose meta-data hold a block.
func (m *machine) insertBlock(t *testing.T, block string) {
	t.Helper()
	m.insertBlockOf(t, "lb1", block)
}

func (m *machine) insertBlockOf(t *testing.T, hostname, block string) {
	t.Helper()
	meta := "instance-id: i\nlocal-hostname: " + hostname + "\nslipway:\n"
	for line := range strings.Lines(block) {
		meta += "  " + line
	}
	var iso bytes.Buffer
	if err := seed.NoCloudISO(&iso, seed.Files{MetaData: []byte(meta), UserData: []byte("#cloud-config\nssh_authorized_keys: ['" + key + "']\n")}); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cd = iso.Bytes()
}

// give hands a node the cluster's plan, as another node does.
func give(t *testing.T, c *membertest.Cluster, from, to string) {
	t.Helper()
	cert, err := c.Block(t, from).Certificates[member.AgentCert].TLS(from)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(c.Signed(t))
	if err != nil {
		t.Fatal(err)
	}
	there, err := c.Plan.Node(to)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, fmt.Sprintf("https://%s:%d/v1/plan", there.Address, plan.APIPort), bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: peers.TLS(cert, c.Authority.Pool(), c.Plan.ID, to, time.Now)}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		t.Fatalf("status %d", response.StatusCode)
	}
}

func step(r status.Report, name string) status.Step {
	if i := slices.IndexFunc(r.Steps, func(s status.Step) bool { return s.Name == name }); i >= 0 {
		return r.Steps[i]
	}
	return status.Step{}
}

func TestANodeThatCannotTellWhoItIsFailsUntilAnotherSeedSaysSo(t *testing.T) {
	m := start(t)
	m.Put(t, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	m.Output(t, "ip", "link", "set", "dev", "lo", "up")
	m.set("haproxy.service", "inactive")
	c := membertest.New(t)
	broken := c.Block(t, "a-lb1")
	delete(broken.Certificates, member.AgentCert)
	m.insertBlock(t, membertest.Text(t, broken))
	m.powerOn(t)
	r := m.until(t, "a failed node whose services are held back", func(r status.Report) bool {
		return r.State == status.Failed && strings.Contains(step(r, "role").WaitingFor, "haproxy.service is held back")
	})
	if s := step(r, "membership"); s.State != status.Broken || !strings.Contains(s.Error, "certificates.agent: it is missing") {
		t.Errorf("membership: %+v", s)
	}
	if !slices.Equal(r.Logins, []string{"slipway"}) {
		t.Errorf("logins: %q", r.Logins)
	}
	m.insertBlock(t, membertest.Text(t, c.Block(t, "a-lb1")))
	r = m.until(t, "a member whose peers are missed", func(r status.Report) bool {
		return r.Cluster != nil && step(r, "peers").State == status.Done && len(r.Cluster.Peers) == 2 &&
			strings.Contains(strings.Join(r.Cluster.Problems, "\n"), "peers: a-db1 (127.0.0.1): ")
	})
	if r.Cluster.Name != "shop" || r.Cluster.Node != "a-lb1" || r.Cluster.Generation != 1 || r.Cluster.Expires.IsZero() {
		t.Errorf("cluster: %+v", r.Cluster)
	}
	if s := step(r, "consensus"); !strings.Contains(s.WaitingFor, "0 of 3") && s.State != status.Broken {
		t.Errorf("consensus: %+v", s)
	}
}

func TestATruncatedSeedStartsNothingAndTheWholeOneIsTakenUp(t *testing.T) {
	m := start(t)
	m.Put(t, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	m.Output(t, "ip", "link", "set", "dev", "lo", "up")
	m.set("haproxy.service", "inactive")
	block := membertest.Text(t, membertest.New(t).Block(t, "a-lb1"))
	m.insertBlock(t, block)
	m.cd = m.cd[:(bytes.Index(m.cd, []byte("slipway:"))+len(block)/2)&^(2048-1)]
	m.powerOn(t)
	r := m.until(t, "a failed node whose services are held back", func(r status.Report) bool {
		return r.State == status.Failed && strings.Contains(step(r, "role").WaitingFor, "haproxy.service is held back until there is metadata")
	})
	if s := step(r, "datasource"); s.State != status.Broken || !strings.Contains(s.Error, "NoCloud (/dev/sr0)") || !strings.Contains(s.Error, "meta-data") {
		t.Errorf("datasource: %+v", s)
	}
	m.insertBlock(t, block)
	m.until(t, "a member", func(r status.Report) bool { return r.Cluster != nil && r.Cluster.Node == "a-lb1" })
}

func TestANodeWhoseCertificatesHaveExpiredFailsUntilItsSeedIsWrittenAnew(t *testing.T) {
	m := start(t)
	m.Put(t, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	m.Output(t, "ip", "link", "set", "dev", "lo", "up")
	m.set("haproxy.service", "inactive")
	c := membertest.Since(t, time.Now().AddDate(-5, 0, 0))
	m.insertBlock(t, membertest.Text(t, c.Block(t, "a-lb1")))
	m.powerOn(t)
	r := m.untilState(t, status.Failed)
	if s := step(r, "membership"); strings.Count(s.Error, "expired on") != 1 || !strings.Contains(s.Error, "write its seed anew") {
		t.Errorf("membership: %+v", s)
	}
	c.Begins = time.Now() // of new certificates
	m.insertBlock(t, membertest.Text(t, c.Block(t, "a-lb1")))
	m.until(t, "a member", func(r status.Report) bool { return r.Cluster != nil && r.Cluster.Node == "a-lb1" })
}

func TestASeedOfAnotherNodeChangesNothing(t *testing.T) {
	m := start(t)
	m.Put(t, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	m.Output(t, "ip", "link", "set", "dev", "lo", "up")
	c := membertest.New(t)
	own := membertest.Text(t, c.Block(t, "a-lb1"))
	m.insertBlock(t, own)
	off := m.powerOn(t)
	member := func(r status.Report) bool { return r.Cluster != nil && step(r, "peers").State == status.Done }
	m.until(t, "a member", member)
	off()
	m.insertBlockOf(t, "db1", membertest.Text(t, c.Block(t, "a-db1")))
	m.powerOn(t)
	r := m.until(t, "a member again", member)
	if r.Cluster.Node != "a-lb1" || m.File(t, "/etc/hostname") != "lb1\n" {
		t.Errorf("node %s, host name %q", r.Cluster.Node, m.File(t, "/etc/hostname"))
	}
	if !slices.ContainsFunc(r.Warnings, func(w node.Warning) bool {
		return w.Serious && strings.Contains(w.Message, "the seed is for node a-db1 of cluster shop, but this machine is node a-lb1 of cluster shop")
	}) {
		t.Errorf("warnings: %+v", r.Warnings)
	}
	// The one that the node goes by is back, and nothing is wrong any more.
	m.insertBlock(t, own)
	m.until(t, "without a warning", func(r status.Report) bool { return len(r.Warnings) == 0 && member(r) })
	if said := m.said("metadata has appeared"); said != 1 {
		t.Errorf("metadata appeared %d times", said)
	}
}

func TestAnotherSeedOfTheNodeIsTakenUpAfterOneThatWasRefused(t *testing.T) {
	m := start(t)
	m.Put(t, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	m.Output(t, "ip", "link", "set", "dev", "lo", "up")
	c := membertest.New(t)
	m.insertBlock(t, membertest.Text(t, c.Block(t, "a-lb1")))
	off := m.powerOn(t)
	member := func(r status.Report) bool { return r.Cluster != nil && step(r, "peers").State == status.Done }
	m.until(t, "a member", member)
	off()
	m.insertBlockOf(t, "db1", membertest.Text(t, c.Block(t, "a-db1")))
	m.powerOn(t)
	m.until(t, "a member again", member)
	// The right one is taken up at once, and its arrival is the only new round.
	m.insertBlockOf(t, "lb7", membertest.Text(t, c.Block(t, "a-lb1")))
	m.until(t, "named as the right seed says", func(status.Report) bool { return m.File(t, "/etc/hostname") == "lb7\n" })
	if said := m.said("metadata has appeared"); said != 1 {
		t.Errorf("metadata appeared %d times", said)
	}
}

func TestANewerPlanIsAppliedWithoutARestart(t *testing.T) {
	m := start(t)
	m.Put(t, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	m.Output(t, "ip", "link", "set", "dev", "lo", "up")
	c := membertest.New(t)
	m.insertBlock(t, membertest.Text(t, c.Block(t, "a-lb1")))
	m.powerOn(t)
	m.until(t, "a member", func(r status.Report) bool { return r.Cluster != nil && r.Cluster.Generation == 1 })
	if rules := m.File(t, "/etc/nftables.d/50-role.nft"); !strings.Contains(rules, "127.0.0.2/32") || strings.Contains(rules, "127.0.0.9/32") {
		t.Errorf("rules:\n%s", rules)
	}
	added := c.Plan.Nodes[1]
	added.Name, added.Addresses = "a-db3", nil
	for range 7 {
		added.Address = added.Address.Next()
	}
	c.Plan.Nodes, c.Plan.Generation = append(c.Plan.Nodes, added), 2
	give(t, c, "a-db1", "a-lb1")
	r := m.until(t, "of the second generation", func(r status.Report) bool { return r.Cluster != nil && r.Cluster.Generation == 2 })
	if len(r.Cluster.Peers) != 3 {
		m.until(t, "aware of its new peer", func(r status.Report) bool { return r.Cluster != nil && len(r.Cluster.Peers) == 3 })
	}
	if rules := m.File(t, "/etc/nftables.d/50-role.nft"); !strings.Contains(rules, "127.0.0.9/32") {
		t.Errorf("rules:\n%s", rules)
	}
}
