package consensus

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestMain(m *testing.M) { roletest.Main(m) }

// startAll configures and starts members, each as a node does, and waits for all.
func startAll(t *testing.T, nodes ...*roletest.Node) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Minute)
	defer stop()
	done := make(chan error, len(nodes))
	for _, n := range nodes {
		if err := (Configure{}).Apply(ctx, n.Node.Node); err != nil {
			t.Fatal(err)
		}
		go func() { done <- (&Start{}).Apply(ctx, n.Node.Node) }()
	}
	for range nodes {
		if err := <-done; err != nil {
			for _, n := range nodes {
				t.Log(n.Member.Self.Name, n.Said.Waits[max(0, len(n.Said.Waits)-1):], n.Log(Unit))
			}
			t.Fatal(err)
		}
	}
}

func TestThreeMembersFormAClusterOverTLSAndRefuseStrangers(t *testing.T) {
	members := roletest.Members(t, roletest.Plan())
	var nodes []*roletest.Node
	for _, name := range []string{"a-db1", "a-db2", "a-db3"} {
		nodes = append(nodes, roletest.Start(t, members[name]))
	}
	startAll(t, nodes...)

	var c status.Cluster
	observer := &Start{}
	if err := observer.Observe(t.Context(), nodes[0].Node.Node, &c); err != nil || !c.Consensus.Quorum || len(c.Consensus.Members) != 3 {
		t.Fatalf("%+v, %v", c.Consensus, err)
	}
	leaders := 0
	for _, m := range c.Consensus.Members {
		if m.Leader {
			leaders++
		}
	}
	if leaders != 1 {
		t.Errorf("%d leaders: %+v", leaders, c.Consensus.Members)
	}

	client, err := Dial(members["a-db2"])
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, found, err := client.Get(t.Context(), "/service/test/initialize"); err != nil || found {
		t.Errorf("a key that nobody wrote: %v, %v", found, err)
	}

	// Of another authority: let in as neither client nor peer.
	stranger := roletest.Members(t, roletest.Plan())["a-db1"]
	stranger.EtcdAuthority = members["a-db1"].EtcdAuthority
	if other, err := Dial(stranger); err != nil {
		t.Fatal(err)
	} else if _, _, err := other.Get(t.Context(), "/service/test/initialize"); err == nil {
		t.Error("a stranger's certificate was taken")
	}

	// One that stops is told of, and the others go on.
	nodes[2].StopUnit(Unit)
	c = status.Cluster{}
	err = observer.Observe(t.Context(), nodes[0].Node.Node, &c)
	if err == nil || !strings.Contains(err.Error(), "a-db3: ") {
		t.Errorf("a member is down, and the report says %v", err)
	}

	// Its disk lost, it must not vote again on what it has voted on.
	if err := os.RemoveAll(nodes[2].Path(memberDir(members["a-db3"]))); err != nil {
		t.Fatal(err)
	}
	err = (&Start{}).Apply(t.Context(), nodes[2].Node.Node)
	if fault.Of(err) != fault.Integrity || !strings.Contains(fault.Mend(err), "etcdctl member remove") {
		t.Errorf("a member without its memory: %v; %s", err, fault.Mend(err))
	}
	// Taken out of the cluster as advised, it joins anew by itself.
	id := fault.Mend(err)[strings.Index(fault.Mend(err), "remove ")+len("remove "):]
	id, _, _ = strings.Cut(id, ",")
	nodes[0].Output(t, "sh", "-c", etcdctl(Endpoint(members["a-db1"].Self))+" member remove "+id)
	startAll(t, nodes[2])
	if env := nodes[2].File(t, envPath); !strings.Contains(env, "ETCD_INITIAL_CLUSTER_STATE=existing") {
		t.Error(env)
	}
}

func etcdctl(at string) string {
	return "ETCDCTL_API=3 etcdctl --endpoints " + at + " --cacert " + pkiDir + "/ca.pem --cert " + pkiDir + "/server.pem --key " + pkiDir + "/server.pem"
}

func TestDataOfAnotherClusterIsRefusedAndLeftAlone(t *testing.T) {
	m := roletest.Members(t, roletest.Plan())["b-db1"]
	n := roletest.Start(t, m)
	for what, mark := range map[string]string{
		"of another cluster": `{"cluster":"0123456789abcdef","node":"b-db1"}`,
		"of another member":  `{"cluster":"` + m.Plan.ID + `","node":"b-db2"}`,
		"nothing says whose": "",
	} {
		n.Put(t, memberDir(m)+"/member/wal", "precious")
		n.Put(t, ownerPath(m), mark)
		err := (&Start{}).Apply(t.Context(), n.Node.Node)
		if fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), what) || fault.Mend(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
		if n.File(t, memberDir(m)+"/member/wal") != "precious" || n.Running(Unit) {
			t.Errorf("%s: etcd was started, or the data touched", what)
		}
	}
	// Moved away as advised, the node begins with an empty directory.
	if err := os.Rename(n.Path(memberDir(m)), n.Path(dataDir+"/aside")); err != nil {
		t.Fatal(err)
	}
	startAll(t, n)
}

func TestKeysAreForEtcdAlone(t *testing.T) {
	n := roletest.Start(t, roletest.Members(t, roletest.Plan())["a-db1"])
	if err := (Configure{}).Apply(t.Context(), n.Node.Node); err != nil {
		t.Fatal(err)
	}
	if got := n.Output(t, "stat", "-c", "%U %a", pkiDir+"/server.pem"); got != "etcd 600\n" {
		t.Errorf("the key is %s", got)
	}
	n.Said.Reset()
	if err := (Configure{}).Apply(t.Context(), n.Node.Node); err != nil || len(n.Said.Changes) > 0 {
		t.Errorf("a second time changed %q, %v", n.Said.Changes, err)
	}
}

func TestANodeWithoutAVoteLeavesEtcdAlone(t *testing.T) {
	p := roletest.Plan()
	p.Sites[0].Consensus = []string{"a-db1"}
	n := roletest.Start(t, roletest.Members(t, p)["a-db2"])
	before := n.File(t, "/etc/default/etcd")
	var c status.Cluster
	for _, err := range []error{(Configure{}).Apply(t.Context(), n.Node.Node), (&Start{}).Apply(t.Context(), n.Node.Node), (&Start{}).Observe(t.Context(), n.Node.Node, &c)} {
		if err != nil {
			t.Error(err)
		}
	}
	if n.File(t, "/etc/default/etcd") != before || n.Exists(pkiDir) || c.Consensus != nil {
		t.Error("something was done")
	}
}
