package seeding

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

// shop is a cluster with everything that seeds depend on: two sites, a witness,
// several cards, a VLAN, addresses on both kinds of holder.
const shop = `slipway: 1
name: shop
domain: example.internal
networks:
  lan: {subnet: 192.0.2.0/24, gateway: 192.0.2.1, mtu: 1400}
  storage: {subnet: 198.51.100.0/24, vlan: 77}
  far: {subnet: 203.0.113.0/24, gateway: 203.0.113.1}
sites:
  a: {}
  b: {standby_of: a}
dns: {servers: [192.0.2.53], search: [example.internal]}
ntp: [192.0.2.123]
users:
  - {name: ops, sudo: true, keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED ops@example.org]}
clients: [192.0.2.0/24]
vips:
  - {name: database, site: a, address: 192.0.2.10, on: balancers, router_id: 51, names: [db.example.internal]}
databases:
  - {name: app, owner: app}
nodes:
  - {name: a-db1, role: db-master, site: a, nics: [{network: lan, address: 192.0.2.11, mac: "52:54:00:00:00:11"}, {network: storage, address: 198.51.100.11, mac: "52:54:00:00:01:11"}]}
  - {name: a-db2, role: db-replica, site: a, nics: [{network: lan, address: 192.0.2.12}]}
  - {name: a-lb1, role: balancer, site: a, nics: [{network: lan, address: 192.0.2.21}]}
  - {name: a-lb2, role: balancer, site: a, nics: [{network: lan, address: 192.0.2.22}]}
  - {name: b-db1, role: db-master, site: b, nics: [{network: far, address: 203.0.113.11}]}
`

const another = "  - {name: a-lb3, role: balancer, site: a, nics: [{network: lan, address: 192.0.2.23}]}\n"

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// bench is where a test works: a store and a directory of seeds.
type bench struct {
	t        *testing.T
	dir, out string
	now      time.Time
}

func newBench(t *testing.T) *bench {
	dir := t.TempDir()
	return &bench{t: t, dir: dir, out: filepath.Join(dir, "seeds"), now: now}
}

func (b *bench) topology(text string) *topology.Topology {
	b.t.Helper()
	top, mistakes := topology.Parse("cluster.yaml", []byte(text))
	if err := mistakes.Err(); err != nil {
		b.t.Fatal(err)
	}
	return top
}

func (b *bench) open() *vault.Vault {
	b.t.Helper()
	v, err := vault.Open(filepath.Join(b.dir, "cluster.store"), vault.Options{Cluster: "shop", Create: true, Now: b.now})
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

func (b *bench) tryWrite(ctx context.Context, text string, o Options) (*Result, error) {
	b.t.Helper()
	v := b.open()
	defer v.Close()
	return Write(ctx, b.topology(text), v, b.out, o)
}

func (b *bench) write(text string, o Options) *Result {
	b.t.Helper()
	r, err := b.tryWrite(context.Background(), text, o)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// snapshot is the content of every file, and makes all of them old.
func (b *bench) snapshot() map[string]string {
	b.t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(b.out)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(b.out, e.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			b.t.Fatal(err)
		}
		out[e.Name()] = string(data)
		os.Chtimes(path, old, old)
	}
	return out
}

var old = time.Unix(1e9, 0)

// touched names the files that were written since the snapshot.
func (b *bench) touched() []string {
	b.t.Helper()
	var out []string
	entries, _ := os.ReadDir(b.out)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && !info.ModTime().Equal(old) {
			out = append(out, e.Name())
		}
	}
	return out
}

func filesOf(nodes ...string) []string {
	var out []string
	for _, n := range nodes {
		out = append(out, n+".configdrive.iso", n+".nocloud.iso", n+".ovf.iso", n+".ovf.json")
	}
	slices.Sort(out)
	return out
}

func states(r *Result) map[string]State {
	out := map[string]State{}
	for _, n := range r.Nodes {
		out[n.Node] = n.State
	}
	return out
}

func reasons(r *Result, node string) string {
	for _, n := range r.Nodes {
		if n.Node == node {
			return strings.Join(n.Reasons, "; ")
		}
	}
	return "no such node"
}

var everybody = []string{"a-db1", "a-db2", "a-lb1", "a-lb2", "b-db1"}

func TestEveryNodeGetsEveryMediumAndNobodyElseMayReadIt(t *testing.T) {
	b := newBench(t)
	r := b.write(shop, Options{})
	if r.Count(Written) != 5 || r.Generation != 1 || !r.NewStore {
		t.Errorf("result %+v", r)
	}
	var names []string
	for name := range b.snapshot() {
		names = append(names, name)
		if st, _ := os.Stat(filepath.Join(b.out, name)); st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, st.Mode().Perm())
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, filesOf(everybody...)) {
		t.Errorf("files %v", names)
	}
	if st, _ := os.Stat(b.out); st.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %o", st.Mode().Perm())
	}
}

func TestSeedingAgainTouchesNothing(t *testing.T) {
	b := newBench(t)
	first := b.write(shop, Options{})
	before := b.snapshot()
	store, _ := os.ReadFile(filepath.Join(b.dir, "cluster.store/store.json"))
	again := b.write(shop, Options{})
	if again.Count(Unchanged) != 5 || again.ID != first.ID || again.Generation != 1 || again.NewStore || len(again.Learn) > 0 {
		t.Errorf("result %+v", again)
	}
	if touched := b.touched(); touched != nil {
		t.Errorf("written: %v", touched)
	}
	if after, _ := os.ReadFile(filepath.Join(b.dir, "cluster.store/store.json")); !bytes.Equal(store, after) {
		t.Error("the store was changed")
	}
	// Written anew, they are the same bytes.
	if r := b.write(shop, Options{All: true}); r.Count(Written) != 5 {
		t.Errorf("result %+v", r)
	}
	for name, data := range b.snapshot() {
		if data != before[name] {
			t.Errorf("%s differs", name)
		}
	}
}

func TestAddingANodeTouchesNoOther(t *testing.T) {
	b := newBench(t)
	b.write(shop, Options{})
	b.snapshot()
	r := b.write(shop+another, Options{})
	if touched := b.touched(); !slices.Equal(touched, filesOf("a-lb3")) {
		t.Errorf("written: %v", touched)
	}
	if r.Generation != 2 || !slices.Equal(r.Learn, everybody) || reasons(r, "a-lb3") != "the node is new" {
		t.Errorf("result %+v", r)
	}
	b.snapshot()
	if r := b.write(shop+another, Options{}); r.Count(Unchanged) != 6 || len(b.touched()) > 0 || r.Generation != 2 {
		t.Errorf("the run after it: %+v", r)
	}
	// A seed that is written for another reason carries what is known by then.
	for node, want := range map[string]int64{"a-db1": 1, "a-lb3": 2} {
		if got := b.member(node).Plan.Generation; got != want {
			t.Errorf("%s carries generation %d, want %d", node, got, want)
		}
	}
	os.Remove(filepath.Join(b.out, "a-db1.ovf.iso"))
	if r := b.write(shop+another, Options{}); r.Count(Written) != 1 || reasons(r, "a-db1") != "files were missing" {
		t.Errorf("a missing file: %+v", r)
	}
	if got := b.member("a-db1").Plan.Generation; got != 2 {
		t.Errorf("a-db1 carries generation %d now", got)
	}
}

func TestAnotherChangeOfThePlanWritesAllSeeds(t *testing.T) {
	b := newBench(t)
	b.write(shop, Options{})
	b.snapshot()
	moved := strings.Replace(shop, "address: 192.0.2.10,", "address: 192.0.2.9,", 1)
	r := b.write(moved, Options{Nodes: []string{"a-lb1"}})
	if touched := b.touched(); !slices.Equal(touched, filesOf("a-lb1")) {
		t.Errorf("written: %v", touched)
	}
	if r.Count(Outdated) != 4 || r.Count(Written) != 1 || !strings.Contains(reasons(r, "a-lb1"), "it has new certificates") {
		t.Errorf("result %+v", r)
	}
	if r := b.write(moved, Options{}); r.Count(Written) != 4 || r.Generation != 2 || len(r.Learn) > 0 {
		t.Errorf("result %+v", r)
	}
	if r := b.write(moved, Options{}); r.Count(Unchanged) != 5 {
		t.Errorf("result %+v", r)
	}
}

func TestThatASitesEtcdHasFormedIsKeptAndTakenBackOnDemand(t *testing.T) {
	b := newBench(t)
	formed := func(site string) bool {
		t.Helper()
		v := b.open()
		defer v.Close()
		p, err := v.Plan()
		if err != nil {
			t.Fatal(err)
		}
		s, err := p.Site(site)
		if err != nil {
			t.Fatal(err)
		}
		if !Same(p, b.topology(shop).Plan()) {
			t.Error("the topology's plan counts as another one")
		}
		return s.Formed
	}
	b.write(shop, Options{})
	if formed("a") {
		t.Error("nobody has seen it")
	}
	if r := b.write(shop, Options{Formed: []string{"a"}}); r.Generation != 2 || r.Count(Unchanged) != 5 || len(r.Learn) != 5 || !formed("a") || formed("b") {
		t.Errorf("%+v", r)
	}
	if r := b.write(shop, Options{}); r.Generation != 2 || !formed("a") {
		t.Errorf("seeding again: %+v", r)
	}
	if r := b.write(shop, Options{Anew: []string{"a"}}); r.Generation != 3 || r.Count(Written) != 5 || formed("a") {
		t.Errorf("anew: %+v", r)
	}
	if _, err := b.tryWrite(t.Context(), shop, Options{Anew: []string{"c"}}); fault.Of(err) != fault.Usage {
		t.Errorf("a site that is not there: %v", err)
	}
}

func TestWhatIsNotInThePlanWritesThoseWhomItConcerns(t *testing.T) {
	b := newBench(t)
	b.write(shop, Options{})
	b.snapshot()
	r := b.write(strings.Replace(shop, `mac: "52:54:00:00:01:11"`, `mac: "52:54:00:00:01:12"`, 1), Options{})
	if touched := b.touched(); !slices.Equal(touched, filesOf("a-db1")) || r.Generation != 1 || reasons(r, "a-db1") != "what is in it has changed" {
		t.Errorf("written: %v; %+v", touched, r)
	}
}

func TestANodeThatIsGoneIsNamedAndPrunedOnlyWhenAskedFor(t *testing.T) {
	b := newBench(t)
	b.write(shop+another, Options{})
	r := b.write(shop, Options{})
	if states(r)["a-lb3"] != Leftover || len(r.Nodes[5].Files) != 4 {
		t.Errorf("result %+v", r)
	}
	foreign := filepath.Join(b.out, "other.nocloud.iso")
	os.WriteFile(foreign, nil, 0o600)
	if r := b.write(shop, Options{Prune: true, DryRun: true}); states(r)["a-lb3"] != Removed || !slices.Contains(filesIn(b.out), "a-lb3.nocloud.iso") {
		t.Errorf("the dry run: %+v", r)
	}
	if r := b.write(shop, Options{Prune: true}); states(r)["a-lb3"] != Removed {
		t.Errorf("result %+v", r)
	}
	left := filesIn(b.out)
	if slices.ContainsFunc(left, func(name string) bool { return strings.HasPrefix(name, "a-lb3") }) || !slices.Contains(left, "other.nocloud.iso") {
		t.Errorf("files %v", left)
	}
	v := b.open()
	defer v.Close()
	if slices.Contains(v.Nodes(), "a-lb3") {
		t.Error("the store still has its keys")
	}
}

func filesIn(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestADryRunWritesNothing(t *testing.T) {
	b := newBench(t)
	v, err := vault.Open(filepath.Join(b.dir, "cluster.store"), vault.Options{Cluster: "shop", Create: true, ReadOnly: true, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Write(context.Background(), b.topology(shop), v, b.out, Options{DryRun: true})
	if err != nil || r.Count(Written) != 5 {
		t.Errorf("%+v, %v", r, err)
	}
	if left := filesIn(b.dir); left != nil {
		t.Errorf("written: %v", left)
	}
}

func TestCertificatesAreRenewedNearTheirEndAndOnDemand(t *testing.T) {
	b := newBench(t)
	b.write(shop, Options{})
	b.snapshot()
	if r := b.write(shop, Options{Renew: true, Nodes: []string{"a-db2"}}); reasons(r, "a-db2") != "it has new certificates" || !slices.Equal(b.touched(), filesOf("a-db2")) {
		t.Errorf("%+v; written: %v", r, b.touched())
	}
	b.now = now.Add(pki.NodeLifetime - vault.RenewBefore + time.Hour)
	if r := b.write(shop, Options{}); r.Count(Written) != 5 {
		t.Errorf("near the end: %+v", r)
	}
	if e := b.member("a-db1").Expires; !e.Equal(b.now.Add(pki.NodeLifetime)) {
		t.Errorf("valid until %s", e)
	}
}

// The process is killed, as by a power cut, at one step after the other: while the
// seeds are worked out, between the store and the first file, between files.
func TestSeedingThatIsKilledIsCompletedByTheNextRun(t *testing.T) {
	if dir := os.Getenv("SLIPWAY_TEST_SEEDING"); dir != "" {
		steps, _ := strconv.Atoi(os.Getenv("SLIPWAY_TEST_STEPS"))
		b := &bench{t: t, dir: dir, out: filepath.Join(dir, "seeds"), now: now}
		b.tryWrite(&countdown{Context: context.Background(), left: steps}, shop, Options{})
		t.Fatal("the countdown did not end")
	}
	for _, steps := range []int{2, 5, 6, 12, 24} { // 5 nodes, then 20 files
		b := newBench(t)
		child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		child.Env = append(os.Environ(), "SLIPWAY_TEST_SEEDING="+b.dir, "SLIPWAY_TEST_STEPS="+strconv.Itoa(steps))
		if out, err := child.CombinedOutput(); err == nil || child.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("after %d steps: %v\n%s", steps, err, out)
		}
		os.MkdirAll(b.out, 0o700)
		before := b.snapshot()
		if want := max(steps-5, 0); len(before) != want {
			t.Fatalf("after %d steps %d files were written, want %d", steps, len(before), want)
		}
		// As a power cut within a file would leave it.
		os.WriteFile(filepath.Join(b.out, ".tmp-b-db1.ovf.iso-42"), []byte("half"), 0o600)
		b.write(shop, Options{})
		after := b.snapshot()
		if len(after) != 20 {
			t.Errorf("after %d steps: files %v", steps, filesIn(b.out))
		}
		for name, data := range before {
			if after[name] != data {
				t.Errorf("after %d steps: %s was whole and is another one now", steps, name)
			}
		}
		for _, name := range everybody {
			b.member(name)
		}
	}
}

// countdown is a context that kills the process after it was asked so many times.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return nil
}

func TestSeedingThatIsInterruptedSaysSo(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.tryWrite(ctx, shop, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left := filesIn(b.dir); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestANodeThatIsAddedAloneIsLearntOfByTheOthers(t *testing.T) {
	b := newBench(t)
	b.write(shop, Options{})
	r := b.write(shop+another, Options{Nodes: []string{"a-lb3"}})
	if len(r.Nodes) != 1 || r.Count(Written) != 1 || !slices.Equal(r.Learn, everybody) {
		t.Errorf("result %+v", r)
	}
}

func TestPlacesWhereOthersMayWriteAreRefused(t *testing.T) {
	b := newBench(t)
	os.Mkdir(b.out, 0o700)
	os.Chmod(b.out, 0o777)
	if _, err := b.tryWrite(context.Background(), shop, Options{}); fault.Of(err) != fault.Input || !strings.Contains(fault.Mend(err), "chmod 700") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "cluster.store/store.json")); err == nil {
		t.Error("a store was made all the same")
	}
	if _, err := b.tryWrite(context.Background(), shop, Options{Nodes: []string{"a-db9"}}); fault.Of(err) != fault.Usage {
		t.Errorf("an unknown node: %v", err)
	}
}

// member is what a node makes of its NoCloud seed.
func (b *bench) member(node string) *member.Member {
	b.t.Helper()
	m, err := member.Parse(blockText(b.t, b.found(node+".nocloud.iso")), b.now)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

func TestNodesGetTheCertificatesAndPasswordsOfTheirRoleAndNoOthers(t *testing.T) {
	b := newBench(t)
	b.write(shop, Options{})
	agent, service, etcd, client := member.AgentCert, member.ServiceCert, member.EtcdCert, member.EtcdClient
	passwords := []string{"database-app", plan.ReplicationPassword, plan.RewindPassword, plan.SuperuserPassword}
	for node, want := range map[string]struct{ certificates, secrets []string }{
		"a-db1": {[]string{agent, etcd, client, service}, passwords},
		"a-lb1": {[]string{agent, etcd, service}, nil}, // the witness
		"a-lb2": {[]string{agent, service}, nil},
		"b-db1": {[]string{agent, etcd, client, service}, passwords},
	} {
		m := b.member(node)
		if got := keys(m.Certificates); !slices.Equal(got, want.certificates) {
			t.Errorf("%s has the certificates %v", node, got)
		}
		if got := keys(m.Secrets); !slices.Equal(got, want.secrets) {
			t.Errorf("%s has the passwords %v", node, got)
		}
		if (m.EtcdAuthority != "") != slices.Contains(want.certificates, etcd) {
			t.Errorf("%s and etcd's authority", node)
		}
	}
	if a, c := b.member("a-db1"), b.member("b-db1"); a.Secrets[plan.ReplicationPassword] != c.Secrets[plan.ReplicationPassword] {
		t.Error("the standby cannot log in to the first site")
	}
	cert, err := pki.ParseCertificate("service", b.member("a-lb2").Certificates[service].Certificate)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a-lb2", "a-lb2.example.internal", "localhost", "db.example.internal", "192.0.2.22", "192.0.2.10", "127.0.0.1", "::1"} {
		if err := cert.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	agentCert, _ := pki.ParseCertificate("agent", b.member("a-lb2").Certificates[agent].Certificate)
	if agentCert.VerifyHostname("192.0.2.10") == nil {
		t.Error("the agent may answer for the virtual address")
	}
}

func TestEveryDatabaseMayAnswerAtTheVirtualAddress(t *testing.T) {
	for placement, want := range map[string]map[string]bool{
		"on: balancers": {"a-db1": true, "a-db2": true, "a-lb1": true, "b-db1": true},
		"on: databases": {"a-db1": true, "a-db2": true, "a-lb1": false, "b-db1": true},
	} {
		b := newBench(t)
		b.write(strings.Replace(shop, "on: balancers", placement, 1), Options{})
		for node, want := range want {
			cert, err := pki.ParseCertificate(node, b.member(node).Certificates[member.ServiceCert].Certificate)
			if err != nil {
				t.Fatal(err)
			}
			if got := cert.VerifyHostname("192.0.2.10") == nil && cert.VerifyHostname("db.example.internal") == nil; got != want {
				t.Errorf("%s, %s: %v", placement, node, got)
			}
		}
	}
}

const kept = "backup: {repository: keep}\n"

func TestTheRepositoryAndTheDatabasesGetWhatBackupsTake(t *testing.T) {
	b := newBench(t)
	b.write(strings.Replace(shop, "nodes:\n", kept+"nodes:\n", 1)+"  - {name: keep, role: repository, site: a, nics: [{network: lan, address: 192.0.2.31}]}\n", Options{})
	for node, want := range map[string]struct{ cert, passphrase bool }{"a-db1": {true, false}, "a-db2": {true, false}, "b-db1": {true, false}, "a-lb1": {false, false}, "keep": {true, true}} {
		m := b.member(node)
		_, cert := m.Certificates[member.BackupCert]
		if _, passphrase := m.Secrets[plan.BackupCipher]; cert != want.cert || passphrase != want.passphrase {
			t.Errorf("%s has a certificate for backups: %v, and their passphrase: %v", node, cert, passphrase)
		}
	}
	if got := keys(b.member("keep").Secrets); !slices.Equal(got, []string{plan.BackupCipher}) {
		t.Errorf("the repository has the passwords %v", got)
	}
	// pgBackRest looks for what it connects to among the DNS names.
	cert, err := pki.ParseCertificate("backup", b.member("a-db2").Certificates[member.BackupCert].Certificate)
	if err != nil || !slices.Contains(cert.DNSNames, "192.0.2.12") || cert.Subject.CommonName != "a-db2" {
		t.Errorf("the certificate is for %v, %v", cert.DNSNames, err)
	}
}

func TestTheKeysOfS3AreTheAdministratorsToGive(t *testing.T) {
	b := newBench(t)
	text := strings.Replace(shop, "nodes:\n", "backup: {s3: {endpoint: s3.example.org, bucket: shop, region: eu-1}}\nnodes:\n", 1)
	_, err := b.tryWrite(t.Context(), text, Options{})
	if fault.Of(err) != fault.Input || !strings.Contains(fault.Mend(err), "slipway secret set") {
		t.Fatalf("without keys: %v; %s", err, fault.Mend(err))
	}
	v := b.open()
	if !v.SetSecret(plan.S3Key, "key") || !v.SetSecret(plan.S3KeySecret, "secret") || v.SetSecret(plan.S3Key, "key") {
		t.Error("what is news is told wrong")
	}
	if err := v.Save(); err != nil {
		t.Fatal(err)
	}
	v.Close()
	b.write(text, Options{})
	if m := b.member("b-db1"); m.Secrets[plan.S3Key] != "key" || m.Secrets[plan.S3KeySecret] != "secret" || m.Secrets[plan.BackupCipher] == "" {
		t.Errorf("a database has the secrets %v", keys(m.Secrets))
	}
	if m := b.member("a-lb1"); len(m.Secrets) > 0 {
		t.Errorf("a balancer has the secrets %v", keys(m.Secrets))
	}
}

func TestTheSecretsOfAnotherClustersBackupsGoToWhoeverReadsThem(t *testing.T) {
	const s3 = "s3: {endpoint: s3.example.org, bucket: shop, region: eu-1}"
	keep := "  - {name: keep, role: repository, site: a, nics: [{network: lan, address: 192.0.2.31}]}\n"
	for _, c := range []struct {
		backup, node string
		want         []string // of the administrator's secrets, those that the node has
	}{
		{"repository: keep, from: {cluster: north}", "keep", []string{plan.SourceCipher}},
		{"repository: keep, from: {cluster: north}", "a-db1", nil},
		{"repository: keep, from: {cluster: north, " + s3 + "}", "keep", nil},
		{"repository: keep, from: {cluster: north, " + s3 + "}", "a-db1", []string{plan.SourceCipher, plan.SourceS3Key, plan.SourceS3KeySecret}},
		{s3 + ", from: {cluster: north}", "b-db1", []string{plan.S3Key, plan.S3KeySecret, plan.SourceCipher}},
		{s3 + ", from: {cluster: north}", "a-lb1", nil},
	} {
		b := newBench(t)
		text := strings.Replace(shop, "nodes:\n", "backup: {"+c.backup+"}\nnodes:\n", 1)
		if strings.Contains(c.backup, "keep") {
			text += keep
		}
		if _, err := b.tryWrite(t.Context(), text, Options{}); fault.Of(err) != fault.Input || !strings.Contains(fault.Mend(err), "slipway secret set") {
			t.Errorf("%s: without secrets: %v", c.backup, err)
		}
		v := b.open()
		given := []string{plan.S3Key, plan.S3KeySecret, plan.SourceCipher, plan.SourceS3Key, plan.SourceS3KeySecret}
		for _, name := range given {
			v.SetSecret(name, "the "+name)
		}
		if err := v.Save(); err != nil {
			t.Fatal(err)
		}
		v.Close()
		b.write(text, Options{})
		var got []string
		for _, name := range given {
			if b.member(c.node).Secrets[name] == "the "+name {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %s has %v, want %v", c.backup, c.node, got, c.want)
		}
	}
}
