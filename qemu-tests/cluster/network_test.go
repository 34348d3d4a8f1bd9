package clustertest

import (
	"encoding/json"
	"fmt"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

// readyTime bounds the wait for nodes that boot at the same time under TCG.
const readyTime = 8 * time.Minute

// smallest is a topology with two gateways, the smallest appliances, and what
// gateways need to make sense, which is not started.
const smallest = `slipway: 1
name: smallest
domain: lab.example.internal
networks:
  lan: {subnet: 10.77.1.0/24, gateway: 10.77.1.1}
dns: {servers: [10.77.1.1], search: [lab.example.internal]}
ntp: [10.77.1.1]
users:
  - {name: ops, keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED ops@example.org]}
vips:
  - {name: database, address: 10.77.1.10, on: balancers, router_id: 51, names: [db.example.internal]}
nodes:
  - {name: db1, role: db-master, nics: [{network: lan, address: 10.77.1.11}]}
  - {name: lb1, role: balancer, nics: [{network: lan, address: 10.77.1.21}]}
  - {name: br1, role: broker, nics: [{network: lan, address: 10.77.1.31}]}
  - {name: gw1, role: gateway, nics: [{network: lan, address: 10.77.1.41}]}
  - {name: gw2, role: gateway, nics: [{network: lan, address: 10.77.1.42}]}
`

// small is a database behind a balancer.
const small = `slipway: 1
name: small
domain: lab.example.internal
networks:
  lan: {subnet: 10.77.1.0/24, gateway: 10.77.1.1}
dns: {servers: [10.77.1.1], search: [lab.example.internal]}
ntp: [10.77.1.1]
clients: [10.77.1.0/24]
users:
  - {name: ops, keys: [%q]}
vips:
  - {name: database, address: 10.77.1.10, on: balancers, router_id: 51, names: [db.example.internal]}
databases:
  - {name: app, owner: app}
nodes:
  - {name: db1, role: db-master, size: {memory: 1GiB}, nics: [{network: lan, address: 10.77.1.11}]}
  - {name: lb1, role: balancer, size: {memory: 512MiB}, nics: [{network: lan, address: 10.77.1.21}]}
`

// another is a balancer that is added later.
const another = "  - {name: lb2, role: balancer, size: {memory: 512MiB}, nics: [{network: lan, address: 10.77.1.22}]}\n"

// TestAnOrdinaryUserRunsALab tells the story of a small cluster through the command.
func TestAnOrdinaryUserRunsALab(t *testing.T) {
	u := newUser(t)
	u.write("cluster.yaml", fmt.Sprintf(small, u.key()))
	u.shareImages(images.Path(t, "balancer", "qcow2"))
	u.endLabs()
	u.mkdir("seeds")
	u.says(u.fails(4, "up", "cluster.yaml", "--images", "images", "--seeds", "seeds", "lb1"), "no seed of the node db1")
	if err := os.Remove(u.path("seeds")); err != nil {
		t.Fatal(err)
	}

	out := u.runs("up", "cluster.yaml", "--images", "images", "--timeout", readyTime.String())
	u.says(out, "2 nodes ready, 2 of them started now")

	u.part("the commands that up names reach the database", func(u *user) {
		_, client, ok := strings.Cut(out, "  psql ")
		client, _, _ = strings.Cut(client, "\n")
		_, secret, ok2 := strings.Cut(out, "password:  slipway ")
		secret, _, _ = strings.Cut(secret, "\n")
		if !ok || !ok2 {
			u.Fatalf("up names no command for the database:\n%s", out)
		}
		psql := exec.Command("sh", "-c", "psql -XqtA "+client+" -c 'create table t (n int); insert into t values (42); select n from t'")
		psql.Env = append(os.Environ(), "PGPASSWORD="+strings.TrimSpace(u.runs(strings.Fields(secret)...)))
		if got, err := psql.CombinedOutput(); err != nil || strings.TrimSpace(string(got)) != "42" {
			u.Errorf("psql %s: %v\n%s", client, err, got)
		}
	})
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	u.part("status shows the cluster, once or until Ctrl-C, for people and for programs", func(u *user) {
		// What a node says of its virtual addresses is some seconds old.
		var text string
		for deadline := time.Now().Add(readyTime); ; time.Sleep(askAgain) {
			code, out, said := u.call("status", "cluster.yaml")
			if text = out; code == 0 {
				break
			}
			if time.Now().After(deadline) {
				u.Fatalf("status: exit status %d\n%s%s", code, out, said)
			}
		}
		for _, want := range []string{"db1", "leader TL 1", "lb1", "quorum"} {
			u.says(text, want)
		}
		watch := u.command("status", "cluster.yaml", "--watch", "--json")
		lines, err := watch.StdoutPipe()
		if err != nil {
			u.Fatal(err)
		}
		if err := watch.Start(); err != nil {
			u.Fatal(err)
		}
		documents := json.NewDecoder(lines)
		for range 2 {
			var o overview.Overview
			if err := documents.Decode(&o); err != nil || o.Cluster != "small" || len(o.Nodes) != 2 {
				u.Errorf("%+v, %v", o, err)
			}
		}
		watch.Process.Signal(os.Interrupt)
		io.Copy(io.Discard, lines)
		if err := watch.Wait(); err != nil {
			u.Errorf("status --watch, interrupted: %v", err)
		}
		// Without the lab the nodes are out of reach: where no network is, nothing leaves this computer.
		direct := u.command("status", "cluster.yaml", "--direct", "--store", string(u.place().Store()))
		direct.Path, direct.Args = unshare, append([]string{unshare, "--map-root-user", "--net"}, direct.Args...)
		if said, err := direct.CombinedOutput(); direct.ProcessState.ExitCode() != 9 {
			u.Errorf("status --direct: %v\n%s", err, said)
		} else {
			u.says(string(said), "no answer from db1, lb1")
		}
	})
	u.part("nodes reach each other by name", func(u *user) {
		u.says(u.ssh("lb1", "ping -c 1 -W 5 db1"), "(10.77.1.11)")
		for name, want := range map[string]string{"db1": "10.77.1.11", "database": "10.77.1.10", "db.example.internal": "10.77.1.10"} {
			if got := strings.Fields(u.ssh("lb1", "getent ahostsv4 "+name)); len(got) == 0 || got[0] != want {
				u.Errorf("%s resolves to %v, want %s", name, got, want)
			}
		}
	})
	u.part("the gateway gives them the time", func(u *user) {
		u.ssh("db1", "until timedatectl show --property=NTPSynchronized --value | grep -qx yes; do sleep 1; done")
	})
	u.part("the exit status of a command comes through", func(u *user) {
		u.fails(7, "ssh", "cluster.yaml", "-l", "ops", "-i", "key", "db1", "--", "exit 7")
	})
	u.part("the screen and the console show the node", func(u *user) {
		picture, err := png.Decode(strings.NewReader(u.runs("screenshot", "cluster.yaml", "db1", "-o", "-")))
		if err != nil || picture.Bounds().Dx() < 640 {
			u.Errorf("the screenshot: %v", err)
		}
		u.says(u.runs("console", "cluster.yaml", "db1"), "db1 login:")
	})
	u.part("an isolated node is out of reach until that is healed", func(u *user) {
		u.says(u.runs("inject", "cluster.yaml", "isolation", "lb1"), "isolation of lb1, until: slipway heal cluster.yaml")
		u.fails(1, "ssh", "cluster.yaml", "db1", "--", "ping -c 1 -W 2 10.77.1.21")
		_, status, _ := u.call("status", "cluster.yaml") // which ends with 9: lb1 does not answer
		u.says(status, "isolation of lb1")
		u.says(u.runs("heal", "cluster.yaml"), "healed: isolation of lb1")
		u.ssh("db1", "ping -c 1 -w 30 10.77.1.21")
	})
	u.part("a power cut and a cluster without power leave the disks to the next start, and a node that was added is there", func(u *user) {
		u.ssh("lb1", "echo kept > kept && sync")
		u.order(daemon.Crash, "lb1")
		u.says(u.fails(9, "ssh", "cluster.yaml", "lb1"), "powered off")
		topology, err := os.ReadFile(u.path("cluster.yaml"))
		if err != nil {
			u.Fatal(err)
		}
		u.write("cluster.yaml", string(topology)+another)
		u.says(u.fails(4, "up", "cluster.yaml"), "bring it into the cluster: slipway add") // while it runs; when it starts, up writes seeds
		u.says(u.runs("down", "cluster.yaml"), "stopped: db1")
		u.says(u.runs("up", "cluster.yaml", "--images", "images", "--timeout", readyTime.String()), "3 nodes ready, 3 of them started now")
		u.says(u.ssh("db1", "getent ahostsv4 lb2"), "10.77.1.22")
		u.says(u.ssh("lb1", "cat kept"), "kept")
	})
	u.part("down ends everything and keeps the disks until they are destroyed", func(u *user) {
		place := u.place()
		u.says(u.runs("down", "cluster.yaml"), "stopped: db1, lb1, lb2")
		if running, err := place.Runs(); running || err != nil {
			u.Errorf("the daemon runs on: %v, %v", running, err)
		}
		if _, err := os.Stat(filepath.Join(place.Machine("db1"), "disk.qcow2")); err != nil {
			u.Error(err)
		}
		u.says(u.runs("down", "cluster.yaml", "--destroy"), "removed: "+string(place))
		if left, err := os.ReadDir(filepath.Dir(string(place))); len(left) != 0 || err != nil {
			u.Errorf("left behind: %v, %v", left, err)
		}
	})
}
