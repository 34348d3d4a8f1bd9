package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/slipwayhq/slipway/firstboot/seeding"
)

// smallCluster is the least that has databases, balancers and a virtual address.
const smallCluster = `slipway: 1
name: shop
networks:
  lan: {subnet: 192.0.2.0/24, gateway: 192.0.2.1}
users:
  - {name: ops, sudo: true, keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED ops@example.org]}
clients: [192.0.2.0/24]
vips:
  - {name: database, address: 192.0.2.10, on: balancers, router_id: 51}
databases:
  - {name: app, owner: app}
nodes:
  - {name: db1, role: db-master, nics: [{network: lan, address: 192.0.2.11}]}
  - {name: db2, role: db-replica, nics: [{network: lan, address: 192.0.2.12}]}
  - {name: lb1, role: balancer, nics: [{network: lan, address: 192.0.2.21}]}
`

func inSmallCluster(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.WriteFile("cluster.yaml", []byte(smallCluster), 0o644); err != nil {
		t.Fatal(err)
	}
}

// succeed calls the command and returns what it printed.
func succeed(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	code, stdout, stderr := call(t, args...)
	if code != 0 {
		t.Fatalf("slipway %s: exit status %d\n%s", strings.Join(args, " "), code, stderr)
	}
	return stdout, stderr
}

func TestSeedsAreWrittenOnceAndTellWhatToDo(t *testing.T) {
	inSmallCluster(t)
	out, _ := succeed(t, "seed", "cluster.yaml", "-o", "out")
	for _, want := range []string{"db1", "written", "the node is new", "cluster shop", "Keep cluster.store", "not encrypted"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	if _, err := os.Stat("out/lb1.nocloud.iso"); err != nil {
		t.Error(err)
	}
	out, _ = succeed(t, "seed", "cluster.yaml", "-o", "out")
	if strings.Contains(out, "written") || strings.Count(out, "unchanged") != 3 {
		t.Errorf("the second run:\n%s", out)
	}
	var r seeding.Result
	out, _ = succeed(t, "seed", "cluster.yaml", "-o", "out", "--node", "lb1", "--renew", "--json")
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Count(seeding.Written) != 1 || r.Generation != 1 || r.Cluster != "shop" {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestADryRunOfSeedSaysWhatWouldBe(t *testing.T) {
	inSmallCluster(t)
	out, _ := succeed(t, "seed", "--dry-run")
	if !strings.Contains(out, "to be written") || !strings.Contains(out, "Nothing was written") {
		t.Error(out)
	}
	if entries, _ := os.ReadDir("."); len(entries) != 1 {
		t.Errorf("written: %v", entries)
	}
}

func TestNoCommandButSecretShowPrintsASecret(t *testing.T) {
	inSmallCluster(t)
	var said strings.Builder
	for _, args := range [][]string{
		{"--log-level", "debug", "seed", "cluster.yaml"},
		{"--log-level", "debug", "seed", "cluster.yaml", "--all", "--json"},
		{"--log-level", "debug", "--log-format", "json", "secret", "list", "cluster.yaml", "--json"},
	} {
		out, errs := succeed(t, args...)
		said.WriteString(out + errs)
	}
	_, _, errs := call(t, "secret", "show", "cluster.yaml", "nothing")
	said.WriteString(errs)
	// A damaged store says what is wrong with it, and nothing of what is in it.
	whole, err := os.ReadFile("cluster.store/store.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range []string{string(whole[:len(whole)*9/10]), strings.Replace(string(whole), `"secrets": {`, `"secrets": {"x": 1,`, 1), strings.Replace(string(whole), "BEGIN PRIVATE", "BEGIN PRIVAT", 1)} {
		os.WriteFile("cluster.store/store.json", []byte(broken), 0o600)
		code, out, errs := call(t, "--log-level", "debug", "seed", "cluster.yaml")
		if code != 3 && code != 6 || !strings.Contains(errs, "backup") {
			t.Errorf("a damaged store: exit status %d\n%s", code, errs)
		}
		said.WriteString(out + errs)
	}
	var store struct {
		Secrets map[string]string `json:"secrets"`
	}
	if err := json.Unmarshal(whole, &store); err != nil || len(store.Secrets) != 4 {
		t.Fatalf("%v, %d secrets", err, len(store.Secrets))
	}
	for name, value := range store.Secrets {
		if strings.Contains(said.String(), value) {
			t.Errorf("%s was printed", name)
		}
		if !strings.Contains(said.String(), name) {
			t.Errorf("%s is not listed", name)
		}
	}
	for _, line := range strings.Split(strings.ReplaceAll(string(whole), `\n`, "\n"), "\n") {
		if len(line) == 64 && strings.Contains(said.String(), line) {
			t.Errorf("a line of a key or certificate was printed: %s", line)
		}
	}
	os.WriteFile("cluster.store/store.json", whole, 0o600)
	if out, _ := succeed(t, "secret", "show", "database-app"); out != store.Secrets["database-app"]+"\n" {
		t.Error("secret show does not show it")
	}
}

func TestTheStoreCanBeEncryptedFromTheCommandLine(t *testing.T) {
	inSmallCluster(t)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key.txt")
	os.WriteFile(key, []byte(id.String()+"\n"), 0o600)
	out, _ := succeed(t, "seed", "cluster.yaml", "--age-recipient", id.Recipient().String())
	if strings.Contains(out, "not encrypted") {
		t.Error(out)
	}
	if code, _, errs := call(t, "seed", "cluster.yaml"); code != 3 || !strings.Contains(errs, "--age-identity") {
		t.Errorf("without the identity: exit status %d\n%s", code, errs)
	}
	if out, _ := succeed(t, "seed", "cluster.yaml", "--age-identity", key); strings.Count(out, "unchanged") != 3 {
		t.Error(out)
	}
	t.Setenv("SLIPWAY_AGE_IDENTITY", key)
	succeed(t, "secret", "list")

	// Another store, with a passphrase from a file.
	os.WriteFile("phrase", []byte("correct horse\n"), 0o600)
	succeed(t, "seed", "cluster.yaml", "--store", "other", "-o", "o", "--age-passphrase", "--age-passphrase-file", "phrase")
	succeed(t, "secret", "list", "cluster.yaml", "--store", "other", "--age-passphrase-file", "phrase")
	os.WriteFile("phrase", []byte("wrong\n"), 0o600)
	if code, _, errs := call(t, "secret", "list", "cluster.yaml", "--store", "other", "--age-passphrase-file", "phrase"); code != 3 || !strings.Contains(errs, "does not open") {
		t.Errorf("a wrong passphrase: exit status %d\n%s", code, errs)
	}
}

func TestSeedAndSecretRefuseWhatTheyCannotDo(t *testing.T) {
	inSmallCluster(t)
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"seed cluster.yaml other.yaml", 2, "slipway seed takes one file, not 2"},
		{"seed nowhere.yaml", 3, "nowhere.yaml"},
		{"seed cluster.yaml --format floppy", 2, "nocloud"},
		{"seed cluster.yaml --all --node db1", 2, "exclude"},
		{"seed cluster.yaml --node db9", 2, "db9"},
		{"seed cluster.yaml --age-recipient nobody", 2, "age1"},
		{"secret list cluster.yaml", 3, "slipway seed makes it"},
		{"secret list a b", 2, "slipway secret list takes one file, not 2"},
		{"secret show", 2, "secret list"},
	} {
		code, _, stderr := call(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stderr, c.says) {
			t.Errorf("slipway %s: exit status %d, want %d and %q\n%s", c.args, code, c.code, c.says, stderr)
		}
	}
	entries, _ := os.ReadDir(".")
	if names := slices.Collect(func(yield func(string) bool) {
		for _, e := range entries {
			if e.Name() != "cluster.yaml" && !yield(e.Name()) {
				return
			}
		}
	}); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}
