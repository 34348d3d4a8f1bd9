package sign_test

import (
	"bytes"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/internal/fault"
)

var when = time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)

func key(t testing.TB, name string) *sign.Key {
	t.Helper()
	k, err := sign.Generate(name, when.AddDate(0, -1, 0), 365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const text = "Origin: Test\n- a line that begins with a hyphen\nSuite: test\n\nlast\n"

func TestEqualTextKeysAndTimeGiveEqualBytes(t *testing.T) {
	a, b := key(t, "a"), key(t, "b")
	first, err := sign.ClearSign([]byte(text), []*sign.Key{a, b}, when)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := a.Secret()
	if err != nil {
		t.Fatal(err)
	}
	again, err := sign.ParseSecret(secret, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := sign.ClearSign([]byte(text), []*sign.Key{again, b}, when)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Errorf("two signatures differ:\n%s\n%s", first, second)
	}
	if !bytes.Equal(a.Public(), again.Public()) {
		t.Error("the public key differs after a round trip")
	}
}

func TestWhatIsSignedVerifiesWhateverTheClockSays(t *testing.T) {
	old, young := key(t, "old"), key(t, "young")
	signed, err := sign.ClearSign([]byte(text), []*sign.Key{old, young}, when)
	if err != nil {
		t.Fatal(err)
	}
	for name, trusted := range map[string][]*sign.Key{"old": {old}, "young": {young}, "both": {old, young}} {
		ring, err := sign.ParseRing(sign.Public(trusted))
		if err != nil {
			t.Fatal(err)
		}
		v, err := sign.Verify(signed, ring)
		if err != nil {
			t.Errorf("with the key %s trusted: %v", name, err)
			continue
		}
		if want := strings.TrimSuffix(text, "\n"); strings.TrimSuffix(string(v.Text), "\n") != want || len(v.Signers) != len(trusted) || !v.When.Equal(when) {
			t.Errorf("with the key %s trusted: %q by %v at %s", name, v.Text, v.Signers, v.When)
		}
	}
	stranger, _ := sign.ParseRing(key(t, "stranger").Public())
	if _, err := sign.Verify(signed, stranger); err == nil {
		t.Error("a stranger's key verifies it")
	}
}

func TestEveryFlippedBitOfASignedMessageIsFound(t *testing.T) {
	k := key(t, "k")
	signed, err := sign.ClearSign([]byte(text), []*sign.Key{k}, when)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := sign.ParseRing(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	if !sign.Canonical(signed) {
		t.Fatal("what was signed is not as it is written")
	}
	for i := range signed {
		for bit := range 8 {
			flipped := bytes.Clone(signed)
			flipped[i] ^= 1 << bit
			if _, err := sign.Verify(flipped, ring); err == nil && sign.Canonical(flipped) {
				t.Fatalf("bit %d of byte %d (%q) was flipped and not found", bit, i, signed[i])
			}
		}
	}
}

func TestKeysThatCannotSignSaySo(t *testing.T) {
	k := key(t, "k")
	for name, at := range map[string]time.Time{"before": when.AddDate(-1, 0, 0), "after": when.AddDate(2, 0, 0)} {
		if _, err := sign.ClearSign([]byte(text), []*sign.Key{k}, at); err == nil {
			t.Errorf("it signs %s its time", name)
		}
	}
	ring, err := sign.ParseRing(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		now  time.Time
		want string
	}{
		{when, ""},
		{k.Expires().AddDate(0, 0, -10), "ends at"},
		{k.Expires().AddDate(0, 0, 10), "ended at"},
	} {
		got := strings.Join(ring.Warnings(c.now), "\n")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("at %s: %q, want %q", c.now, got, c.want)
		}
	}
}

func TestALifeThatAKeyCannotHaveIsRefused(t *testing.T) {
	for _, life := range []time.Duration{-time.Second, (math.MaxUint32 + 1) * time.Second} {
		if k, err := sign.Generate("plant-7", time.Now(), life); fault.Of(err) != fault.Input {
			t.Errorf("a life of %s: %v, a key until %s", life, err, k.Expires())
		}
	}
}

// TestOutsideVerifiersAcceptOurSignatures asks gpgv and sqv of this machine.
func TestOutsideVerifiersAcceptOurSignatures(t *testing.T) {
	// gpgv rejected signatures without a checksum and with some salts only now and
	// then, so one signature proves little.
	for i := range 6 {
		now := time.Now().Add(-time.Duration(i) * time.Minute)
		k, err := sign.Generate("Test", now.Add(-time.Hour), 0)
		if err != nil {
			t.Fatal(err)
		}
		acceptedOutside(t, k, now)
	}
}

// acceptedOutside has gpgv and sqv verify what a key signs.
func acceptedOutside(t *testing.T, k *sign.Key, now time.Time) {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, data []byte) string {
		if err := os.WriteFile(at(name), data, 0o644); err != nil {
			t.Fatal(err)
		}
		return at(name)
	}
	signed, err := sign.ClearSign([]byte(text), []*sign.Key{k}, now)
	if err != nil {
		t.Fatal(err)
	}
	detached, err := sign.Detach([]byte(text), []*sign.Key{k}, now)
	if err != nil {
		t.Fatal(err)
	}
	public := write("key.asc", k.Public())
	write("key.gpg", dearmour(t, k.Public()))
	write("InRelease", signed)
	write("Release", []byte(text))
	write("Release.gpg", detached)
	for _, argv := range [][]string{
		{"gpgv", "--homedir", dir, "--keyring", at("key.gpg"), at("InRelease")},
		{"gpgv", "--homedir", dir, "--keyring", at("key.gpg"), at("Release.gpg"), at("Release")},
		{"sqv", "--keyring", public, at("Release.gpg"), at("Release")},
	} {
		if _, err := exec.LookPath(argv[0]); err != nil {
			t.Fatalf("%s is needed: %v", argv[0], err)
		}
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
}

// gnupg is a GnuPG of its own, for one key. Its agent wants a short path for its socket.
func gnupg(t *testing.T, passphrase string) func(args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("gpg"); err != nil {
		t.Fatalf("gpg is needed: %v", err)
	}
	home, err := os.MkdirTemp("/tmp", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	return func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command("gpg", append([]string{"--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", passphrase}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("gpg %v: %v\n%s", args, err, stderr.Bytes())
		}
		return out
	}
}

func TestAKeyOfGnuPGComesInWithItsPassphrase(t *testing.T) {
	gpg := gnupg(t, "word")
	gpg("--quick-generate-key", "Test", "ed25519", "sign", "1y")
	secret := gpg("--armor", "--export-secret-keys")
	if _, err := sign.ParseSecret(secret, []byte("wrong")); err == nil {
		t.Error("a wrong passphrase opens it")
	}
	if _, err := sign.ParseSecret(secret, nil); err == nil {
		t.Error("no passphrase opens it")
	}
	k, err := sign.ParseSecret(secret, []byte("word"))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := sign.ClearSign([]byte(text), []*sign.Key{k}, time.Now().Add(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := sign.ParseRing(gpg("--armor", "--export"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sign.Verify(signed, ring); err != nil {
		t.Error(err)
	}
}

// TestOnlyKeysWhoseSignaturesVerifyEverywhereAreTaken has GnuPG make keys of every kind that an administrator may have.
func TestOnlyKeysWhoseSignaturesVerifyEverywhereAreTaken(t *testing.T) {
	later := time.Now().Add(time.Minute) // GnuPG's keys are as old as this test
	for _, c := range []struct {
		algorithm, usage string
		gpg              []string // further options
		refused          string   // by ParseSecret
		cannot           string   // sign, says Try
	}{
		{algorithm: "ed25519", usage: "sign"},
		{algorithm: "rsa3072", usage: "sign"},
		{algorithm: "rsa2048", usage: "sign", refused: "2048 bits; verifiers want at least 3072"},
		{algorithm: "nistp256", usage: "sign", refused: "algorithm 19 "},
		{algorithm: "dsa2048", usage: "sign", refused: "algorithm 17 "},
		{algorithm: "ed25519", usage: "cert", cannot: "only certifies"},
		{algorithm: "ed25519", usage: "sign", gpg: []string{"--faked-system-time", "20260101T000000"}, cannot: "expired at 2026-01-"},
	} {
		gpg := gnupg(t, "")
		gpg(append(c.gpg, "--quick-generate-key", "Test", c.algorithm, c.usage, "7d")...)
		k, err := sign.ParseSecret(gpg("--armor", "--export-secret-keys"), nil)
		if c.refused != "" {
			if fault.Of(err) != fault.Input || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: %v", c.algorithm, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.algorithm, err)
			continue
		}
		err = k.Try(later)
		if c.cannot != "" {
			if fault.Of(err) != fault.Input || fault.Mend(err) == "" || !strings.Contains(err.Error(), c.cannot) {
				t.Errorf("%s, %s: %v", c.algorithm, c.usage, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.algorithm, err)
			continue
		}
		one, err := sign.ClearSign([]byte(text), []*sign.Key{k}, later)
		if err != nil {
			t.Fatal(err)
		}
		if two, err := sign.ClearSign([]byte(text), []*sign.Key{k}, later); err != nil || !bytes.Equal(one, two) {
			t.Errorf("%s: two signatures differ (%v)", c.algorithm, err)
		}
		acceptedOutside(t, k, k.Created())
	}
}

// GnuPG 2.2 makes none of these.
func TestKeysThatDebian12DoesNotKnowAreRefused(t *testing.T) {
	for want, config := range map[string]*packet.Config{
		"key of version 6": {Algorithm: packet.PubKeyAlgoEd25519, V6Keys: true},
		"algorithm 27 ":    {Algorithm: packet.PubKeyAlgoEd25519},
	} {
		e, err := openpgp.NewEntity("Test", "", "", config)
		if err != nil {
			t.Fatal(err)
		}
		var secret bytes.Buffer
		if err := e.SerializePrivate(&secret, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := sign.ParseSecret(secret.Bytes(), nil); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

func dearmour(t *testing.T, data []byte) []byte {
	t.Helper()
	cmd := exec.Command("gpg", "--dearmor")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("gpg --dearmor: %v", err)
	}
	return out
}

func FuzzVerify(f *testing.F) {
	k := key(f, "k")
	signed, err := sign.ClearSign([]byte(text), []*sign.Key{k}, when)
	if err != nil {
		f.Fatal(err)
	}
	ring, err := sign.ParseRing(k.Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := sign.Verify(data, ring)
		if err == nil && !bytes.Equal(bytes.TrimSpace(v.Text), bytes.TrimSpace([]byte(text))) {
			t.Fatalf("verified a text that nobody signed: %q", v.Text)
		}
	})
}

func FuzzParseRing(f *testing.F) {
	f.Add(key(f, "k").Public())
	f.Fuzz(func(t *testing.T, data []byte) {
		if ring, err := sign.ParseRing(data); err == nil {
			ring.Fingerprints()
			ring.Warnings(when)
		}
	})
}
