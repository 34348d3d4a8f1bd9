//go:build long

package roletest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// serverEnv names the program that serves storage.
const serverEnv = "SLIPWAY_ROLETEST_S3"

// MainWithStorage is the TestMain of a package that uses Storage: it builds the
// server, a module of its own with its own pins (s3server), before the tests have no
// network any more.
func MainWithStorage(m *testing.M) {
	if os.Getenv(serverEnv) == "" {
		program, err := buildServer()
		if err != nil {
			fmt.Fprintln(os.Stderr, "FAIL: these tests need a server of S3-like storage:", err)
			os.Exit(1)
		}
		if err := os.Setenv(serverEnv, program); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	nodetest.Main(m, packages)
}

func buildServer() (string, error) {
	const dir = "../roletest/s3server"
	pins, err := os.ReadFile(dir + "/go.sum")
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(pins)
	program := filepath.Join(cache, "slipway", "test-trees", "s3server-"+hex.EncodeToString(sum[:6]))
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	fresh := fmt.Sprintf("%s.%d", program, os.Getpid())
	build := exec.Command("go", "build", "-C", dir, "-o", fresh, "github.com/versity/versitygw/cmd/versitygw")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, os.Rename(fresh, program)
}

// Storage is a server of S3-like storage with a certificate of an authority that
// nobody else trusts. It checks who signs requests.
type Storage struct {
	plan.S3
	Key, KeySecret string
	Dir            string // what is kept, a directory for each bucket
}

// storagePort is where it answers, on the bridge.
const storagePort = 9443

// StartStorage starts a server with one bucket.
func StartStorage(t testing.TB) *Storage {
	t.Helper()
	dir := t.TempDir()
	s := &Storage{
		S3:  plan.S3{Endpoint: fmt.Sprintf("10.77.0.1:%d", storagePort), Bucket: "backups", Region: "us-east-1", Path: "/", Style: "path"},
		Key: "AKIDOFTHETESTS", KeySecret: "secret-of-the-storage", Dir: filepath.Join(dir, "kept"),
	}
	must(t, os.MkdirAll(filepath.Join(s.Dir, s.Bucket), 0o755))
	var key string
	s.CA, key = selfSigned(t)
	for name, text := range map[string]string{"ca.pem": s.CA, "key.pem": key} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	cmd := exec.Command(os.Getenv(serverEnv), "--port", fmt.Sprintf(":%d", storagePort), "--region", s.Region, "--quiet",
		"--cert", filepath.Join(dir, "ca.pem"), "--key", filepath.Join(dir, "key.pem"), "posix", "--sidecar", sidecar(t, dir), s.Dir)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "ROOT_ACCESS_KEY_ID=" + s.Key, "ROOT_SECRET_ACCESS_KEY=" + s.KeySecret}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the storage says: %s", text[max(0, len(text)-2000):])
		}
	})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(s.CA))
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "10.77.0.1"}}}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		answer, err := client.Get(fmt.Sprintf("https://127.0.0.1:%d/", storagePort))
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode < http.StatusBadRequest {
				t.Fatalf("the storage answers anybody: %s", answer.Status)
			}
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("the storage does not answer: %v", err)
		}
	}
}

// sidecar is where the server keeps what it knows of objects: the file system of the
// tests may have no extended attributes.
func sidecar(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "sidecar")
	must(t, os.MkdirAll(path, 0o755))
	return path
}

// selfSigned is a certificate for the bridge's address that is its own authority.
func selfSigned(t testing.TB) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "storage"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// pgBackRest compares an address with DNS names alone.
		DNSNames: []string{"10.77.0.1"}, IPAddresses: []net.IP{net.IPv4(10, 77, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}
