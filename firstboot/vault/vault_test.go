package vault

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func options() Options { return Options{Cluster: "shop", Create: true, Now: now} }

func open(t testing.TB, dir string, o Options) *Vault {
	t.Helper()
	v, err := Open(dir, o)
	if err != nil {
		t.Fatalf("%v (%s)", err, fault.Mend(err))
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func save(t testing.TB, v *Vault) {
	t.Helper()
	if err := v.Save(); err != nil {
		t.Fatal(err)
	}
}

func request(purpose string) pki.Request {
	return pki.Request{Purpose: purpose, Node: "a-db1", Names: []string{"a-db1"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.11")}}
}

func certificate(t testing.TB, v *Vault, r pki.Request, renew bool) (pki.Pair, bool) {
	t.Helper()
	p, issued, err := v.Certificate(r, renew)
	if err != nil {
		t.Fatal(err)
	}
	return p, issued
}

// filled makes a store with one of everything, closed again.
func filled(t testing.TB) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "shop.store")
	v := open(t, dir, options())
	v.EnsureSecret(plan.SuperuserPassword)
	certificate(t, v, request(member.AgentCert), false)
	certificate(t, v, request(member.EtcdCert), false)
	if err := v.AddPlan(&plan.Plan{Format: plan.Format, Cluster: "shop"}); err != nil {
		t.Fatal(err)
	}
	save(t, v)
	v.Close()
	return dir
}

func TestWhatWasSavedIsThereAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "shop.store")
	v := open(t, dir, options())
	password := v.EnsureSecret(plan.SuperuserPassword)
	agent, _ := certificate(t, v, request(member.AgentCert), false)
	id := v.ID()
	if err := v.AddPlan(&plan.Plan{Format: plan.Format, Cluster: "shop"}); err != nil {
		t.Fatal(err)
	}
	save(t, v)
	v.Close()

	again := open(t, dir, options())
	if got, err := again.Secret(plan.SuperuserPassword); err != nil || got != password {
		t.Errorf("the password is another one (%v)", err)
	}
	if got, issued := certificate(t, again, request(member.AgentCert), false); issued || got != agent {
		t.Error("the certificate is another one")
	}
	if again.ID() != id {
		t.Errorf("identity %s, was %s", again.ID(), id)
	}
	p, err := again.Plan()
	if err != nil || p.Generation != 1 || p.ID != id {
		t.Errorf("plan %+v, %v", p, err)
	}
}

func TestOnlyTheOwnerCanReadTheStore(t *testing.T) {
	dir := filled(t)
	for path, want := range map[string]os.FileMode{".": 0o700, "store.json": 0o600, "authority.pem": 0o644} {
		st, err := os.Stat(filepath.Join(dir, path))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %o", path, st.Mode(), err, want)
		}
	}
	shown, err := os.ReadFile(filepath.Join(dir, "authority.pem"))
	if err != nil || bytes.Contains(shown, []byte("PRIVATE")) {
		t.Errorf("authority.pem: %v\n%s", err, shown)
	}
	for path, mend := range map[string]string{"store.json": "chmod 600 ", ".": "chmod 700 "} {
		path := filepath.Join(dir, path)
		if err := os.Chmod(path, 0o740); err != nil {
			t.Fatal(err)
		}
		_, err := Open(dir, options())
		if fault.Of(err) != fault.Input || !strings.Contains(fault.Mend(err), mend+path) {
			t.Errorf("%s is readable for the group: %v (%s)", path, err, fault.Mend(err))
		}
		os.Chmod(path, 0o700)
	}
}

func TestTwoWritersAreKeptApart(t *testing.T) {
	dir := filled(t)
	first := open(t, dir, options())
	if _, err := Open(dir, options()); fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "another slipway") {
		t.Errorf("the second writer: %v", err)
	}
	readOnly := options()
	readOnly.ReadOnly = true
	reader := open(t, dir, readOnly)
	reader.EnsureSecret("new")
	if err := reader.Save(); err == nil {
		t.Error("a reader could save")
	}
	first.Close()
	open(t, dir, options())
}

func TestAStoreOfAnotherClusterIsRefused(t *testing.T) {
	o := options()
	o.Cluster = "warehouse"
	if _, err := Open(filled(t), o); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "the store of the cluster shop, not of warehouse") {
		t.Errorf("got %v", err)
	}
}

func TestNoStoreIsMadeUnlessAskedFor(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	o := options()
	o.Create = false
	if _, err := Open(dir, o); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "no store") {
		t.Errorf("got %v", err)
	}
	o.Create, o.ReadOnly = true, true
	open(t, dir, o)
	if _, err := os.Stat(dir); err == nil {
		t.Error("opening for reading made the directory")
	}
}

func TestALostStoreIsNotReplacedByANewOne(t *testing.T) {
	dir := filled(t)
	os.Remove(filepath.Join(dir, "store.json"))
	if _, err := Open(dir, options()); fault.Of(err) != fault.Integrity || !strings.Contains(fault.Mend(err), "backup") {
		t.Errorf("got %v", err)
	}
}

func TestDamageIsRefusedAndTheFileLeftAlone(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"cut off":       func(b []byte) []byte { return b[:len(b)/2] },
		"empty":         func([]byte) []byte { return nil },
		"not JSON":      func(b []byte) []byte { return append([]byte("x"), b...) },
		"more behind":   func(b []byte) []byte { return append(b, "{}"...) },
		"another key":   func(b []byte) []byte { return swapKeys(t, b) },
		"plan changed":  func(b []byte) []byte { return bytes.Replace(b, []byte(`"plan": "ey`), []byte(`"plan": "ez`), 1) },
		"unknown field": func(b []byte) []byte { return bytes.Replace(b, []byte(`"format"`), []byte(`"later": 1, "format"`), 1) },
		"later format":  func(b []byte) []byte { return bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 2`), 1) },
	} {
		dir := filled(t)
		path := filepath.Join(dir, "store.json")
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		broken := damage(bytes.Clone(whole))
		if bytes.Equal(whole, broken) {
			t.Fatalf("%s: nothing was damaged", name)
		}
		os.WriteFile(path, broken, 0o600)
		_, err = Open(dir, options())
		if c := fault.Of(err); c != fault.Integrity && c != fault.Input || fault.Mend(err) == "" {
			t.Errorf("%s: class %s: %v", name, c, err)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(after, broken) {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

// swapKeys gives the cluster's authority the key of etcd's.
func swapKeys(t *testing.T, data []byte) []byte {
	s, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	escape := func(key string) []byte { return []byte(strings.ReplaceAll(key, "\n", `\n`)) }
	return bytes.Replace(data, escape(s.Authority.Key), escape(s.EtcdAuthority.Key), 1)
}

func TestAWriterThatLostItsPowerLeavesTheOldStoreAndNoKeys(t *testing.T) {
	dir := filled(t)
	whole, _ := os.ReadFile(filepath.Join(dir, "store.json"))
	torn := filepath.Join(dir, ".tmp-store.json-123")
	os.WriteFile(torn, whole[:100], 0o600)
	os.Remove(filepath.Join(dir, "authority.pem")) // it is written last
	v := open(t, dir, options())
	if _, err := os.Stat(torn); err == nil {
		t.Error("half a store with keys in it is still there")
	}
	save(t, v)
	if _, err := os.Stat(filepath.Join(dir, "authority.pem")); err != nil {
		t.Error(err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "store.json")); !bytes.Equal(after, whole) {
		t.Error("the store was changed")
	}
}

func TestSavingWithoutAChangeDoesNotTouchTheFile(t *testing.T) {
	dir := filled(t)
	path := filepath.Join(dir, "store.json")
	old := time.Unix(1e9, 0)
	os.Chtimes(path, old, old)
	v := open(t, dir, options())
	v.EnsureSecret(plan.SuperuserPassword)
	certificate(t, v, request(member.AgentCert), false)
	save(t, v)
	if st, _ := os.Stat(path); !st.ModTime().Equal(old) {
		t.Error("the file was written")
	}
}

func TestCertificatesAreKeptUntilTheyServeNoMore(t *testing.T) {
	v := open(t, filepath.Join(t.TempDir(), "s"), options())
	r := request(member.ServiceCert)
	first, issued := certificate(t, v, r, false)
	if !issued {
		t.Fatal("the first one was not issued")
	}
	if again, issued := certificate(t, v, r, false); issued || again != first {
		t.Error("a good certificate was replaced")
	}
	r.Names = append(r.Names, "db.example.internal")
	second, issued := certificate(t, v, r, false)
	if !issued || second == first {
		t.Error("a certificate without a wanted name was kept")
	}
	if _, issued := certificate(t, v, r, true); !issued {
		t.Error("a certificate that is to be renewed was kept")
	}
	v.now = now.Add(pki.NodeLifetime - RenewBefore + time.Hour)
	if _, issued := certificate(t, v, r, false); !issued {
		t.Error("a certificate near its end was kept")
	}
}

func TestEtcdsCertificatesComeFromEtcdsAuthority(t *testing.T) {
	v := open(t, filepath.Join(t.TempDir(), "s"), options())
	for purpose, etcd := range map[string]bool{member.AgentCert: false, member.ServiceCert: false, member.EtcdCert: true, member.EtcdClient: true} {
		p, _ := certificate(t, v, request(purpose), false)
		cert, _, err := p.Parse(purpose)
		if err != nil {
			t.Fatal(err)
		}
		if (cert.CheckSignatureFrom(v.EtcdAuthority()) == nil) != etcd || (cert.CheckSignatureFrom(v.Authority()) == nil) == etcd {
			t.Errorf("%s is signed by the wrong authority", purpose)
		}
	}
}

func TestPlansGrowAndSeedsKeepTheirs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	v := open(t, dir, options())
	next := func(domain string) {
		if err := v.AddPlan(&plan.Plan{Format: plan.Format, Cluster: "shop", Domain: domain}); err != nil {
			t.Fatal(err)
		}
	}
	carried := func(node string) int64 {
		s, err := v.SeedPlan(node)
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Open(v.Authority())
		if err != nil {
			t.Fatal(err)
		}
		return p.Generation
	}
	next("one.internal")
	v.UseNewestPlan("a-db1")
	next("two.internal")
	v.UseNewestPlan("a-db2")
	next("three.internal")
	save(t, v)
	v.Close()
	v = open(t, dir, options())
	if a, b, c := carried("a-db1"), carried("a-db2"), carried("a-db3"); a != 1 || b != 2 || c != 3 {
		t.Errorf("the seeds carry the generations %d, %d and %d", a, b, c)
	}
	v.UseNewestPlan("a-db1")
	save(t, v)
	if len(v.state.Plans) != 2 {
		t.Errorf("%d plans are kept, two are carried", len(v.state.Plans))
	}
}

func TestTheAdministratorsCertificateIsMadeForTheOccasion(t *testing.T) {
	dir := filled(t)
	before, _ := os.ReadFile(filepath.Join(dir, "store.json"))
	v := open(t, dir, options())
	cert, pool, err := v.AdminTLS(pki.AdminRead)
	if err != nil || pool == nil {
		t.Fatal(err)
	}
	who, err := pki.PeerOf(cert.Leaf)
	if err != nil || who != (pki.Peer{ID: v.ID(), Right: pki.AdminRead}) {
		t.Errorf("it is for %+v, %v", who, err)
	}
	save(t, v)
	if after, _ := os.ReadFile(filepath.Join(dir, "store.json")); !bytes.Equal(before, after) {
		t.Error("it was kept")
	}
}

func TestPrintingAVaultShowsNoSecret(t *testing.T) {
	v := open(t, filled(t), options())
	for _, text := range []string{fmt.Sprint(v), fmt.Sprintf("%+v %#v", v, v), fmt.Sprintf("%v", []any{v})} {
		if strings.Contains(text, "PRIVATE") || strings.Contains(text, v.state.Secrets[plan.SuperuserPassword]) {
			t.Error(text)
		}
	}
}

func TestPasswordsAreLongAndDiffer(t *testing.T) {
	v := open(t, filepath.Join(t.TempDir(), "s"), options())
	a, b := v.EnsureSecret("a"), v.EnsureSecret("b")
	if a == b || len(a) < 26 || strings.Trim(a, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
		t.Errorf("of %d and %d characters", len(a), len(b))
	}
	if !slices.Equal(v.SecretNames(), []string{"a", "b"}) {
		t.Errorf("names %v", v.SecretNames())
	}
	if _, err := v.Secret("c"); fault.Of(err) != fault.Input {
		t.Errorf("got %v", err)
	}
}

func TestTheStoreIsBesideTheTopology(t *testing.T) {
	for path, want := range map[string]string{"cluster.yaml": "cluster.store", "a/shop.yml": "a/shop.store", "/x/y": "/x/y.store"} {
		if got := DefaultDir(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func FuzzStore(f *testing.F) {
	data, err := os.ReadFile(filepath.Join(filled(f), "store.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"format": 1, "cluster": "shop", "nodes": {"a": null}, "plans": [{"plan": "e30="}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parse(data)
		if err != nil {
			return
		}
		cluster, _, err := s.authorities()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.encode(cluster); err != nil {
			t.Error(err)
		}
	})
}
