package drill

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/qemu-tests/drill/checker"
	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
	"github.com/slipwayhq/slipway/qemu-tests/drill/load"
)

const s = time.Second

func TestThePictureShowsWhoWroteAndWhoHeldTheAddress(t *testing.T) {
	write := func(at time.Duration, server, direct string) history.Op {
		return history.Op{Kind: history.Insert, Outcome: history.Acknowledged, Server: server, Direct: direct, Invoked: at, Completed: at}
	}
	ops := []history.Op{write(s, "a", ""), write(2*s, "a", ""), write(2*s+1, "a", "a"), write(20*s, "b", ""), write(10*s, "a", ""), {Kind: history.Read, Key: "x", Outcome: history.Acknowledged, Server: "a", Completed: 15 * s}}
	p := picture([]string{"a", "b"}, []string{"db", "web"}, ops, checker.Addresses{
		Frames:  map[string][]checker.Sighting{"db": {{At: s, Node: "a"}, {At: 4 * s, Node: "a"}, {At: 5 * s, Node: "b"}, {At: 6 * s, Node: "a"}}},
		Samples: []checker.Sample{{At: s, Holders: map[string][]string{"db": {"b"}, "web": {"b"}}}, {At: 3 * s, Holders: map[string][]string{"web": {"b"}}}},
	}, 20*s)
	if want := []Stretch{{Node: "a", From: s, To: 2*s + 1}, {Node: "a", From: 10 * s, To: 10 * s}, {Node: "b", From: 20 * s, To: 20 * s}}; !reflect.DeepEqual(p.Writers, want) {
		t.Errorf("writers %+v", p.Writers)
	}
	// Frames count more than words.
	if want := []Stretch{{"a", "db", s, 6 * s}, {"b", "db", 5 * s, 5 * s}, {"b", "web", s, 3 * s}}; !reflect.DeepEqual(p.Holders, want) {
		t.Errorf("holders %+v", p.Holders)
	}
	if len(p.Answers) != 21 || p.Answers[1] != 1 || p.Answers[2] != 1 || p.Answers[15] != 0 || p.Answers[20] != 1 {
		t.Errorf("answers %v", p.Answers)
	}
}

func TestASampleIsWhatNodesSayOfThemselves(t *testing.T) {
	p := &plan.Plan{
		Sites: []plan.Site{{Name: "a"}}, VIPs: []plan.VIP{{Name: "db", Site: "a", On: plan.OnBalancers}},
		Nodes: []plan.Node{{Name: "db1", Site: "a", Role: "db-master"}, {Name: "lb1", Site: "a", Role: "balancer"}, {Name: "lb2", Site: "a", Role: "balancer"}},
	}
	members := []status.DatabaseMember{{Node: "db1", Role: "leader", State: "running"}}
	report := func(c status.Cluster) *status.Report { return &status.Report{State: status.Ready, Cluster: &c} }
	o := overview.Overview{Nodes: []overview.Node{
		{Name: "db1", Report: report(status.Cluster{Database: &status.Database{Members: members}})},
		{Name: "lb1", Report: report(status.Cluster{VIPs: []status.VIP{{Name: "db", Held: true}}, Backends: []status.Backend{{Name: "read-only", Up: true}}})},
		{Name: "lb2", Report: report(status.Cluster{VIPs: []status.VIP{{Name: "db"}}, Backends: []status.Backend{{Name: "read-write", Up: true}}})},
	}}
	got := sample(p, o)
	if !got.Whole || !reflect.DeepEqual(got.Primaries, []string{"db1"}) || !reflect.DeepEqual(got.Holders["db"], []string{"lb1"}) || !reflect.DeepEqual(got.Writable["db"], []string{"lb2"}) {
		t.Errorf("%+v", got)
	}
	// Another's word does not make a node the primary.
	o.Nodes[0].Name, o.Nodes[2].Report = "db2", nil
	if got := sample(p, o); got.Whole || len(got.Primaries) != 0 || !reflect.DeepEqual(got.Silent, []string{"lb2"}) || got.Words() != "no answer from lb2" {
		t.Errorf("%+v", got)
	}
}

// sshServer lets channels through to an echo, as sshd does to a service on its node.
func sshServer(t *testing.T, allowed ssh.PublicKey) (address string) {
	t.Helper()
	config := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != sshUser || !bytes.Equal(key.Marshal(), allowed.Marshal()) {
			return nil, io.EOF
		}
		return nil, nil
	}}
	config.AddHostKey(sshKey(t))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			_, channels, requests, err := ssh.NewServerConn(conn, config)
			if err != nil {
				continue
			}
			go ssh.DiscardRequests(requests)
			go func() {
				for c := range channels {
					// RFC 4254, 7.2: the host and port that the client wants.
					host := c.ExtraData()[4 : 4+binary.BigEndian.Uint32(c.ExtraData())]
					if string(host) == "127.0.0.9" {
						c.Reject(ssh.ConnectionFailed, "connection refused")
						continue
					}
					channel, requests, err := c.Accept()
					if err != nil {
						return
					}
					go ssh.DiscardRequests(requests)
					go func() {
						channel.Write(append(host, ' '))
						io.Copy(channel, channel)
						channel.Close()
					}()
				}
			}()
		}
	}()
	return listener.Addr().String()
}

func sshKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func TestATunnelLeadsToANodesOwnServicesAndKnowsDeadlines(t *testing.T) {
	key := sshKey(t)
	server := sshServer(t, key.PublicKey())
	dials := 0
	tunnels := &tunnels{key: key, dial: func(ctx context.Context, address string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}}
	defer tunnels.close()
	for range 2 {
		conn, err := tunnels.connect(t.Context(), server, "127.0.0.1:5432")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len("127.0.0.1 hello"))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "127.0.0.1 hello" {
			t.Errorf("%q, %v", got, err)
		}
		// Nothing more comes, and the deadline says so.
		conn.SetDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := conn.Read(got); err == nil || !err.(net.Error).Timeout() {
			t.Errorf("no deadline: %v", err)
		}
		conn.Close()
	}
	if _, err := tunnels.connect(t.Context(), server, "127.0.0.9:5432"); err == nil {
		t.Error("a service that is not there answers")
	} else if conn, err := tunnels.connect(t.Context(), server, "127.0.0.1:5432"); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	if dials != 1 {
		t.Errorf("%d connections to the SSH server", dials)
	}
	tunnels.close()
	tunnels.key = sshKey(t)
	dials = 0
	if _, err := tunnels.connect(t.Context(), server, "127.0.0.1:5432"); err == nil {
		t.Error("another key is let in")
	}
	if _, err := tunnels.connect(t.Context(), server, "127.0.0.1:5432"); err == nil || dials != 1 {
		t.Errorf("at once after a login that failed there are %d: %v", dials, err)
	}
}

func TestDataAndVotesOfTheServingSiteGetPowerFirst(t *testing.T) {
	for example, want := range map[string][]string{"postgres-ha": {"a-db1", "a-db2", "a-db3"}, "postgres-pair": {"db1", "db2", "witness1"}} {
		top, err := topology.Load("../../examples/" + example + "/cluster.yaml")
		if err != nil {
			t.Fatal(err)
		}
		if got := foundation(top.Plan()); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, want %q", example, got, want)
		}
	}
}

// well is a cluster of which all is always well, and nobody can be reached.
type well struct{}

func (well) Nodes() []string                            { return nil }
func (well) VIPs() []string                             { return nil }
func (well) Look(context.Context) checker.Sample        { return checker.Sample{Whole: true} }
func (well) Watch(func(vip, node string)) (stop func()) { return func() {} }

func TestADrillThatIsStoppedBeforeItsFirstFaultIsInterruptedAndHasNotFailed(t *testing.T) {
	stop := make(chan struct{})
	once := sync.OnceFunc(func() { close(stop) })
	result, err := Run(t.Context(), Config{
		Ground: well{}, Stop: stop, History: io.Discard, Settle: time.Millisecond, Look: time.Millisecond,
		Load: load.Config{Database: "app", User: "app", Address: "192.0.2.1:5432", TLS: &tls.Config{}, Dial: func(context.Context, string, string) (net.Conn, error) {
			once()
			return nil, syscall.ECONNREFUSED
		}},
	})
	if result != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", result, err)
	}
}
