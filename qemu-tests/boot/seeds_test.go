package boottest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/qemu-tests/lab/gateway"
)

// medium writes a seed medium into a file that ends with the test.
func medium(t *testing.T, name string, write func(io.Writer) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := write(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func noCloudISO(t *testing.T, files seed.Files) string {
	t.Helper()
	return medium(t, "seed.iso", func(w io.Writer) error { return seed.NoCloudISO(w, files) })
}

func noCloudVFAT(t *testing.T, files seed.Files) string {
	t.Helper()
	return medium(t, "seed.img", func(w io.Writer) error { return seed.NoCloudVFAT(w, files) })
}

func configDrive(t *testing.T, drive seed.ConfigDrive) string {
	t.Helper()
	return medium(t, "config-2.iso", func(w io.Writer) error { return seed.ConfigDriveISO(w, drive) })
}

// serveSeed answers for NoCloud's files over HTTP and returns the URL under
// which a guest on an open user network reaches it.
func serveSeed(t *testing.T, files seed.Files) string {
	t.Helper()
	mux := http.NewServeMux()
	for name, content := range map[string][]byte{
		"/meta-data": files.MetaData, "/user-data": files.UserData, "/network-config": files.NetworkConfig,
	} {
		if content != nil {
			mux.HandleFunc(name, func(w http.ResponseWriter, _ *http.Request) { w.Write(content) })
		}
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return "http://10.0.2.2:" + port + "/"
}

// sshKey is a fresh key of an administrator.
type sshKey struct {
	signer     ssh.Signer
	authorized string // a line of authorized_keys
}

func newKey(t *testing.T) sshKey {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return sshKey{signer, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))}
}

// newAuthority makes the certificate of a CA.
func newAuthority(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "slipway boot test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// sshTime bounds a handshake and one short command of a guest under TCG.
const sshTime = 2 * time.Minute

// dialSSH logs in to the node behind the lab's gateway.
func dialSSH(ctx context.Context, gw *gateway.Gateway, user string, key sshKey, check ssh.HostKeyCallback) (*ssh.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, sshTime)
	defer cancel()
	const address = nodeAddr + ":22"
	conn, err := gw.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	c, channels, requests, err := ssh.NewClientConn(conn, address, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key.signer)}, HostKeyCallback: check,
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), nil
}

// sshBanner is the first line that a guest's SSH server says.
func sshBanner(t *testing.T, gw *gateway.Gateway, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sshTime)
	defer cancel()
	conn, err := gw.DialContext(ctx, "tcp", net.JoinHostPort(address, "22"))
	if err != nil {
		t.Error(err)
		return ""
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		t.Error(err)
	}
	return string(bytes.TrimSpace(line))
}

// sshRun logs in from the host, checking the host key against the fingerprint
// that the console shows, and runs a command.
func sshRun(t *testing.T, gw *gateway.Gateway, user string, key sshKey, fingerprint, command string) string {
	t.Helper()
	client, err := dialSSH(t.Context(), gw, user, key, func(_ string, _ net.Addr, got ssh.PublicKey) error {
		if f := ssh.FingerprintSHA256(got); f != fingerprint {
			t.Errorf("the host key is %s, the console shows %s", f, fingerprint)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("ssh %s: %v", user, err)
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	out, err := session.CombinedOutput(command)
	if err != nil {
		t.Fatalf("ssh %s %s: %v\n%s", user, command, err, out)
	}
	return string(out)
}

// sshRefuses checks that a key opens nothing.
func sshRefuses(t *testing.T, gw *gateway.Gateway, user string, key sshKey) {
	t.Helper()
	client, err := dialSSH(t.Context(), gw, user, key, ssh.InsecureIgnoreHostKey())
	if err == nil {
		client.Close()
		t.Errorf("%s gets in with a key that it does not have", user)
	} else if !strings.Contains(err.Error(), "unable to authenticate") {
		t.Errorf("ssh %s: %v", user, err)
	}
}

// hostKeyOf is the Ed25519 host key's fingerprint as the node reports it.
func hostKeyOf(t *testing.T, r status.Report) string {
	t.Helper()
	for _, k := range r.HostKeys {
		if strings.Contains(strings.ToLower(k.Type), "ed25519") {
			return k.Fingerprint
		}
	}
	t.Fatalf("the report names no Ed25519 host key: %v", r.HostKeys)
	return ""
}
