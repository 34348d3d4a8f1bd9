package main

import (
	"encoding/json"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
)

const exampleFile = "../../examples/postgres-ha/cluster.yaml"

func TestCheckTellsWhatAClusterAmountsTo(t *testing.T) {
	code, stdout, stderr := call(t, "check", exampleFile)
	if code != 0 || stderr != "" {
		t.Fatalf("exit status %d, %s", code, stderr)
	}
	for _, want := range []string{"cluster postgres-ha: 6 nodes in 2 sites", "site a: writable database; 3 votes, bears the loss of 1",
		"votes, makes the database", "may hold database", "site b: standby of site a", "clones site a", "VRRP id 51", "app", "10.77.0.0/16"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is not in\n%s", want, stdout)
		}
	}
}

// spoiled is the example with two mistakes and a warning, in the current directory.
func spoiled(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("router_id: 51", "router_id: 351", "ntp:", "#", "10.77.1.12}", "10.77.1.11}").Replace(string(data))
	t.Chdir(t.TempDir())
	if err := os.WriteFile("cluster.yaml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCheckTellsAllMistakesAndEndsWithThree(t *testing.T) {
	spoiled(t)
	code, stdout, stderr := call(t, "check")
	if code != 3 || stdout != "" {
		t.Errorf("exit status %d, %q", code, stdout)
	}
	for _, want := range []string{"vips[0].router_id: 351", "nodes[1].nics[0].address: the address 10.77.1.11", "warning: ntp:", "2 mistakes"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in\n%s", want, stderr)
		}
	}
}

func TestCheckTellsMistakesAsJSON(t *testing.T) {
	absolute, err := filepath.Abs(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	spoiled(t)
	code, stdout, _ := call(t, "check", "--json")
	var v verdict
	if err := json.Unmarshal([]byte(stdout), &v); err != nil {
		t.Fatalf("%v\n%s", err, stdout)
	}
	if code != 3 || v.OK || v.Plan != nil || len(v.Mistakes) != 2 || len(v.Warnings) != 1 || v.Mistakes[0].Line == 0 || v.Mistakes[0].Mend == "" {
		t.Errorf("exit status %d, %+v", code, v)
	}
	code, stdout, _ = call(t, "check", absolute, "--json")
	v = verdict{}
	if err := json.Unmarshal([]byte(stdout), &v); err != nil {
		t.Fatalf("%v\n%s", err, stdout)
	}
	if code != 0 || !v.OK || v.Plan == nil || len(v.Plan.Nodes) != 6 || v.Mistakes == nil {
		t.Errorf("exit status %d, %+v", code, v)
	}
}

func TestSchemaPrintsTheSchema(t *testing.T) {
	code, stdout, _ := call(t, "schema")
	if code != 0 || stdout != string(topology.Schema()) {
		t.Errorf("exit status %d, %q", code, stdout)
	}
}

func TestTopologyCommandsTellWrongUsage(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("HOME", t.TempDir())
	if err := os.WriteFile("key", []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("there.yaml", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"check", 3, "slipway init"},
		{"check a b", 2, "one file"},
		{"schema x", 2, "no argument"},
		{"init --yes", 2, "--subnet"},
		{"init --yes --subnet 192.0.2.0", 2, "--subnet"},
		{"init --yes --subnet 192.0.2.0/24 --dns ns", 2, "--dns"},
		{"init --yes --subnet 192.0.2.0/24 --databases 2 --balancers 0", 2, "third vote"},
		{"init --yes --subnet 192.0.2.0/24 --vip-on brokers", 2, "brokers"},
		{"init --yes --subnet 192.0.2.0/24 --key-file nowhere.pub", 2, "nowhere.pub"},
		{"init --yes --subnet 192.0.2.0/24 --key-file key", 2, "private key"},
		{"init --yes --subnet 192.0.2.0/24 there.yaml", 2, "--force"},
	} {
		code, _, stderr := call(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stderr, c.says) || strings.Contains(stderr, "c2VjcmV0") {
			t.Errorf("slipway %s: exit status %d, want %d, and %q in\n%s", c.args, code, c.code, c.says, stderr)
		}
	}
	if data, err := os.ReadFile("there.yaml"); err != nil || len(data) > 0 {
		t.Errorf("there.yaml was changed: %q, %v", data, err)
	}
	if _, err := os.Stat("cluster.yaml"); err == nil {
		t.Error("a refused init left a file")
	}
}

func TestWhatInitWritesPassesTheCheck(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("HOME", t.TempDir())
	key := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED ops@example.org"
	if err := os.WriteFile("ops.pub", []byte("# mine\n"+key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewSource(2))
	for range 150 {
		args := []string{"init", "--yes", "--force", "--subnet", "192.0.2.0/24"}
		for _, f := range [][]string{{"--name", "orders"}, {"--domain", "example.internal"}, {"--gateway", "192.0.2.254"}, {"--databases", strconv.Itoa(1 + r.Intn(5))},
			{"--balancers", strconv.Itoa(r.Intn(4))}, {"--vip", "192.0.2.77"}, {"--vip", "none"}, {"--vip-on", "databases"}, {"--router-id", "7"},
			{"--standby", "198.51.100.0/24"}, {"--standby-databases", strconv.Itoa(1 + r.Intn(4))}, {"--user", "ops"}, {"--key-file", "ops.pub"},
			{"--dns", "192.0.2.1", "--dns", "192.0.2.2"}, {"--ntp", "192.0.2.1,time.example.internal"}, {"--clients", "203.0.113.0/24"}, {"--database", "app"}} {
			if r.Intn(2) == 0 {
				args = append(args, f...)
			}
		}
		code, _, stderr := call(t, args...)
		if code == 2 && strings.Contains(stderr, "third vote") {
			continue // two databases and no balancer
		}
		if code != 0 {
			t.Fatalf("%v: exit status %d, %s", args, code, stderr)
		}
		if code, _, stderr = call(t, "check"); code != 0 {
			t.Fatalf("%v: check has exit status %d, %s", args, code, stderr)
		}
	}
}

func TestInitAsksForWhatNoFlagGives(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("HOME", t.TempDir())
	var prompts strings.Builder
	command := initCommand()
	app := newApp()
	app.Commands, app.ErrWriter = []*cli.Command{command}, &prompts
	command.Action = func(c *cli.Context) error {
		return initialise(c, strings.NewReader("orders\n192.0.2.0/24\n\n\nnone\n\n192.0.2.1\n192.0.2.1, 192.0.2.2\n\n\nclerk\n"))
	}
	if err := app.Run([]string{"slipway", "init", "--domain", "example.internal", "--databases", "5"}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(prompts.String(), "Domain") || !strings.Contains(prompts.String(), "How many nodes run HAProxy [2]: ") {
		t.Errorf("asked: %s", prompts.String())
	}
	got, err := topology.Load("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "orders" || got.Domain != "example.internal" || len(got.Nodes) != 7 || len(got.VIPs) != 0 || len(got.NTP) != 2 || got.Databases[0].Name != "clerk" {
		t.Errorf("%+v", got)
	}
}

func TestInitIsNotContentWithHalfTheAnswers(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("HOME", t.TempDir())
	command := initCommand()
	command.Action = func(c *cli.Context) error { return initialise(c, strings.NewReader("orders\n")) }
	app := newApp()
	app.Commands, app.ErrWriter = []*cli.Command{command}, &strings.Builder{}
	if err := app.Run([]string{"slipway", "init"}); fault.Of(err) != fault.Usage || !strings.Contains(err.Error(), "answers ended") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat("cluster.yaml"); err == nil {
		t.Error("there is a file")
	}
}
