package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

func TestAProgramIsKnownByItsCommandLine(t *testing.T) {
	for program, lines := range map[string]struct{ its, others []string }{
		"postgres": {
			its:    []string{"/usr/lib/postgresql/17/bin/postgres -D /var/lib/postgresql", "postgres: app: checkpointer ", "postgres"},
			others: []string{"/usr/bin/python3 /usr/bin/patroni /etc/patroni/postgres.yml", "/bin/bash -c pkill postgres", "/usr/bin/postgres_exporter"},
		},
		"patroni": {
			its:    []string{"/usr/bin/python3 /usr/bin/patroni /etc/patroni/config.yml", "python3.13 /usr/bin/patroni x"},
			others: []string{"/usr/bin/patronictl list", "vim /usr/bin/patroni", "postgres: patroni idle"},
		},
		"session": {its: []string{"/bin/sh /usr/lib/desktop/session"}, others: []string{"/bin/bash -o pipefail -c pkill session", "/bin/bash -c session", "sh -c /usr/lib/desktop/session"}},
		"etcd":    {its: []string{"/usr/bin/etcd --config-file /etc/etcd.yml"}, others: []string{"/usr/bin/etcdctl get x", "firstboot etcd"}},
	} {
		pattern, err := commandLineOf(program)
		if err != nil {
			t.Fatal(err)
		}
		re := regexp.MustCompile(pattern)
		for _, line := range lines.its {
			if !re.MatchString(line) {
				t.Errorf("%q is not taken for %s", line, program)
			}
		}
		for _, line := range lines.others {
			if re.MatchString(line) {
				t.Errorf("%q is taken for %s", line, program)
			}
		}
	}
	if _, err := commandLineOf("x y"); fault.Of(err) != fault.Usage {
		t.Error(err)
	}
}

// parts is a cluster of four nodes without machines, and who hears whom in it.
func parts(t *testing.T) (*Cluster, func() string) {
	t.Helper()
	top := &topology.Topology{Name: "parts"}
	sw := ether.New(ether.Options{})
	t.Cleanup(sw.Close)
	c := &Cluster{topology: top, network: &network{sw: sw}}
	var ports []*ether.Port
	var mu sync.Mutex
	heard := map[string]bool{}
	done := make(chan struct{}, 64)
	for _, name := range []string{"a", "b", "c", "gateway"} {
		if name != "gateway" {
			n := topology.Node{Name: name, NICs: []topology.NIC{{}}}
			c.members = append(c.members, &clusterNode{node: n, Machine: &Machine{vm: VM{Name: name}}})
		}
		p, err := sw.Join(name+"/0", ether.PortConfig{VLAN: 1}, func(frame []byte) {
			mu.Lock()
			heard[string(frame[14:15])+name[:1]] = true
			mu.Unlock()
			done <- struct{}{}
		})
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, p)
	}
	names := "abcg"
	return c, func() string {
		t.Helper()
		clear(heard)
		before := sw.Stats()
		var arrive uint64
		for i, p := range ports {
			p.Send(append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, byte(i), 0x88, 0xb5}, names[i:i+1]...))
		}
		for name, s := range sw.Stats() {
			arrive += s.FramesOut - before[name].FramesOut
		}
		for range arrive {
			<-done
		}
		var deaf []string
		for i := range names {
			for j := range names {
				if path := names[i:i+1] + names[j:j+1]; i != j && !heard[path] {
					deaf = append(deaf, path)
				}
			}
		}
		return strings.Join(deaf, " ")
	}
}

func TestAPartitionPartsItsGroupsAndNobodyElse(t *testing.T) {
	c, deaf := parts(t)
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return c.Partition([]string{"a"}, []string{"b", "c"}) }, "ab ac ba ca"},
		{func() error { return c.Partition([]string{"a"}, []string{"b"}) }, "ab ba"},
		{func() error { return c.Sever([]string{"a", "b"}, []string{"c", "b"}) }, "ab ac ba bc"},
		{func() error { c.Rejoin(); c.Rejoin(); return nil }, ""},
		{func() error { return c.Sever([]string{"b"}, []string{"a"}) }, "ba"},
		{func() error { return c.Block("c") }, "ac ba bc ca cb cg gc"},
		{func() error { return c.Impair("a", ether.Path{Loss: 1}) }, "ab ac ag ba bc ca cb cg ga gc"},
		{func() error { return c.Mend("a") }, "ac ba bc ca cb cg gc"},
		{func() error { return c.Heal(context.Background()) }, ""},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := deaf(); got != step.want {
			t.Errorf("do not arrive: %s, want %s", got, step.want)
		}
	}
	if err := c.Partition([]string{"a"}, []string{"a", "b"}); fault.Of(err) != fault.Usage {
		t.Error(err)
	}
	if err := c.Sever([]string{"a"}, []string{"x"}); fault.Of(err) != fault.Usage {
		t.Error(err)
	}
}

func TestOnlyAVolatileDiskIsSlow(t *testing.T) {
	m := &Machine{vm: VM{Name: "n"}}
	if err := m.SlowDisk(time.Second, 0); fault.Of(err) != fault.Usage || fault.Mend(err) == "" {
		t.Error(err)
	}
	if _, err := m.DiskStats(); fault.Of(err) != fault.Usage {
		t.Error(err)
	}
}

// The script that fills a disk is tried on a small file system of the host.
func TestTheDiskIsFullToTheLastBlock(t *testing.T) {
	dir := t.TempDir()
	script := fmt.Sprintf("mount -t tmpfs -o size=9M tmpfs %[1]q && mkdir %[1]q/in && dir=%[1]q/in; (%[2]s\n) && (%[2]s\n) && ! head -c 4096 /dev/zero > %[1]q/more", dir, fillScript)
	out, err := exec.Command("unshare", "--map-root-user", "--mount", "bash", "-c", script).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestAVolatileDiskHearsTheGuestsFlushes(t *testing.T) {
	sw := ether.New(ether.Options{})
	defer sw.Close()
	got := commandLine(t, complete(t, VM{Volatile: true, NICs: []NIC{{Switch: sw}, {Switch: sw}}}), TCG)
	if !strings.Contains(got, "node-name=system,file.driver=nbd,file.server.type=fd,file.server.str=7,discard=unmap") || !strings.Contains(got, "drive=system") {
		t.Error(got)
	}
	if _, err := (VM{Name: "n", Dir: "d", Kernel: "k", Volatile: true}).complete(); fault.Of(err) != fault.Usage {
		t.Error(err)
	}
}

// There is no guest in it; QEMU itself writes, and what it does not flush is gone
// with the power. The disk is made larger on the way, and used without the cache
// in the end.
func TestAVolatileMachineLosesWhatWasNotFlushedAndStartsAgain(t *testing.T) {
	need(t, qemuSystem, "qemu-system-x86")
	need(t, qemuImg, "qemu-utils")
	t.Setenv(AccelEnv, "tcg")
	dir := t.TempDir()
	imageFile := filepath.Join(dir, "image.raw")
	if err := os.WriteFile(imageFile, make([]byte, 1<<20), 0o400); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	vm := VM{Name: "empty", Image: imageFile, Memory: 64 << 20, CPUs: 1, DiskSize: 64 << 20, Dir: filepath.Join(dir, strings.Repeat("deep/", 40)), Volatile: true}
	m, err := Start(ctx, vm)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	write := func(command string) {
		t.Helper()
		type device struct {
			QDev     string `json:"qdev"`
			Inserted struct {
				Node string `json:"node-name"`
			} `json:"inserted"`
		}
		var devices []device
		if err := m.QMP(ctx, "query-block", nil, &devices); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(devices, func(d device) bool { return d.Inserted.Node == "system" })
		line := map[string]any{"command-line": fmt.Sprintf("qemu-io -d %s %q", devices[i].QDev, command)}
		var said string
		if err := m.QMP(ctx, "human-monitor-command", line, &said); err != nil || said != "" {
			t.Fatalf("%s: %v %s", command, err, said)
		}
	}
	holds := func(pattern int, at string) bool {
		t.Helper()
		out, err := exec.Command("qemu-io", "-f", "qcow2", "-r", "-c", fmt.Sprintf("read -P %d %s 64k", pattern, at), m.path(systemDisk)).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "verification failed") {
			t.Fatalf("%v\n%s", err, out)
		}
		return err == nil
	}
	write("write -P 1 1M 64k")
	write("flush")
	write("write -P 2 1M 64k") // into a cluster that is there
	write("write -P 3 2M 64k") // into a new one
	m.Crash()
	if s, err := m.DiskStats(); err != nil || s.Dropped < 64<<10 {
		t.Errorf("%+v, %v", s, err)
	}
	if !holds(1, "1M") || !holds(0, "2M") {
		t.Error("what was not flushed is there, or what was flushed is not")
	}
	if err := m.ResizeDisk(ctx, 256<<20); err != nil {
		t.Fatal(err)
	}
	if err := m.SlowDisk(time.Millisecond, 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := m.Unplug(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	var network string
	if err := m.QMP(ctx, "human-monitor-command", map[string]any{"command-line": "info network"}, &network); err != nil || m.Plug(ctx) != nil || m.Unplug(ctx, 7) == nil {
		t.Error(network, err)
	}
	write("write -P 4 200M 64k")
	if err := m.QMP(ctx, "quit", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitForPowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	if s, err := m.DiskStats(); err != nil || s.Dropped != 0 || !holds(4, "200M") {
		t.Errorf("a machine that ended in good order has lost %+v, %v", s, err)
	}
	if err := runImg(ctx, "check", "-q", m.path(systemDisk)); err != nil {
		t.Error(err)
	}
	if err := m.BreakDisk(); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(ctx); err == nil {
		t.Error("QEMU opens a disk that answers with errors")
	}
	if err := m.MendDisk(); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.ResizeDisk(ctx, 1<<40); fault.Of(err) != fault.Usage || fault.Mend(err) == "" {
		t.Error(err)
	}
	m.Crash()
	vm.Volatile = false
	plain, err := Start(ctx, vm)
	if err != nil {
		t.Fatal(err)
	}
	plain.Close()
}
