package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/datasource"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/firstboot/status"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

// machine is a node with a CD drive and a systemd that the test plays.
type machine struct {
	*nodetest.Node
	mu       sync.Mutex
	cd       []byte
	units    map[string]string // name → ActiveState
	shown    int               // times that systemctl show was asked
	remounts []string
	notified []string
	lines    []string
}

func start(t *testing.T) *machine {
	m := &machine{Node: nodetest.Start(t), units: map[string]string{"haproxy.service": "activating"}}
	role := manifest.Role{Format: 1, Name: "balancer", Summary: "for tests", Services: []string{"haproxy.service"},
		Ports: []manifest.Port{{Port: "22", Proto: "tcp", From: "any", Why: "ssh"}}}
	marker, err := json.Marshal(role)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := os.ReadFile("../../overlays/base/usr/lib/slipway/nftables.conf")
	if err != nil {
		t.Fatal(err)
	}
	m.Put(t, "/"+manifest.RolePath, string(marker))
	m.Put(t, "/usr/lib/slipway/nftables.conf", string(policy))
	return m
}

// Run implements node.Runner: systemctl and mount are the test's, all else is real.
func (m *machine) Run(ctx context.Context, c node.Command) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case c.Argv[0] == "systemctl" && c.Argv[1] == "show":
		m.shown++
		var b strings.Builder
		for name, state := range m.units {
			b.WriteString("Id=" + name + "\nLoadState=loaded\nActiveState=" + state + "\nSubState=x\nResult=exit-code\n\n")
		}
		return b.String(), nil
	case c.Argv[0] == "systemctl":
		return "running\n", nil
	case c.Argv[0] == "mount" && c.Argv[1] == "-o":
		m.remounts = append(m.remounts, c.Argv[2])
		return "", nil
	}
	return m.Node.Node.Run.Run(ctx, c)
}

func (m *machine) questions() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shown
}

// said counts the lines of the story that begin so.
func (m *machine) said(beginning string) (times int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, line := range m.lines {
		if strings.HasPrefix(line, beginning) {
			times++
		}
	}
	return times
}

func (m *machine) Show(status.Report) {}

func (m *machine) Line(_ status.Level, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lines = append(m.lines, text)
}

func (m *machine) insert(t *testing.T, userData string) {
	t.Helper()
	m.insertWithNetwork(t, userData, "")
}

func (m *machine) insertWithNetwork(t *testing.T, userData, network string) {
	t.Helper()
	var iso bytes.Buffer
	files := seed.Files{MetaData: []byte("instance-id: i\nlocal-hostname: lb1\n"), UserData: []byte(userData)}
	if network != "" {
		files.NetworkConfig = []byte(network)
	}
	if err := seed.NoCloudISO(&iso, files); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cd = iso.Bytes()
}

func (m *machine) set(unit, state string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units[unit] = state
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// powerOn runs the agent until the test ends or calls the function it returns.
func (m *machine) powerOn(t *testing.T) (off func()) {
	t.Helper()
	empty := t.TempDir()
	env := datasource.Env{
		Root: empty,
		DMI:  func(string) (string, error) { return "", nil },
		Devices: func() ([]datasource.Device, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			cd := m.cd
			return []datasource.Device{{Path: "/dev/sr0", Open: func() (datasource.Medium, error) {
				if cd == nil {
					return nil, errors.New("no medium found")
				}
				return memory{bytes.NewReader(cd)}, nil
			}}}, nil
		},
	}
	a := &Agent{
		Root: m.Root, Runner: m, Metadata: env, Watchers: []status.Watcher{m},
		Socket: m.socket(), Last: m.Path(status.LastReport),
		Notify: func(s string) { m.mu.Lock(); defer m.mu.Unlock(); m.notified = append(m.notified, s) },
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	var once sync.Once
	off = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(off)
	return off
}

func (m *machine) socket() string { return filepath.Join(m.Root, "agent.sock") }

// until waits for a report that will do.
func (m *machine) until(t *testing.T, what string, will func(status.Report) bool) status.Report {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	var r status.Report
	for time.Now().Before(deadline) {
		var err error
		if r, _, err = status.Ask(t.Context(), m.socket(), "/nonexistent"); err == nil && will(r) {
			return r
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("never %s; the last report was:\n%s", what, r.Text(time.Now(), status.Plain))
	return r
}

func (m *machine) untilState(t *testing.T, s status.State) status.Report {
	t.Helper()
	return m.until(t, string(s), func(r status.Report) bool { return r.State == s })
}

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFl8fpE1MJ5Nf2Xj1kYNfWwG7w0o9oqP8qmT8cB4n0ab ada@example"

func TestWithoutMetadataTheNodeSaysWhatIsMissingAndTakesItUpWhenItAppears(t *testing.T) {
	m := start(t)
	m.powerOn(t)
	r := m.untilState(t, status.Unconfigured)
	r = m.until(t, "full of advice", func(r status.Report) bool { return len(r.Advice) > 0 })
	if !strings.Contains(strings.Join(r.Advice, "\n"), "cidata") {
		t.Errorf("advice: %q", r.Advice)
	}
	if !strings.HasPrefix(m.File(t, "/etc/hostname"), "balancer") {
		t.Errorf("host name %q", m.File(t, "/etc/hostname"))
	}
	if !strings.Contains(m.File(t, "/etc/systemd/network/10-slipway-default.network"), "DHCP=") {
		t.Error("no DHCP without metadata")
	}
	m.insert(t, "#cloud-config\nssh_authorized_keys: ['"+key+"']\n")
	r = m.until(t, "waiting for haproxy", func(r status.Report) bool {
		return r.State == status.Converging && slices.ContainsFunc(r.Steps, func(s status.Step) bool {
			return s.Name == "role" && s.State == status.Running && strings.Contains(s.WaitingFor, "haproxy.service")
		})
	})
	m.set("haproxy.service", "active")
	r = m.untilState(t, status.Ready)
	if got := m.File(t, "/etc/hostname"); got != "lb1\n" {
		t.Errorf("host name %q", got)
	}
	if !slices.Equal(r.Logins, []string{"slipway"}) || len(r.HostKeys) != 2 || r.Datasource != "NoCloud (/dev/sr0)" {
		t.Errorf("report: %+v", r)
	}
	if !slices.ContainsFunc(m.lines, func(l string) bool { return strings.HasPrefix(l, "node ready (role balancer, ") }) {
		t.Errorf("lines: %q", m.lines)
	}
	if !slices.Contains(m.notified, "READY=1") {
		t.Errorf("systemd was told: %q", m.notified)
	}
}

func TestMetadataIsKeptWhenItsCDIsGone(t *testing.T) {
	m := start(t)
	m.set("haproxy.service", "active")
	m.insert(t, "#cloud-config\nssh_authorized_keys: ['"+key+"']\n")
	off := m.powerOn(t)
	m.untilState(t, status.Ready)
	off()
	m.cd = nil
	m.powerOn(t)
	r := m.untilState(t, status.Ready)
	if !strings.Contains(r.Datasource, "kept") || m.File(t, "/etc/hostname") != "lb1\n" {
		t.Errorf("datasource %q, host name %q", r.Datasource, m.File(t, "/etc/hostname"))
	}
	for _, s := range r.Steps {
		if len(s.Changed) > 0 {
			t.Errorf("the second boot changed in %s: %q", s.Name, s.Changed)
		}
	}
	if info, err := os.Stat(m.Path(SeedPath)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v %v", SeedPath, info.Mode(), err)
	}
}

func TestAMistakeInTheMetadataMakesTheNodeDegradedAndTheRestWorks(t *testing.T) {
	m := start(t)
	m.set("haproxy.service", "active")
	m.insert(t, "#cloud-config\nhostnam: x\npackages: [vim]\nusers: [{name: ada, sudo: 'ALL=', ssh_authorized_keys: ['"+key+"']}]\n")
	m.powerOn(t)
	r := m.untilState(t, status.Degraded)
	var failed []string
	for _, s := range r.Steps {
		if s.State == status.Broken {
			failed = append(failed, s.Name)
		}
	}
	if !slices.Equal(failed, []string{"users"}) || len(r.Warnings) != 2 {
		t.Errorf("failed %q, warnings %v", failed, r.Warnings)
	}
	if !slices.Equal(r.Logins, []string{"ada"}) {
		t.Errorf("logins %q", r.Logins)
	}
}

const (
	soundNetwork  = "version: 2\nethernets:\n  ens3:\n    addresses: [192.0.2.10/24]\n"
	brokenNetwork = "version: 2\nethernets:\n  ens3:\n    addresses: [192.0.2.10/99]\n"
)

func TestABrokenNetworkConfigurationMakesTheNodeDegradedAndLetsPeopleIn(t *testing.T) {
	m := start(t)
	m.set("haproxy.service", "active")
	m.insertWithNetwork(t, "#cloud-config\nssh_authorized_keys: ['"+key+"']\n", brokenNetwork)
	m.powerOn(t)
	r := m.untilState(t, status.Degraded)
	if !slices.Equal(r.Logins, []string{"slipway"}) || m.File(t, "/etc/hostname") != "lb1\n" {
		t.Errorf("logins %q, host name %q", r.Logins, m.File(t, "/etc/hostname"))
	}
	if !strings.Contains(m.File(t, "/etc/systemd/network/10-slipway-default.network"), "DHCP=") {
		t.Error("no DHCP")
	}
	mistake := slices.IndexFunc(r.Warnings, func(w node.Warning) bool { return w.Serious })
	if mistake < 0 || r.Warnings[mistake].Where != "NoCloud (/dev/sr0): network-config:4" {
		t.Errorf("warnings: %+v", r.Warnings)
	}
	if screen := r.Screen(time.Now()); !strings.Contains(screen, "network-config:4") || !strings.Contains(screen, "every network card uses DHCP") {
		t.Errorf("the console says\n%s", screen)
	}
	m.insertWithNetwork(t, "#cloud-config\nssh_authorized_keys: ['"+key+"']\n", soundNetwork)
	m.untilState(t, status.Ready)
	if got := m.File(t, "/etc/systemd/network/10-slipway-ens3.network"); !strings.Contains(got, "192.0.2.10/24") {
		t.Errorf("network after it was put right:\n%s", got)
	}
}

func TestANodeThatHadANetworkKeepsItWhenTheNewOneIsBroken(t *testing.T) {
	m := start(t)
	m.set("haproxy.service", "active")
	m.insertWithNetwork(t, "#cloud-config\nssh_authorized_keys: ['"+key+"']\n", soundNetwork)
	off := m.powerOn(t)
	m.untilState(t, status.Ready)
	off()
	m.insertWithNetwork(t, "#cloud-config\nusers: [{name: ada, ssh_authorized_keys: ['"+key+"']}]\n", brokenNetwork)
	for range 2 {
		off = m.powerOn(t)
		r := m.untilState(t, status.Degraded)
		if !slices.Equal(r.Logins, []string{"ada"}) {
			t.Errorf("logins %q: the rest of the new metadata is not in effect", r.Logins)
		}
		if got := m.File(t, "/etc/systemd/network/10-slipway-ens3.network"); !strings.Contains(got, "192.0.2.10/24") {
			t.Errorf("network:\n%s", got)
		}
		off()
	}
}

func TestAServiceThatFailsIsTheNodesStateUntilItIsBack(t *testing.T) {
	m := start(t)
	m.set("haproxy.service", "failed")
	m.insert(t, "#cloud-config\nssh_authorized_keys: ['"+key+"']\n")
	m.powerOn(t)
	r := m.untilState(t, status.Failed)
	i := slices.IndexFunc(r.Steps, func(s status.Step) bool { return s.Name == "role" })
	if !strings.Contains(r.Steps[i].Error, "journalctl -u haproxy.service") {
		t.Errorf("role: %+v", r.Steps[i])
	}
	asked := m.questions()
	m.until(t, "asking systemd again", func(status.Report) bool { return m.questions() >= asked+3 })
	if said := m.said("role: haproxy.service failed"); said != 1 {
		t.Errorf("the same failure was told %d times", said)
	}
	m.set("haproxy.service", "active")
	m.untilState(t, status.Ready)
	m.set("haproxy.service", "failed")
	m.untilState(t, status.Failed)
	m.set("haproxy.service", "active")
	m.untilState(t, status.Ready)
}

func TestAVersionOnTrialIsConfirmedOnceItsRoleIsUp(t *testing.T) {
	m := start(t)
	facts, err := json.Marshal(bootfacts.Facts{Format: 1, Version: "v2", Good: "v1", Try: "v2", Tries: 2, Trial: true})
	if err != nil {
		t.Fatal(err)
	}
	m.Put(t, bootfacts.Path, string(facts))
	block, err := grubenv.Env{Good: "v1"}.Start("v2").Bytes()
	if err != nil {
		t.Fatal(err)
	}
	m.Put(t, bootfacts.ESPDir+"/grub/grubenv", string(block))
	before, err := os.Stat(m.Path(bootfacts.ESPDir + "/grub/grubenv"))
	if err != nil {
		t.Fatal(err)
	}
	env := func() grubenv.Env {
		e, err := grubenv.Parse([]byte(m.File(t, bootfacts.ESPDir+"/grub/grubenv")))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	m.insert(t, "#cloud-config\nbogus: a mistake of the user is no reason to fall back\n")
	m.powerOn(t)
	m.until(t, "waiting for the role", func(r status.Report) bool {
		return r.Trial && slices.ContainsFunc(r.Steps, func(s status.Step) bool { return s.Name == "role" && s.WaitingFor != "" })
	})
	if !env().OnTrial("v2") {
		t.Error("confirmed before the role was up")
	}
	m.set("haproxy.service", "active")
	r := m.untilState(t, status.Degraded)
	if e := env(); e.Good != "v2" || e.Try != "" || r.Trial {
		t.Errorf("after confirmation: %+v, trial %v", e, r.Trial)
	}
	after, err := os.Stat(m.Path(bootfacts.ESPDir + "/grub/grubenv"))
	if err != nil || !os.SameFile(before, after) {
		t.Error("the block must be written in place, but it is another file")
	}
	if !slices.Equal(m.remounts, []string{"remount,rw", "remount,ro"}) {
		t.Errorf("remounts: %q", m.remounts)
	}
}
