package vip

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

const overlay = "../../../overlays/vip"

// machine is a node with a network stack of its own, and a real keepalived.
type machine struct {
	*nodetest.Node
	t          *testing.T
	name       string
	space      *os.Process // holds the network namespace
	card       string
	keepalived *exec.Cmd
}

// cluster is a plan with an address on two balancers, or on two databases.
func cluster(t testing.TB, change func(*plan.Plan)) (*plan.Plan, *pki.Authority) {
	t.Helper()
	authority, err := pki.NewAuthority("cluster", "example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p := &plan.Plan{Format: plan.Format, Cluster: "example", Generation: 1, Sites: []plan.Site{{Name: "a"}}}
	for i, name := range []string{"a-db1", "a-db2", "a-lb1", "a-lb2"} {
		role := map[bool]string{true: "balancer", false: "db-replica"}[i > 1]
		address := netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)})
		p.Nodes = append(p.Nodes, plan.Node{Name: name, Role: role, Site: "a", Address: address, Addresses: []netip.Prefix{netip.PrefixFrom(address, 24)}})
	}
	p.VIPs = []plan.VIP{{Name: "db", Site: "a", Address: netip.MustParsePrefix("192.0.2.10/24"), On: plan.OnBalancers, RouterID: 51, ReadWrite: 5432, ReadOnly: 5433}}
	if change != nil {
		change(p)
	}
	return p, authority
}

// belong is a node's part in the cluster.
func belong(t testing.TB, p *plan.Plan, authority *pki.Authority, name string) *member.Member {
	t.Helper()
	pair, err := authority.Pair()
	if err != nil {
		t.Fatal(err)
	}
	self, err := p.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return &member.Member{Block: member.Block{Cluster: p.Cluster, Node: name, Authority: pair.Certificate}, CA: authority.Cert, Plan: p, Self: self, Site: p.Sites[0]}
}

// boot makes a machine of the plan. Its check asks whether /run/serves is there,
// in place of curl.
func boot(t *testing.T, p *plan.Plan, authority *pki.Authority, name string) *machine {
	t.Helper()
	m := &machine{Node: nodetest.Start(t), t: t, name: name, card: "eth0"}
	m.Member = belong(t, p, authority, name)
	for _, file := range []string{"/usr/lib/slipway/vip-check", "/usr/lib/slipway/vip-drop", "/etc/default/keepalived"} {
		data, err := os.ReadFile(overlay + file)
		m.must(err)
		m.Put(t, file, string(data))
		m.must(os.Chmod(m.Path(file), 0o755))
	}
	m.Put(t, "/usr/bin/curl", "#!/bin/sh\necho $USER >>/run/asked/log\n[ -e /run/serves ] || exit 22\n")
	m.must(os.Chmod(m.Path("/usr/bin/curl"), 0o755))
	m.Output(t, "useradd", "--system", "--uid", "850", "--user-group", "keepalived_script")
	m.Output(t, "install", "-d", "-o", "keepalived_script", "/run/asked")
	space := exec.Command("unshare", "--net", "sleep", "infinity")
	m.must(space.Start())
	m.space = space.Process
	t.Cleanup(func() { space.Process.Kill(); space.Wait() })
	m.until("a network of its own", func() bool {
		own, _ := os.Readlink("/proc/self/ns/net")
		its, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", m.space.Pid))
		return its != "" && its != own
	})
	m.Node.Node.Run = node.Exec{Prefix: []string{"nsenter", "--net=/proc/" + strconv.Itoa(m.space.Pid) + "/ns/net", "chroot", m.Root}}
	t.Cleanup(m.kill)
	return m
}

// join connects the machines by a bridge and gives them their addresses.
func join(t *testing.T, machines ...*machine) {
	t.Helper()
	host := func(argv ...string) {
		t.Helper()
		if out, err := exec.Command("ip", argv...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(argv, " "), err, out)
		}
	}
	host("link", "add", "lan", "type", "bridge", "forward_delay", "0", "stp_state", "0")
	t.Cleanup(func() { exec.Command("ip", "link", "delete", "lan").Run() })
	host("link", "set", "lan", "up")
	for i, m := range machines {
		port := fmt.Sprintf("port%d", i)
		host("link", "add", port, "type", "veth", "peer", "name", m.card, "netns", strconv.Itoa(m.space.Pid))
		t.Cleanup(func() { exec.Command("ip", "link", "delete", port).Run() })
		host("link", "set", port, "master", "lan", "up")
		m.Output(t, "ip", "link", "set", "lo", "up")
		m.Output(t, "ip", "address", "add", m.Member.Self.Addresses[0].String(), "dev", m.card)
		m.Output(t, "ip", "link", "set", m.card, "up")
	}
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) until(what string, is func() bool) {
	m.t.Helper()
	deadline := time.After(time.Minute)
	for !is() {
		select {
		case <-deadline:
			m.t.Fatalf("%s: never: %s", m.name, what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// configure renders the configuration as the steps do, and has keepalived judge it.
func (m *machine) configure() {
	m.t.Helper()
	m.must(Configure{}.Apply(m.t.Context(), m.Node.Node))
	config, err := render(m.Member, func(netip.Addr) (string, error) { return m.card, nil })
	m.must(err)
	m.must(judge(m.t.Context(), m.Node.Node, config))
	_, err = m.Write(configPath, 0o644, []byte(config))
	m.must(err)
}

// setting is what the unit's drop-in says under a key.
func (m *machine) setting(key string) string {
	m.t.Helper()
	unit, err := os.ReadFile(overlay + "/usr/lib/systemd/system/keepalived.service.d/10-slipway.conf")
	m.must(err)
	for line := range strings.Lines(string(unit)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return value
		}
	}
	m.t.Fatalf("the unit has no %s", key)
	return ""
}

// start runs keepalived as the unit does: with its capabilities, and when it has
// ended, what ExecStopPost names is run.
func (m *machine) start() {
	m.t.Helper()
	m.configure()
	bounds := "-all"
	for _, capability := range strings.Fields(m.setting("CapabilityBoundingSet")) {
		bounds += ",+" + strings.ToLower(strings.TrimPrefix(capability, "CAP_"))
	}
	prefix := m.Node.Node.Run.(node.Exec).Prefix
	argv := append(slices.Clone(prefix), "setpriv", "--bounding-set="+bounds, "--no-new-privs", "keepalived", "--dont-fork", "--vrrp", "--log-console", "--log-detail", "--pid", "/run/"+m.name+".pid", "--vrrp_pid", "/run/"+m.name+"-vrrp.pid")
	log, err := os.Create(m.t.TempDir() + "/log")
	m.must(err)
	m.keepalived = exec.Command(argv[0], argv[1:]...)
	m.keepalived.Stdout, m.keepalived.Stderr = log, log
	m.must(m.keepalived.Start())
	m.t.Cleanup(func() {
		if text, err := os.ReadFile(log.Name()); err == nil && (m.t.Failed() || testing.Verbose()) {
			m.t.Logf("%s: %s", m.name, text)
		}
	})
}

// kill ends keepalived as the kernel's out-of-memory killer does.
func (m *machine) kill() {
	if m.keepalived == nil {
		return
	}
	m.keepalived.Process.Kill()
	m.keepalived.Wait()
	m.keepalived = nil
	_, err := m.Command(context.Background(), m.setting("ExecStopPost"))
	m.must(err)
}

func (m *machine) serve(yes bool) {
	m.t.Helper()
	if yes {
		m.Put(m.t, "/run/serves", "")
		return
	}
	m.must(os.Remove(m.Path("/run/serves")))
}

// holds reports whether the machine has the address.
func (m *machine) holds() bool {
	out, err := m.Command(context.Background(), "ip", "-oneline", "address", "show", "to", alone(m.Member.Plan.VIPs[0]).String())
	m.must(err)
	return out != ""
}

// watch fails the test if two machines ever hold the address at once; it looks
// at both again and again until the test ends. The first is asked again after the
// second, so that an address on its way is not counted twice.
func watch(t *testing.T, a, b *machine) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if a.holds() && b.holds() && a.holds() {
				t.Errorf("%s and %s both hold the address", a.name, b.name)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() { stop(); <-done })
}

func TestAnAddressMovesWhenTheServiceOrItsKeeperFailsAndNeverBack(t *testing.T) {
	p, authority := cluster(t, nil)
	first, second := boot(t, p, authority, "a-lb1"), boot(t, p, authority, "a-lb2")
	join(t, first, second)
	watch(t, first, second)

	first.start()
	second.start()
	second.serve(true)
	second.until("the one that serves takes the address", second.holds)

	first.serve(true) // has the higher priority
	second.serve(false)
	first.until("the address moves when the service fails", first.holds)
	second.until("the failed one gives it up", func() bool { return !second.holds() })

	second.serve(true)
	first.kill()
	if first.holds() {
		t.Error("the address outlives keepalived")
	}
	second.until("the address moves when keepalived is killed", second.holds)

	first.start()
	first.until("the first one is ready again", func() bool { return first.states("BACKUP") > 0 })
	first.asked(4) // eight seconds; without advertisements it would have taken the address after four
	if !second.holds() || first.states("MASTER") > 0 {
		t.Error("the address moved back to the higher priority")
	}

	second.serve(false)
	first.until("it takes the address when it must", first.holds)
}

func TestAKeeperThatLosesItsWorkerLeavesNoAddressBehind(t *testing.T) {
	p, authority := cluster(t, nil)
	first, second := boot(t, p, authority, "a-lb1"), boot(t, p, authority, "a-lb2")
	join(t, first, second)
	watch(t, first, second)
	first.serve(true)
	first.start()
	first.until("the address is there", first.holds)
	second.serve(true)
	second.start()
	second.until("the other one is ready", func() bool { return second.states("BACKUP") > 0 })

	pid, err := strconv.Atoi(strings.TrimSpace(first.File(t, "/run/a-lb1-vrrp.pid")))
	first.must(err)
	first.must(syscall.Kill(pid, syscall.SIGKILL))
	first.asked(2)
	first.until("one of them has the address", func() bool { return first.holds() || second.holds() })
}

// A holder that the other one does not hear keeps the address until its check fails, and
// whenever it hears the other one it tells everybody that the address is its own. When it
// has given up, nothing but the new holder's next word brings clients there.
func TestClientsFindTheNewHolderAlthoughTheFormerOneHadTheLastWord(t *testing.T) {
	p, authority := cluster(t, nil)
	first, second := boot(t, p, authority, "a-lb1"), boot(t, p, authority, "a-lb2")
	join(t, first, second)
	client := func(argv ...string) string {
		t.Helper()
		out, err := exec.Command("ip", argv...).Output()
		must(t, err)
		return string(out)
	}
	client("address", "add", "192.0.2.1/24", "dev", "lan")
	// at reports whether the client believes the address to be at a machine.
	at := func(m *machine) bool {
		mac := strings.Fields(m.Output(t, "ip", "-brief", "link", "show", "dev", m.card))[2]
		return strings.Contains(client("neighbour", "show", "192.0.2.10", "dev", "lan"), mac)
	}
	first.serve(true)
	first.start()
	first.until("the address is there", first.holds)
	if conn, err := net.DialTimeout("tcp", "192.0.2.10:5432", 5*time.Second); err == nil {
		conn.Close() // nobody listens; it is known where from now on
	}
	second.serve(true)
	second.start()
	second.until("the other one is ready", func() bool { return second.states("BACKUP") > 0 })

	first.Output(t, "nft", "table ip mute { chain out { type filter hook output priority 0; ip daddr 192.0.2.14 drop; }; }")
	second.until("the address is taken by who hears nobody", second.holds)
	second.asked(4) // eight seconds: it has said so, and five seconds later once more
	first.until("the client believes the former holder", func() bool { return at(first) })
	first.serve(false)
	first.until("the former holder gives up", func() bool { return !first.holds() })
	if !at(first) {
		t.Error("the client knew better already; this test proves nothing")
	}
	for deadline := time.Now().Add(25 * time.Second); !at(second); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the client still goes to where the address is no more: %s", client("neighbour", "show", "dev", "lan"))
		}
	}
}

func TestAnAddressMovesBetweenSitesAndTheNewestPromotionKeepsIt(t *testing.T) {
	p, authority := cluster(t, func(p *plan.Plan) {
		p.Sites = []plan.Site{{Name: "a"}, {Name: "b", StandbyOf: "a"}}
		for i := range p.Nodes {
			if i%2 == 1 { // a-db2 and a-lb2
				p.Nodes[i].Name, p.Nodes[i].Site = strings.Replace(p.Nodes[i].Name, "a-", "b-", 1), "b"
			}
		}
		p.VIPs[0].Sites = []string{"a", "b"}
	})
	here, there := boot(t, p, authority, "a-lb1"), boot(t, p, authority, "b-lb2")
	join(t, here, there)
	here.serve(true) // as HAProxy answers where the writes are
	here.start()
	here.until("the address is where the writes are", here.holds)
	there.start()
	there.until("the standby site looks on", func() bool { return there.Exists("/run/asked/log") })
	if config := here.File(t, configPath); !strings.Contains(config, writesURL) {
		t.Errorf("it asks for something else:\n%s", config)
	}

	// The other site is promoted while the two do not see each other.
	cable := func(argv ...string) {
		if out, err := exec.Command("ip", append([]string{"link", "set", "port1"}, argv...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	cable("nomaster")
	newer := *p
	newer.Sites = slices.Clone(p.Sites)
	must(t, newer.Promote("b", 2))
	newer.Apart++
	there.Member.Plan = &newer
	there.serve(true)
	there.configure()
	must(t, there.keepalived.Process.Signal(syscall.SIGHUP))
	there.until("the promoted site has the address", there.holds)
	if !here.holds() {
		t.Error("the site that was given up has let go of the address without a word of that; this test proves nothing")
	}
	cable("master", "lan")
	here.until("the older plan gives way", func() bool {
		if !there.holds() {
			t.Fatal("the promoted site let go of the address")
		}
		return !here.holds()
	})

	// A planned switch brings the address back.
	watch(t, here, there)
	back := newer
	back.Sites = slices.Clone(newer.Sites)
	must(t, back.Promote("a", 3))
	back.Apart = 0
	for _, m := range []*machine{here, there} {
		m.Member.Plan = &back
		m.configure()
		must(t, m.keepalived.Process.Signal(syscall.SIGHUP))
	}
	there.serve(false)
	here.until("the address is back", here.holds)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// states counts how often keepalived has entered a state.
func (m *machine) states(state string) int {
	log, err := os.ReadFile(m.keepalived.Stdout.(*os.File).Name())
	m.must(err)
	return strings.Count(string(log), "Entering "+state+" STATE")
}

// asked waits until the check has run so many times more.
func (m *machine) asked(times int) {
	m.t.Helper()
	count := func() int {
		data, err := os.ReadFile(m.Path("/run/asked/log"))
		m.must(err)
		return strings.Count(string(data), "\n")
	}
	before := count()
	m.until("its check runs", func() bool { return count() >= before+times })
}
