package swarm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

// played is a Docker that a test plays: it answers what the test says, and notes what
// it was told to do.
type played struct {
	mu      sync.Mutex
	state   local
	swarm   map[string]any
	members []map[string]any
	images  []string // references that it has
	brings  []string // those that it has after a load
	runs    bool     // containers run from its images
	refuses map[string]int
	did     []string
}

func (p *played) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, apiVersion)
	body, _ := io.ReadAll(r.Body)
	what := r.Method + " " + path
	if r.Method != http.MethodGet {
		p.did = append(p.did, strings.TrimSpace(what+" "+r.URL.RawQuery+" "+string(body)))
	}
	for prefix, code := range p.refuses {
		if strings.HasPrefix(what, prefix) {
			w.WriteHeader(code)
			io.WriteString(w, `{"message":"refused by the test"}`)
			return
		}
	}
	var answer any
	switch {
	case path == "/info":
		answer = map[string]any{"Swarm": p.state}
	case path == "/swarm":
		answer = p.swarm
	case path == "/swarm/unlockkey":
		answer = map[string]string{"UnlockKey": "SWMKEY-1"}
	case path == "/nodes":
		answer = p.members
	case path == "/services":
		answer = []any{}
	case strings.HasPrefix(what, "DELETE /images/"):
		if p.runs {
			w.WriteHeader(http.StatusConflict)
			break
		}
		p.images = slices.DeleteFunc(p.images, func(reference string) bool {
			return strings.HasSuffix(reference, "@"+strings.TrimPrefix(path, "/images/"))
		})
	case strings.HasPrefix(path, "/images/") && path != "/images/load":
		if reference := strings.TrimSuffix(strings.TrimPrefix(path, "/images/"), "/json"); !slices.Contains(p.images, reference) {
			w.WriteHeader(http.StatusNotFound)
		}
		answer = struct{}{}
	case path == "/images/load":
		p.images = append(p.images, p.brings...)
	case r.Method == http.MethodDelete:
		id := strings.TrimPrefix(path, "/nodes/")
		p.members = slices.DeleteFunc(p.members, func(m map[string]any) bool { return m["ID"] == id })
	}
	json.NewEncoder(w).Encode(answer)
}

// told is what it was told to do since the last time.
func (p *played) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	did := p.did
	p.did = nil
	return did
}

// manager is one that has a leader and the given members.
func manager(self string, members ...map[string]any) *played {
	p := &played{members: members, swarm: map[string]any{
		"ID": "swarm", "Version": map[string]int{"Index": 7}, "JoinTokens": map[string]string{"Manager": "SWMTKN-manager", "Worker": "SWMTKN-worker"},
		"Spec": map[string]any{"Labels": map[string]string{}, "Raft": map[string]int{"SnapshotInterval": 10000}},
	}}
	p.state = local{NodeID: "id-" + self, LocalNodeState: active, ControlAvailable: true}
	return p
}

// of is a member as Docker lists it.
func of(name, state string, leader bool) map[string]any {
	return map[string]any{
		"ID": "id-" + name, "Version": map[string]int{"Index": 3}, "Spec": map[string]any{"Role": "manager", "Availability": "active"},
		"Description": map[string]string{"Hostname": name}, "Status": map[string]string{"State": state},
		"ManagerStatus": map[string]any{"Leader": leader, "Reachability": "reachable"},
	}
}

var (
	stageOnce sync.Mutex
	known     = map[*plan.Plan]map[string]*member.Member{}
)

// dispatcher makes a node of a plan whose Docker is played.
func dispatcher(t *testing.T, p *plan.Plan, name string, docker *played) *nodetest.Node {
	t.Helper()
	stageOnce.Lock()
	if known[p] == nil {
		known[p] = roletest.Members(t, p)
	}
	m := known[p][name]
	stageOnce.Unlock()
	n := nodetest.Start(t)
	n.Member, n.Role, n.Seed = m, &manifest.Role{Name: m.Self.Role}, &node.Seed{}
	if err := os.MkdirAll(n.Path("/run"), 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", n.Path(socketPath))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: docker}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return n
}

func asked(t *testing.T, n *nodetest.Node, to, what, id string) (answer, error) {
	t.Helper()
	for _, peer := range n.Member.Plan.Nodes {
		if peer.Name == to {
			data, err := give(t.Context(), n.Node, peer, url.Values{"what": {what}, "id": {id}})
			var a answer
			if err == nil {
				err = json.Unmarshal(data, &a)
			}
			return a, err
		}
	}
	t.Fatalf("no node %s", to)
	return answer{}, nil
}

func TestSecretsOfASwarmGoToDispatchersOfTheSiteAlone(t *testing.T) {
	p := site(3)
	n := dispatcher(t, p, "d1", manager("d1", of("d1", "ready", true)))
	for _, who := range []string{"gw", "far"} {
		for _, what := range []string{forToken, forKey, forStack, forRole} {
			if a, err := asked(t, n, who, what, "id-d1"); !errors.Is(err, peers.ErrNotForYou) {
				t.Errorf("%s asks for the %s: %+v, %v", who, what, a, err)
			}
		}
	}
	if a, err := asked(t, n, "d2", forToken, ""); err != nil || a.Token != "SWMTKN-manager" || a.Address != "10.77.1.41:2377" {
		t.Errorf("the token: %+v, %v", a, err)
	}
	if a, err := asked(t, n, "d2", forKey, ""); err != nil || a.Key != "SWMKEY-1" || a.Token != "" {
		t.Errorf("the key: %+v, %v", a, err)
	}
	if _, err := asked(t, n, "d2", "root", ""); !errors.Is(err, peers.ErrNotForYou) {
		t.Errorf("something else: %v", err)
	}
	gateway := dispatcher(t, p, "gw", &played{})
	if _, err := asked(t, gateway, "d2", forToken, ""); !errors.Is(err, peers.ErrNotForYou) {
		t.Errorf("from a gateway: %v", err)
	}
}

func TestOnlyTheFirstByNameCreatesASwarmAndOnlyIfAllOthersAreInNone(t *testing.T) {
	p, s := site(3), &street{}
	dockers := map[string]*played{}
	nodes := map[string]*nodetest.Node{}
	for _, name := range []string{"d1", "d2", "d3"} {
		dockers[name] = &played{state: local{LocalNodeState: inactive}}
		nodes[name] = dispatcher(t, p, name, dockers[name])
		s.open(nodes[name].Node).Offer(offerName, give)
	}
	try := func(name string) string {
		t.Helper()
		d := dial(nodes[name].Node)
		defer d.close()
		_, err := enter(t.Context(), nodes[name].Node, d, door{s, name})
		if err == nil {
			t.Fatal("no reason")
		}
		return err.Error()
	}
	away := s.nodes["d3"]
	s.leave("d3")
	for _, name := range []string{"d1", "d2"} {
		if why := try(name); !strings.Contains(why, "d3 does not answer") {
			t.Errorf("%s: %s", name, why)
		}
	}
	s.nodes["d3"] = away
	for _, name := range []string{"d2", "d3"} {
		if why := try(name); why != "d1 creates the swarm" {
			t.Errorf("%s: %s", name, why)
		}
	}
	dockers["d2"].state.LocalNodeState = locked // it is in one, and cannot say so
	if why := try("d1"); !strings.Contains(why, "d2 is no manager that can be asked (locked)") {
		t.Errorf("d1: %s", why)
	}
	for name, docker := range dockers {
		if did := docker.told(); len(did) > 0 {
			t.Errorf("%s was told %q", name, did)
		}
	}
	dockers["d2"].state.LocalNodeState = inactive
	try("d1")
	did := dockers["d1"].told()
	if len(did) != 1 || !strings.HasPrefix(did[0], "POST /swarm/init") || !strings.Contains(did[0], `"AdvertiseAddr":"10.77.1.41:2377"`) ||
		!strings.Contains(did[0], `"DataPathPort":4789`) || !strings.Contains(did[0], `"AutoLockManagers":false`) {
		t.Errorf("d1 was told %q", did)
	}
	*dockers["d1"] = played{}
	made := manager("d1", of("d1", "ready", true))
	dockers["d1"].state, dockers["d1"].swarm, dockers["d1"].members = made.state, made.swarm, made.members
	try("d2")
	if did := dockers["d2"].told(); len(did) != 1 || !strings.HasPrefix(did[0], "POST /swarm/join") || !strings.Contains(did[0], `"JoinToken":"SWMTKN-manager"`) || !strings.Contains(did[0], `"RemoteAddrs":["10.77.1.41:2377"]`) {
		t.Errorf("d2 was told %q", did)
	}
	for name, n := range nodes {
		if said := strings.Join(append(n.Said.Changes, n.Said.Waits...), " "); strings.Contains(said, "SWMTKN") {
			t.Errorf("%s says a token: %s", name, said)
		}
	}
}

func TestAReplacementGetsTheTokenOnceItsPredecessorIsOut(t *testing.T) {
	p := site(3)
	docker := manager("d1", of("d1", "ready", true), of("d2", "ready", false), of("d3", "ready", false))
	n := dispatcher(t, p, "d1", docker)
	if a, err := asked(t, n, "d3", forToken, ""); err != nil || a.Token != "" || !strings.Contains(a.Why, "not yet seen") {
		t.Errorf("while it counts as there: %+v, %v", a, err)
	}
	if did := docker.told(); len(did) > 0 {
		t.Errorf("it was told %q", did)
	}
	docker.members[2] = of("d3", "down", false)
	if a, err := asked(t, n, "d3", forToken, ""); err != nil || a.Token == "" {
		t.Errorf("once it is down: %+v, %v", a, err)
	}
	did := docker.told()
	if len(did) != 2 || !strings.HasPrefix(did[0], "POST /nodes/id-d3/update version=3") || !strings.Contains(did[0], `"Role":"worker"`) || !strings.HasPrefix(did[1], "DELETE /nodes/id-d3") {
		t.Errorf("it was told %q", did)
	}
	// One that never voted cannot be demoted.
	docker.members = append(docker.members, of("d3", "down", false))
	docker.refuses = map[string]int{"POST /nodes/": http.StatusNotFound}
	if a, err := asked(t, n, "d3", forToken, ""); err != nil || a.Token == "" || len(docker.members) != 2 {
		t.Errorf("one that never voted: %+v, %v", a, err)
	}
}

func TestTokensAreRotatedOnceForEachCompleteSetOfManagers(t *testing.T) {
	p, s := site(3), &street{}
	docker := manager("d1", of("d1", "ready", true), of("d2", "ready", false))
	n := dispatcher(t, p, "d1", docker)
	among := s.open(n.Node)
	tended := func() []string {
		t.Helper()
		d := dial(n.Node)
		defer d.close()
		if err := tend(t.Context(), n.Node, d, among); err != nil {
			t.Fatal(err)
		}
		did := docker.told()
		for _, line := range did { // as Docker keeps it
			if path, body, ok := strings.Cut(line, "{"); ok && strings.HasPrefix(path, "POST /swarm/update") {
				var spec map[string]any
				if err := json.Unmarshal([]byte("{"+body), &spec); err != nil {
					t.Fatal(err)
				}
				docker.mu.Lock()
				docker.swarm["Spec"] = spec
				docker.mu.Unlock()
			}
		}
		return did
	}
	if did := tended(); len(did) > 0 {
		t.Errorf("while one is missing: %q", did)
	}
	docker.members = append(docker.members, of("d3", "ready", false))
	did := tended()
	if len(did) != 1 || !strings.Contains(did[0], "rotateManagerToken=true&rotateWorkerToken=true") || !strings.Contains(did[0], `"SnapshotInterval":10000`) {
		t.Errorf("once all are in: %q", did)
	}
	if did := tended(); len(did) > 0 {
		t.Errorf("again: %q", did)
	}
	docker.members[2]["ID"] = "another"
	if did := tended(); len(did) != 1 || !strings.Contains(did[0], "rotateManagerToken=true") {
		t.Errorf("after a replacement: %q", did)
	}
	p.Swarm.Autolock = true
	if did := tended(); len(did) != 1 || !strings.Contains(did[0], `"AutoLockManagers":true`) || !strings.Contains(did[0], "rotateManagerToken=false") {
		t.Errorf("autolock: %q", did)
	}
	docker.members = append(docker.members, of("d9", "ready", false), of("d8", "down", false))
	if did := tended(); len(did) != 2 || !strings.HasPrefix(did[1], "DELETE /nodes/id-d8") {
		t.Errorf("dispatchers that the plan has no more: %q", did)
	}
	docker.members[0], docker.members[1] = of("d1", "ready", false), of("d2", "ready", true)
	p.Swarm.Autolock = false
	if did := tended(); len(did) > 0 {
		t.Errorf("one that does not lead: %q", did)
	}
}

func TestANodeLeavesItsSwarmOnlyIfThatHasTakenItsVote(t *testing.T) {
	p, s := site(3), &street{}
	docker := &played{state: local{NodeID: "id-d2", LocalNodeState: active}}
	n := dispatcher(t, p, "d2", docker)
	among := s.open(n.Node)
	leader := manager("d1", of("d1", "ready", true), of("d2", "ready", false))
	first := dispatcher(t, p, "d1", leader)
	try := func() error {
		d := dial(n.Node)
		defer d.close()
		in, err := enter(t.Context(), n.Node, d, among)
		if in {
			t.Error("it passes for a manager")
		}
		return err
	}
	if err := try(); err == nil || len(docker.told()) > 0 {
		t.Errorf("nobody answers: %v", err)
	}
	s.open(first.Node).Offer(offerName, give)
	if err := try(); err == nil || len(docker.told()) > 0 {
		t.Errorf("it still has a vote: %v", err)
	}
	leader.members[1]["Spec"] = map[string]any{"Role": "worker"}
	try()
	if did := docker.told(); len(did) != 1 || !strings.HasPrefix(did[0], "POST /swarm/leave") {
		t.Errorf("a worker: %q", did)
	}
	leader.members = leader.members[:1]
	try()
	if did := docker.told(); len(did) != 1 || !strings.HasPrefix(did[0], "POST /swarm/leave") {
		t.Errorf("one that the swarm does not know: %q", did)
	}
	docker.state.LocalNodeState = locked
	try()
	if did := docker.told(); len(did) != 1 || did[0] != `POST /swarm/unlock  {"UnlockKey":"SWMKEY-1"}` {
		t.Errorf("locked: %q", did)
	}
}

const index = `{"schemaVersion":2,"manifests":[{"digest":"sha256:` + digest + `","annotations":{"io.containerd.image.name":"docker.io/acme/portal.web:2"}}]}`

const digest = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestServicesWaitUntilAllDispatchersCanRunThem(t *testing.T) {
	p, s := site(3), &street{}
	p.Databases = []plan.Database{{Name: "app", Owner: "app", UsedBy: []string{plan.DispatcherRole}}}
	p.VIPs = []plan.VIP{}
	members := []map[string]any{of("d1", "ready", true), of("d2", "ready", false), of("d3", "down", false)}
	docker := manager("d1", members...)
	dockerOfTwo := manager("d2", members...)
	nodes := map[string]*nodetest.Node{"d1": dispatcher(t, p, "d1", docker), "d2": dispatcher(t, p, "d2", dockerOfTwo)}
	p.Nodes = append(p.Nodes, plan.Node{Name: "db", Role: "db-master", Site: "a", Address: p.Nodes[0].Address.Next()})
	var hashes []string
	for _, n := range nodes {
		n.Put(t, "/usr/lib/stack.yml", "services: {}\n")
		n.Put(t, filepath.Join("/", manifest.ImagesDir, "index.json"), index)
		n.Role.Product.Stack = "/usr/lib/stack.yml"
		stack, ok, err := stackOf(n.Node)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		hashes = append(hashes, stack.hash)
		for _, want := range []string{"IMAGE_ACME_PORTAL_WEB=acme/portal.web@sha256:" + digest, "DISPATCHERS=3", "SLIPWAY_SITE=a", "PGDATABASE=app"} {
			if !slices.Contains(stack.env, want) {
				t.Errorf("the stack is read without %s: %q", want, stack.env)
			}
		}
		if strings.Contains(strings.Join(stack.env, " "), "SLIPWAY_NODE=") {
			t.Error("the stack differs from node to node")
		}
	}
	if hashes[0] != hashes[1] {
		t.Error("two nodes want different stacks")
	}
	second := s.open(nodes["d2"].Node)
	second.Offer(offerName, give)
	ran := &deploys{Runner: nodes["d1"].Run}
	nodes["d1"].Run = ran
	among := s.open(nodes["d1"].Node)
	try := func() int {
		t.Helper()
		d := dial(nodes["d1"].Node)
		defer d.close()
		list, err := d.members(t.Context())
		if err == nil {
			err = deploy(t.Context(), nodes["d1"].Node, d, list, among)
		}
		if err != nil {
			t.Fatal(err)
		}
		return len(ran.argv)
	}
	if try() != 0 {
		t.Error("deployed though d2 has not the image")
	}
	dockerOfTwo.images = []string{"acme/portal.web@sha256:" + digest}
	nodes["d2"].Put(t, "/usr/lib/stack.yml", "services: {former: {}}\n")
	if try() != 0 {
		t.Error("deployed though d2 has the former version")
	}
	nodes["d2"].Put(t, "/usr/lib/stack.yml", "services: {}\n")
	if try() != 1 || !strings.Contains(ran.argv[0], "--resolve-image never") || !strings.Contains(ran.argv[0], "DISPATCHERS=3") {
		t.Errorf("ran %q", ran.argv)
	}
	if did := docker.told(); len(did) != 1 || !strings.Contains(did[0], hashes[0]) {
		t.Errorf("the swarm was told %q", did)
	}
	docker.swarm["Spec"].(map[string]any)["Labels"] = map[string]string{stackLabel: hashes[0]}
	if try() != 1 {
		t.Error("deployed again")
	}
}

// deploys notes what would be deployed.
type deploys struct {
	node.Runner
	argv []string
}

// Run implements node.Runner.
func (d *deploys) Run(_ context.Context, c node.Command) (string, error) {
	d.argv = append(d.argv, strings.Join(c.Argv, " "))
	return "", nil
}

func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(index))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseIndex(data)
		if err != nil {
			return
		}
		for _, im := range list {
			if im.repository == "" || len(im.digest) != 71 || strings.ContainsAny(im.variable(), "=\x00\n ") {
				t.Errorf("%+v", im)
			}
		}
	})
}

func TestImagesAreNamedByDigest(t *testing.T) {
	list, err := parseIndex([]byte(index))
	if err != nil || len(list) != 1 || list[0].reference() != "acme/portal.web@sha256:"+digest || list[0].variable() != "IMAGE_ACME_PORTAL_WEB" {
		t.Errorf("%+v, %v", list, err)
	}
	for _, broken := range []string{"", "[]", strings.Replace(index, digest, "x", 1), strings.Replace(index, "io.containerd.image.name", "x", 1)} {
		if list, err := parseIndex([]byte(broken)); err == nil {
			t.Errorf("%s: %+v", broken, list)
		}
	}
}

// An image that Docker knows may have lost its files in a power cut, unless they were
// seen on the disk.
func TestImagesThatMayBeBrokenAreTakenAnew(t *testing.T) {
	reference := "acme/portal.web@sha256:" + digest
	const forget, load = "DELETE /images/sha256:" + digest + " force=1", "POST /images/load"
	for name, c := range map[string]struct {
		images []string
		noted  bool
		runs   bool
		want   []string
	}{
		"there is none":                            {want: []string{load}},
		"it was lost and is noted":                 {noted: true, want: []string{load}},
		"it is there and noted":                    {images: []string{reference}, noted: true},
		"the power went before it was on the disk": {images: []string{reference}, want: []string{"POST /containers/prune", forget, load}},
		"an agent that noted nothing brought it":   {images: []string{reference}, runs: true, want: []string{"POST /containers/prune", forget}},
	} {
		t.Run(name, func(t *testing.T) {
			docker := manager("d1", of("d1", "ready", true))
			docker.images, docker.brings, docker.runs = c.images, []string{reference}, c.runs
			n := dispatcher(t, site(1), "d1", docker)
			n.Put(t, filepath.Join("/", manifest.ImagesDir, "index.json"), index)
			for _, dir := range engineDirs {
				if err := os.MkdirAll(n.Path(dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if c.noted {
				n.Put(t, keptPath, reference+"\n")
			}
			d := dial(n.Node)
			defer d.close()
			if err := bring(t.Context(), n.Node, d); err != nil {
				t.Fatal(err)
			}
			did := docker.told()
			if !slices.EqualFunc(did, c.want, strings.HasPrefix) {
				t.Errorf("it did %.80q, want %q", did, c.want)
			}
			if got := n.File(t, keptPath); got != reference+"\n" {
				t.Errorf("the note says %q", got)
			}
			if err := bring(t.Context(), n.Node, d); err != nil || len(docker.told()) > 0 {
				t.Errorf("there is something to do again: %v", err)
			}
		})
	}
	// What does not end leaves no note behind.
	docker := manager("d1", of("d1", "ready", true))
	n := dispatcher(t, site(1), "d1", docker)
	n.Put(t, filepath.Join("/", manifest.ImagesDir, "index.json"), index)
	n.Put(t, keptPath, reference+"\n")
	d := dial(n.Node)
	defer d.close()
	if err := bring(t.Context(), n.Node, d); err == nil || n.Exists(keptPath) {
		t.Errorf("%v, and the note stays", err)
	}
}
