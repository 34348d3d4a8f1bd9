package product

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/internal/fault"
)

// portal is a product with all that the agent does for one.
var portal = manifest.Product{
	Setup:  manifest.Setup{Command: []string{"/usr/lib/portal/setup"}},
	Shared: []manifest.SharedFile{{Path: settings, User: "www-data", Mode: "0640", Restart: []string{"portal.service"}}},
	Units:  []string{"portal.service"},
}

const settings = "/var/server/settings.py"

// site is a plan with one database and three brokers, and a gateway.
func site() *plan.Plan {
	p := roletest.Plan()
	p.Sites, p.Nodes = p.Sites[:1], p.Nodes[:1]
	p.Sites[0].Consensus = []string{"a-db1"}
	p.Databases[0].UsedBy = []string{"broker"}
	for i, name := range []string{"a-br1", "a-br2", "a-br3", "a-gw1"} {
		role := "broker"
		if name == "a-gw1" {
			role = "gateway"
		}
		address := netip.AddrFrom4([4]byte{10, 77, 1, byte(31 + i)})
		p.Nodes = append(p.Nodes, plan.Node{Name: name, Role: role, Site: "a", Address: address, Addresses: []netip.Prefix{netip.PrefixFrom(address, 24)}})
	}
	return p
}

// street is the nodes of a test as they hand things to each other.
type street struct {
	mu    sync.Mutex
	nodes map[string]*node.Node
	give  map[string]peers.Offer // by node; there is one name
}

// door is one node's side of the street.
type door struct {
	*street
	name string
}

func (s *street) open(n *node.Node) door {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes == nil {
		s.nodes, s.give = map[string]*node.Node{}, map[string]peers.Offer{}
	}
	s.nodes[n.Member.Self.Name] = n
	delete(s.give, n.Member.Self.Name)
	return door{s, n.Member.Self.Name}
}

func (s *street) leave(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.nodes, name)
}

func (d door) Offer(_ string, give peers.Offer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.give[d.name] = give
}

func (d door) Take(ctx context.Context, from, _ string, ask url.Values) ([]byte, error) {
	d.mu.Lock()
	n, give, self := d.nodes[from], d.give[from], d.nodes[d.name]
	d.mu.Unlock()
	switch {
	case n == nil || self == nil:
		return nil, errors.New("no answer")
	case give == nil:
		return nil, peers.ErrNothing
	}
	own := *n
	return give(ctx, &own, self.Member.Self, ask)
}

// systemd plays the units: it notes what is started and restarted.
type systemd struct {
	node.Runner
	mu      sync.Mutex
	started bool
	did     []string
}

func (s *systemd) Run(ctx context.Context, c node.Command) (string, error) {
	if c.Argv[0] != "systemctl" {
		return s.Runner.Run(ctx, c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.did = append(s.did, strings.Join(c.Argv[1:], " "))
	if c.Argv[1] != "is-active" {
		s.started = s.started || slices.Contains(c.Argv, "start")
		return "", nil
	}
	if s.started {
		return "active", nil
	}
	return "inactive", nil
}

func (s *systemd) count(what string) (times int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, did := range s.did {
		if did == what {
			times++
		}
	}
	return times
}

// broker makes a node of the role with the product; its set-up makes settings that
// nobody could make twice.
func broker(t *testing.T, p *plan.Plan, name string) (*nodetest.Node, *systemd) {
	t.Helper()
	n := nodetest.Start(t)
	n.Member = members(t, p)[name]
	n.Role = &manifest.Role{Name: n.Member.Self.Role, Product: portal}
	n.Seed = &node.Seed{}
	played := &systemd{Runner: n.Run}
	n.Run = played
	if err := os.MkdirAll(n.Path("/run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.Put(t, "/usr/lib/portal/setup", `#!/bin/sh
set -eu
echo "${SLIPWAY_NODE-} ${PGHOST-} ${PGDATABASE-}" >>/ran
[ -e /fails ] && { echo "the disk is on fire" >&2; exit 3; }
mkdir -p /var/server
head -c 30 /dev/urandom | base64 >/var/server/settings.py
`)
	n.Output(t, "chmod", "755", "/usr/lib/portal/setup")
	return n, played
}

// membersOf are the members of a test's plan, made once.
var membersOf sync.Map

func TestTheProductIsToldWhatItNeedsAndNothingElse(t *testing.T) {
	p := site()
	p.VIPs = []plan.VIP{{Name: "shop-db", Site: "a", Address: netip.MustParsePrefix("10.77.1.10/24"), ReadWrite: 6432}}
	n, _ := broker(t, p, "a-br1")
	n.Role.Product.User = "www-data"
	if err := (Configure{}).Apply(t.Context(), n.Node); err != nil {
		t.Fatal(err)
	}
	env, _ := n.Read(envPath)
	for _, want := range []string{
		`SLIPWAY_NODE="a-br1"`, `SLIPWAY_FQDN="a-br1.example.internal"`, `SLIPWAY_PEERS="a-br1=10.77.1.31 a-br2=10.77.1.32 a-br3=10.77.1.33"`,
		`SLIPWAY_VIP_SHOP_DB="10.77.1.10"`, `PGHOST="10.77.1.10"`, `PGPORT="6432"`, `PGDATABASE="app"`, `PGUSER="app"`, `PGSSLMODE="verify-full"`,
	} {
		if !strings.Contains(string(env), want+"\n") {
			t.Errorf("env has no %s:\n%s", want, env)
		}
	}
	if strings.Contains(string(env), "secret-of-app") {
		t.Error("the password is in the environment")
	}
	if pass, _ := n.Read(pgpassPath); string(pass) != "*:*:app:app:secret-of-app\n" {
		t.Errorf("pgpass is %q", pass)
	}
	for _, path := range []string{pgpassPath, keyPath} {
		info, err := os.Stat(n.Path(path))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	gateway, _ := broker(t, p, "a-gw1")
	if err := (Configure{}).Apply(t.Context(), gateway.Node); err != nil {
		t.Fatal(err)
	}
	if env, _ := gateway.Read(envPath); strings.Contains(string(env), "PGHOST") || gateway.Exists(pgpassPath) {
		t.Errorf("a role that uses no database is told of one:\n%s", env)
	}
}

func TestUnitsAreHeldBackUntilTheProductIsThere(t *testing.T) {
	n, played := broker(t, site(), "a-br1")
	n.Member = nil // a node that stands alone
	if err := os.MkdirAll(n.Path("/var/lib/slipway"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := (Configure{}).Apply(t.Context(), n.Node); err != nil || !n.Held("portal.service") {
		t.Fatalf("not held: %v", err)
	}
	n.Put(t, "/fails", "")
	if err := (&Start{}).Apply(t.Context(), n.Node); err == nil || !strings.Contains(err.Error(), "the disk is on fire") || !n.Held("portal.service") {
		t.Fatalf("set-up that failed: %v", err)
	}
	if err := os.Remove(n.Path("/fails")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := (&Start{}).Apply(t.Context(), n.Node); err != nil {
			t.Fatal(err)
		}
	}
	if ran, _ := n.Read("/ran"); strings.Count(string(ran), "\n") != 2 {
		t.Errorf("it ran %q: want once in vain and once to its end", ran)
	}
	if played.count("start --no-block portal.service") != 1 || n.Held("portal.service") {
		t.Errorf("systemd was told %q", played.did)
	}
}

func TestOthersTakeSharedFilesAndTheNewestVersionWins(t *testing.T) {
	p, s := site(), &street{}
	one, _ := broker(t, p, "a-br1")
	two, played := broker(t, p, "a-br2")
	first, second := s.open(one.Node), s.open(two.Node)
	first.Offer(offerName, give)
	second.Offer(offerName, give)
	if missing, err := take(t.Context(), two.Node, second); err != nil || len(missing) != 1 || !strings.Contains(missing[0], settings) {
		t.Fatalf("nobody has it yet: %v, %v", missing, err)
	}
	one.Put(t, settings, "A = 1\n")
	if err := made(one.Node); err != nil {
		t.Fatal(err)
	}
	same := func(want string) {
		t.Helper()
		if missing, err := take(t.Context(), two.Node, second); err != nil || len(missing) > 0 {
			t.Fatalf("%v, %v", missing, err)
		}
		if got, _ := two.Read(settings); string(got) != want {
			t.Fatalf("it has %q, want %q", got, want)
		}
	}
	played.started = true
	same("A = 1\n")
	same("A = 1\n")
	if times := played.count("--no-block restart portal.service"); times != 1 {
		t.Errorf("restarted %d times: %q", times, played.did)
	}
	info, err := os.Stat(two.Path(settings))
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	if out := strings.TrimSpace(outputOf(t, two, "stat", "-c", "%U:%G", settings)); out != "www-data:www-data" {
		t.Errorf("it belongs to %s", out)
	}

	one.Put(t, settings, "A = 2\n")
	if paths, err := edited(one.Node); err != nil || len(paths) != 1 {
		t.Errorf("edited: %v, %v", paths, err)
	}
	same("A = 1\n") // an edit alone reaches nobody
	result := share(t, one, first, settings)
	if result.Generation != 2 || !result.Changed {
		t.Errorf("%+v", result)
	}
	same("A = 2\n")
	if again := share(t, one, first, settings); again.Changed || again.Generation != 2 {
		t.Errorf("sharing the same once more: %+v", again)
	}
	// The other node's turn, while the first is away.
	s.leave("a-br1")
	two.Put(t, settings, "A = 3\n")
	share(t, two, second, settings)
	first = s.open(one.Node)
	if missing, err := take(t.Context(), one.Node, first); err != nil || len(missing) > 0 {
		t.Fatal(missing, err)
	}
	if got, _ := one.Read(settings); string(got) != "A = 3\n" {
		t.Errorf("after its return it has %q", got)
	}
	if _, err := actShare(t, one, first, "/etc/shadow"); fault.Of(err) != fault.Usage || !strings.Contains(fault.Mend(err), settings) {
		t.Errorf("a file that is not shared: %v", err)
	}
}

func outputOf(t *testing.T, n *nodetest.Node, argv ...string) string {
	t.Helper()
	out, err := n.Command(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func actShare(t *testing.T, n *nodetest.Node, others peers.Offers, path string) (any, error) {
	t.Helper()
	args, err := json.Marshal(ShareArgs{path})
	if err != nil {
		t.Fatal(err)
	}
	return Share(others).Run(t.Context(), actions.NewEnv(*n.Node, actions.Caller{}, func(string) {}, func(string) {}), args)
}

func share(t *testing.T, n *nodetest.Node, others peers.Offers, path string) ShareResult {
	t.Helper()
	result, err := actShare(t, n, others, path)
	if err != nil {
		t.Fatal(err)
	}
	return result.(ShareResult)
}

func TestSharedFilesAreForNodesOfTheRoleAlone(t *testing.T) {
	p := site()
	one, _ := broker(t, p, "a-br1")
	one.Put(t, settings, "SECRET_KEY = 1\n")
	one.Put(t, "/etc/other", "secret")
	if err := made(one.Node); err != nil {
		t.Fatal(err)
	}
	gateway, _ := p.Node("a-gw1")
	peer, _ := p.Node("a-br2")
	for name, c := range map[string]struct {
		to   plan.Node
		path string
	}{"a gateway": {gateway, settings}, "a gateway that asks for the record": {gateway, ""}, "another file": {peer, "/etc/other"}, "a way round": {peer, "/var/server/../server/settings.py"}} {
		if data, err := give(t.Context(), one.Node, c.to, url.Values{"path": {c.path}}); !errors.Is(err, peers.ErrNotForYou) {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if data, err := give(t.Context(), one.Node, peer, url.Values{"path": {settings}}); err != nil || string(data) != "SECRET_KEY = 1\n" {
		t.Errorf("a broker: %q, %v", data, err)
	}
}

// liar offers a record and content of its own.
type liar struct{ record, content string }

func (liar) Offer(string, peers.Offer) {}
func (l liar) Take(_ context.Context, from, _ string, ask url.Values) ([]byte, error) {
	switch {
	case from != "a-br2":
		return nil, errors.New("no answer")
	case ask.Get("path") == "":
		return []byte(l.record), nil
	}
	return []byte(l.content), nil
}

func TestWhatIsNotAsAnnouncedIsNotTaken(t *testing.T) {
	p := site()
	good := fmt.Sprintf(`{"format":1,"files":{%q:{"generation":1,"sha256":"%064d","node":"a-br2"}}}`, settings, 0)
	for name, l := range map[string]liar{
		"other content": {good, "rm -rf"}, "no JSON": {"x", ""}, "a strange hash": {strings.Replace(good, "0000", "zzzz", 1), ""},
		"another file": {strings.Replace(good, settings, "/etc/passwd", 1), "root::0:0"}, "a format of the future": {strings.Replace(good, `"format":1`, `"format":2`, 1), ""},
	} {
		n, _ := broker(t, p, "a-br1")
		missing, err := take(t.Context(), n.Node, l)
		if err == nil && len(missing) == 0 {
			t.Errorf("%s: taken", name)
		}
		if n.Exists(settings) {
			t.Errorf("%s: the file is there", name)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"format":1,"files":{"/a":{"generation":1,"sha256":"00"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err != nil {
			return
		}
		for path, v := range r.Files {
			if v.Generation < 1 || len(v.SHA256) != 64 {
				t.Errorf("%s: %+v", path, v)
			}
		}
	})
}

func TestTheProductIsAskedWhetherItServes(t *testing.T) {
	// The test's network namespace begins with nothing up.
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	code := http.StatusOK
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }))
	defer server.Close()
	at := strings.Replace(server.URL, "127.0.0.1", "localhost", 1) + "/health"
	if err := healthy(t.Context(), at); err != nil {
		t.Error(err)
	}
	code = http.StatusServiceUnavailable
	if err := healthy(t.Context(), at); err == nil || !strings.Contains(err.Error(), "HTTP 503") {
		t.Errorf("got %v", err)
	}
	server.Close()
	if err := healthy(t.Context(), at); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
}

func TestANodeThatStandsAloneHasNoSwarmToAsk(t *testing.T) {
	n, _ := broker(t, site(), "a-br1")
	ask := func(stack string) string {
		n.Role.Product.Health.URL, n.Role.Product.Stack = "https://localhost/health", stack
		return question(n.Node)
	}
	if got := ask("/usr/lib/stack.yml"); got == "" {
		t.Error("in a cluster it is not asked")
	}
	n.Member = nil
	if got := ask("/usr/lib/stack.yml"); got != "" {
		t.Errorf("alone it is asked at %s", got)
	}
	if got := ask(""); got == "" {
		t.Error("alone, with a product of its own, it is not asked")
	}
}
