package vault

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// identity writes an age identity to a file and returns its public key.
func identity(t *testing.T) (file, recipient string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "key.txt")
	if err := os.WriteFile(file, []byte("# created: today\n"+id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, id.Recipient().String()
}

func TestAnEncryptedStoreOpensWithItsIdentityAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "shop.store")
	file, recipient := identity(t)
	other, _ := identity(t)
	o := options()
	o.Recipients = []string{recipient}
	v := open(t, dir, o)
	password := v.EnsureSecret(plan.SuperuserPassword)
	save(t, v)
	v.Close()

	sealed, err := os.ReadFile(filepath.Join(dir, "store.json.age"))
	if err != nil || bytes.Contains(sealed, []byte("PRIVATE")) || bytes.Contains(sealed, []byte(password)) {
		t.Fatalf("not encrypted, %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "store.json")); err == nil {
		t.Error("a plain store is beside it")
	}
	for want, file := range map[string]string{"no age identity is given": "", "does not open the store": other, "holds no age identity": filepath.Join(dir, "authority.pem"), "no such file": "/nowhere"} {
		o := options()
		o.IdentityFile = file
		if _, err := Open(dir, o); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	o = options()
	o.IdentityFile = file
	v = open(t, dir, o)
	if got, _ := v.Secret(plan.SuperuserPassword); got != password {
		t.Error("the password is another one")
	}
	save(t, v)
	if again, _ := os.ReadFile(filepath.Join(dir, "store.json.age")); !bytes.Equal(sealed, again) {
		t.Error("saving without a change wrote the file")
	}
	// What is added later is encrypted for the same keys.
	v.EnsureSecret("later")
	save(t, v)
	v.Close()
	if _, err := open(t, dir, o).Secret("later"); err != nil {
		t.Error(err)
	}
}

func TestAStoreCanBeEncryptedWithAPassphrase(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "shop.store")
	o := options()
	o.Encrypt = true
	o.Passphrase = func(anew bool) (string, error) {
		if !anew {
			t.Error("it is not said that this is a new passphrase")
		}
		return "correct horse", nil
	}
	v := open(t, dir, o)
	v.EnsureSecret("a")
	save(t, v)
	v.Close()
	for answer, want := range map[string]string{"correct horse": "", "wrong horse": "does not open", "": "empty"} {
		o := options()
		o.Passphrase = func(anew bool) (string, error) { return answer, nil }
		v, err := Open(dir, o)
		if want == "" && err == nil {
			v.Close()
			continue
		}
		if err == nil || want == "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", answer, err)
		}
	}
	if _, err := Open(dir, options()); err == nil || !strings.Contains(err.Error(), "nobody can be asked") {
		t.Errorf("got %v", err)
	}
}

func TestAPlainStoreCanBeEncryptedLater(t *testing.T) {
	dir := filled(t)
	file, recipient := identity(t)
	plain, _ := os.ReadFile(filepath.Join(dir, "store.json"))
	o := options()
	o.Recipients = []string{recipient}
	v := open(t, dir, o)
	save(t, v)
	id := v.ID()
	v.Close()
	if _, err := os.Stat(filepath.Join(dir, "store.json")); err == nil {
		t.Error("the plain store is still there")
	}
	// A power cut before the plain store was removed.
	os.WriteFile(filepath.Join(dir, "store.json"), plain, 0o600)
	o = options()
	o.IdentityFile = file
	v = open(t, dir, o)
	if v.ID() != id || !v.Encrypted() {
		t.Error("another store was opened")
	}
	save(t, v)
	if _, err := os.Stat(filepath.Join(dir, "store.json")); err == nil {
		t.Error("the plain store stays beside the encrypted one")
	}
}

func TestDamagedEncryptionIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	file, recipient := identity(t)
	o := options()
	o.Recipients = []string{recipient}
	v := open(t, dir, o)
	save(t, v)
	v.Close()
	path := filepath.Join(dir, "store.json.age")
	whole, _ := os.ReadFile(path)
	o = options()
	o.IdentityFile = file
	for name, broken := range map[string][]byte{"cut off": whole[:len(whole)-10], "a changed byte": append(bytes.Clone(whole[:len(whole)-1]), whole[len(whole)-1]^1), "empty": nil} {
		os.WriteFile(path, broken, 0o600)
		if _, err := Open(dir, o); fault.Of(err) != fault.Integrity || !strings.Contains(fault.Mend(err), "backup") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWrongRecipientsAreRefusedWithoutShowingASecretKey(t *testing.T) {
	id, _ := age.GenerateX25519Identity()
	for _, key := range []string{"age1wrong", "", id.String(), "ssh-ed25519 AAAA"} {
		o := options()
		o.Recipients = []string{key}
		_, err := Open(filepath.Join(t.TempDir(), "s"), o)
		if fault.Of(err) != fault.Usage || strings.Contains(err.Error(), id.String()) {
			t.Errorf("%q: %v", key, err)
		}
	}
}
