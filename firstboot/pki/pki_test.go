package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func authority(t testing.TB, kind string) *Authority {
	t.Helper()
	a, err := NewAuthority(kind, "shop", now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func request(a *Authority, purpose string) Request {
	r := Request{
		Purpose: purpose, Node: "a-db1",
		Names:     []string{"localhost", "a-db1", "a-db1.example.internal"},
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")},
	}
	if purpose == Agent {
		r.URI = NodeURI(ID(a.Cert), r.Node)
	}
	return r
}

func issue(t testing.TB, a *Authority, purpose string) (Pair, *x509.Certificate) {
	t.Helper()
	p, err := a.Issue(request(a, purpose), now)
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := p.Parse(purpose)
	if err != nil {
		t.Fatal(err)
	}
	return p, cert
}

// openssl runs on certificates that are valid at the time of the tests' clock.
func openssl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing: apt-get install -y openssl")
	}
	out, err := exec.Command("openssl", args...).CombinedOutput()
	return string(out), err
}

func save(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pem")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpenSSLVerifiesEveryCertificateForItsPurposeAndForNoOther(t *testing.T) {
	cluster, etcd := authority(t, ClusterAuthority), authority(t, EtcdAuthority)
	at := []string{"-x509_strict", "-attime", "1795176000"} // now
	for purpose, signer := range map[string]*Authority{Agent: cluster, Service: cluster, Etcd: etcd, EtcdClient: etcd} {
		pair, _ := issue(t, signer, purpose)
		file, root, other := save(t, pair.Certificate), save(t, EncodeCertificate(signer.Cert.Raw)), cluster
		if signer == cluster {
			other = etcd
		}
		verify := func(ca string, more ...string) (string, error) {
			return openssl(t, append(append(append([]string{"verify"}, at...), more...), "-CAfile", ca, file)...)
		}
		if out, err := verify(root, "-purpose", "sslclient"); err != nil {
			t.Errorf("%s as a client: %s", purpose, out)
		}
		out, err := verify(root, "-purpose", "sslserver", "-verify_hostname", "a-db1.example.internal", "-verify_ip", "192.0.2.11")
		if wantServer := purpose != EtcdClient; (err == nil) != wantServer {
			t.Errorf("%s as a server: want %v: %s", purpose, wantServer, out)
		}
		if _, err := verify(save(t, EncodeCertificate(other.Cert.Raw))); err == nil {
			t.Errorf("%s is accepted by the other authority", purpose)
		}
		if _, err := openssl(t, "pkey", "-in", save(t, pair.Key), "-noout", "-check"); err != nil {
			t.Errorf("%s: openssl does not like the key", purpose)
		}
	}
}

func TestANodesCertificateCannotIssueOthers(t *testing.T) {
	a := authority(t, ClusterAuthority)
	pair, _ := issue(t, a, Service)
	if _, err := LoadAuthority("service", pair); err == nil || !strings.Contains(err.Error(), "not that of an authority") {
		t.Errorf("got %v", err)
	}
	if a.Cert.MaxPathLen != 0 || !a.Cert.MaxPathLenZero {
		t.Error("the authority may have authorities below it")
	}
}

func TestNodesAndAdministratorsMeetOverMutualTLS(t *testing.T) {
	a, foreign := authority(t, ClusterAuthority), authority(t, ClusterAuthority)
	serverPair, _ := issue(t, a, Agent)
	admin, err := a.IssueAdmin(AdminRead, "tests", now)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := foreign.IssueAdmin(AdminRead, "tests", now)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		client Pair
		want   Peer
	}{
		"a node":             {serverPair, Peer{ID: ID(a.Cert), Node: "a-db1"}},
		"an administrator":   {admin, Peer{ID: ID(a.Cert), Right: "read"}},
		"another cluster's":  {stranger, Peer{}},
		"without any at all": {Pair{}, Peer{}},
	} {
		got, err := handshake(t, a, serverPair, c.client)
		if (err == nil) != (c.want != Peer{}) || got != c.want {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, c.want)
		}
	}
}

// handshake connects a client with a server and returns whom the server saw.
func handshake(t *testing.T, a *Authority, server, client Pair) (Peer, error) {
	t.Helper()
	cert, err := server.TLS("server")
	if err != nil {
		t.Fatal(err)
	}
	clock := func() time.Time { return now }
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	config := &tls.Config{RootCAs: a.Pool(), ServerName: "a-db1", Time: clock}
	if client.Key != "" {
		own, err := client.TLS("client")
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{own}
	}
	go func() {
		c := tls.Client(near, config)
		if c.Handshake() == nil {
			c.Read(make([]byte, 1)) // lets the server's alert be written
		}
	}()
	s := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.Pool(), Time: clock})
	if err := s.Handshake(); err != nil {
		return Peer{}, err
	}
	return PeerOf(s.ConnectionState().PeerCertificates[0])
}

func TestTimesLeaveRoomForClocksAndEndWithTheAuthority(t *testing.T) {
	a := authority(t, ClusterAuthority)
	_, cert := issue(t, a, Agent)
	if want := now.Add(-time.Hour); !cert.NotBefore.Equal(want) {
		t.Errorf("valid from %s, want %s", cert.NotBefore, want)
	}
	if want := now.Add(NodeLifetime); !cert.NotAfter.Equal(want) {
		t.Errorf("valid until %s, want %s", cert.NotAfter, want)
	}
	late, err := a.Issue(request(a, Agent), now.Add(AuthorityLifetime-24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if cert, _, _ := late.Parse("late"); !cert.NotAfter.Equal(a.Cert.NotAfter) {
		t.Errorf("valid until %s, after its authority's %s", cert.NotAfter, a.Cert.NotAfter)
	}
	if _, err := a.Issue(request(a, Agent), now.Add(AuthorityLifetime+time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an authority that has expired: %v", err)
	}
	day := 24 * time.Hour
	if ExpiresWithin(cert, now, 60*day) || !ExpiresWithin(cert, cert.NotAfter.Add(-59*day), 60*day) || !ExpiresWithin(cert, cert.NotAfter, 0) {
		t.Error("the nearness of the end is not seen")
	}
}

func TestACertificateServesOnlyForWhatItHolds(t *testing.T) {
	a := authority(t, ClusterAuthority)
	_, cert := issue(t, a, Agent)
	same := request(a, Agent)
	same.Names = []string{"a-db1.example.internal", "a-db1", "localhost", "a-db1"} // another order
	if !a.Serves(cert, same) {
		t.Error("the same request is not served")
	}
	for name, change := range map[string]func(*Request){
		"purpose": func(r *Request) { r.Purpose = EtcdClient },
		"node":    func(r *Request) { r.Node = "a-db2" },
		"name":    func(r *Request) { r.Names = append(r.Names, "db.example.internal") },
		"address": func(r *Request) { r.Addresses = r.Addresses[1:] },
		"URI":     func(r *Request) { r.URI = NodeURI(ID(a.Cert), "a-db2") },
	} {
		r := request(a, Agent)
		change(&r)
		if a.Serves(cert, r) {
			t.Errorf("another %s is not noticed", name)
		}
	}
	if authority(t, ClusterAuthority).Serves(cert, same) {
		t.Error("another authority is not noticed")
	}
}

func TestSerialNumbersAreRandomAndNoTwoClustersHaveOneID(t *testing.T) {
	seen := map[string]bool{}
	for range 50 {
		a := authority(t, ClusterAuthority)
		for _, s := range []string{a.Cert.SerialNumber.String(), ID(a.Cert)} {
			if seen[s] {
				t.Fatal("twice the same")
			}
			seen[s] = true
		}
		if a.Cert.SerialNumber.Sign() <= 0 || a.Cert.SerialNumber.BitLen() > 159 {
			t.Errorf("serial number %s", a.Cert.SerialNumber)
		}
	}
}

func TestWhatIsWrongWithATextIsSaidWithoutShowingIt(t *testing.T) {
	a := authority(t, ClusterAuthority)
	good, _ := issue(t, a, Agent)
	other, _ := issue(t, a, Agent)
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	rsaDER, _ := x509.MarshalPKCS8PrivateKey(rsaKey)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p384DER, _ := x509.MarshalPKCS8PrivateKey(p384)
	key := func(der []byte) string { return string(pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: der})) }
	for want, p := range map[string]Pair{
		"certificate is missing":       {"", good.Key},
		"private key is missing":       {good.Certificate, ""},
		"not PEM":                      {good.Certificate[:100], good.Key},
		"stands a block of type":       {good.Key, good.Key},
		"stands behind":                {good.Certificate + good.Certificate, good.Key},
		"cannot be read":               {string(pem.EncodeToMemory(&pem.Block{Type: certificateType, Bytes: []byte("x")})), good.Key},
		"not valid PKCS #8":            {good.Certificate, key([]byte("secret bytes"))},
		"*rsa.PrivateKey; want ECDSA":  {good.Certificate, key(rsaDER)},
		"P-384; want P-256":            {good.Certificate, key(p384DER)},
		"not that of the certificate":  {good.Certificate, other.Key},
		"more than the limit of 65536": {strings.Repeat("a", 70<<10), good.Key},
	} {
		_, _, err := p.Parse("node a-db1, agent")
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "node a-db1, agent: ") {
			t.Errorf("want %q, got %v", want, err)
		}
		if c := fault.Of(err); c != fault.Input && c != fault.Integrity {
			t.Errorf("%q is of class %s", want, c)
		}
		if err != nil && (strings.Contains(err.Error(), "secret bytes") || strings.Contains(err.Error(), good.Key[30:60])) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

func TestNoCertificateOfABundleIsLeftOutUnsaid(t *testing.T) {
	one, _ := authority(t, ClusterAuthority).Pair()
	two, _ := authority(t, ClusterAuthority).Pair()
	broken := string(pem.EncodeToMemory(&pem.Block{Type: certificateType, Bytes: []byte("x")}))
	if found, err := ParseAuthorities("# plant 7\n" + one.Certificate + "\n# plant 8\n" + two.Certificate + "# end\n"); err != nil || len(found) != 2 || EncodeCertificate(found[1].Raw) != two.Certificate {
		t.Errorf("%d certificates, %v", len(found), err)
	}
	for text, want := range map[string]string{
		"":                                      "there is no certificate in it",
		"none":                                  "there is no certificate in it",
		one.Certificate[:200]:                   "cut off: 1 begin, 0 end, 0 can be read",
		one.Certificate + two.Certificate[:200]: "cut off: 2 begin, 1 end, 1 can be read",
		one.Certificate + two.Certificate[200:]: "cut off: 1 begin, 2 end, 1 can be read",
		strings.Replace(one.Certificate, "MII", "M!I", 1) + two.Certificate: "cut off: 2 begin, 2 end, 1 can be read",
		one.Certificate + broken:         "certificate 2 in it cannot be read",
		one.Certificate + two.Key:        `no certificate: "PRIVATE KEY"`,
		strings.Repeat("a", maxBundle+1): "more than the limit of 1048576",
	} {
		found, err := ParseAuthorities(text)
		if err == nil || found != nil || !strings.Contains(err.Error(), want) || fault.Of(err) != fault.Input {
			t.Errorf("want %q, got %d and %v", want, len(found), err)
		}
		if err != nil && strings.Contains(err.Error(), two.Key[30:60]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

func FuzzAuthorities(f *testing.F) {
	p, _ := authority(f, ClusterAuthority).Pair()
	f.Add(p.Certificate + "# another\n" + p.Certificate)
	f.Add("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		found, err := ParseAuthorities(text)
		if (err == nil) != (len(found) > 0) {
			t.Errorf("%d certificates and %v", len(found), err)
		}
		var again strings.Builder
		for _, c := range found {
			again.WriteString(EncodeCertificate(c.Raw))
		}
		if same, err := ParseAuthorities(again.String()); len(found) > 0 && (err != nil || len(same) != len(found)) {
			t.Errorf("%d of %d certificates come back: %v", len(same), len(found), err)
		}
	})
}

func FuzzPair(f *testing.F) {
	a := authority(f, ClusterAuthority)
	p, _ := issue(f, a, Agent)
	f.Add(p.Certificate, p.Key)
	f.Add("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "")
	f.Fuzz(func(t *testing.T, certificate, key string) {
		cert, err := ParseCertificate("fuzz", certificate)
		if err == nil {
			PeerOf(cert)
			CheckAuthority("fuzz", cert)
		}
		if _, err := ParseKey("fuzz", key); err != nil && fault.Of(err) != fault.Input {
			t.Errorf("class %s: %v", fault.Of(err), err)
		}
	})
}
