package clustertest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/crypto/ssh"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// askAgain is the pause between two looks at something that is waited for: the
// guests share the host's processors with whoever looks.
const askAgain = 2 * time.Second

// formTime bounds the wait for a cluster to form. Six machines share the host's
// processors under TCG; with KVM it is a tenth of that.
const formTime = 25 * time.Minute

// site is a PostgreSQL cluster in the lab, with what its administrator and a
// client of its database have at hand.
type site struct {
	*labtest.Cluster
	top       *topology.Topology
	plan      *plan.Plan
	admin     *tls.Config
	authority *x509.CertPool
	password  string // of the application's role
	secrets   map[string]string
	file      string // the topology, a copy of the test's own
	store     string
	vault     *vault.Vault // the store, which is locked while it is open
	seeding   seeding.Options
	key       ssh.Signer          // opens the nodes' SSH servers
	cluster   *operations.Cluster // as operations reach it
}

// newSite seeds a topology and makes its machines, powered off. A power cut takes
// from their disks what was not flushed.
func newSite(t *testing.T, like string) *site {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile(like)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "cluster.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	top, err := topology.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(filepath.Join(dir, "store"), vault.Options{Cluster: top.Name, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{top: top, secrets: map[string]string{}, file: file, store: filepath.Join(dir, "store"), vault: v}
	if s.key, err = ssh.NewSignerFromKey(private); err != nil {
		t.Fatal(err)
	}
	s.seeding = seeding.Options{Formats: []seeding.Format{seeding.NoCloud}, ExtraKeys: []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.key.PublicKey()))) + " test"}}
	if _, err := seeding.Write(t.Context(), top, v, s.seeds(), s.seeding); err != nil {
		t.Fatal(err)
	}
	if s.plan, err = v.Plan(); err != nil {
		t.Fatal(err)
	}
	cert, pool, err := v.AdminTLS(pki.AdminRead)
	if err != nil {
		t.Fatal(err)
	}
	s.authority, s.admin = pool, &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}
	for _, name := range v.SecretNames() {
		if s.secrets[name], err = v.Secret(name); err != nil {
			t.Fatal(err)
		}
	}
	s.password = s.secrets[top.Databases[0].PasswordKey()]
	s.Cluster = labtest.NewCluster(t, lab.ClusterConfig{
		Topology: top, Images: filepath.Dir(images.Path(t, "db-master", "qcow2")),
		Seeds: s.seeds(), Dir: filepath.Join(dir, "machines"), Volatile: true,
	})
	s.cluster = &operations.Cluster{
		Plan: s.plan, TLS: v.AdminTLS,
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) { return s.Lab().Dial(ctx, address) },
	}
	return s
}

func (s *site) seeds() string { return filepath.Join(filepath.Dir(s.file), "seeds") }

// adds takes nodes into the cluster, as an administrator does: into the topology, with a
// seed of their own. The other nodes hear of them from themselves.
func (s *site) adds(nodes string) {
	s.Helper()
	text, err := os.ReadFile(s.file)
	if err == nil {
		err = os.WriteFile(s.file, append(text, nodes...), 0o600)
	}
	if err != nil {
		s.Fatal(err)
	}
	top, err := topology.Load(s.file)
	if err != nil {
		s.Fatal(err)
	}
	if _, err := seeding.Write(s.Life(), top, s.vault, s.seeds(), s.seeding); err != nil {
		s.Fatal(err)
	}
	if err := s.Lab().Adopt(s.Life(), top); err != nil {
		s.Fatal(err)
	}
	next, err := s.vault.Plan()
	if err != nil {
		s.Fatal(err)
	}
	*s.plan = *next // all parts of the story look at this one
}

// ground is the cluster for a drill, and for its administrator.
func (s *site) ground() *drill.Lab {
	return &drill.Lab{Cluster: s.Lab(), Plan: s.plan, Key: s.key, Admin: func(right string) (tls.Certificate, *x509.CertPool, error) {
		v, err := vault.Open(s.store, vault.Options{Cluster: s.top.Name, ReadOnly: true})
		if err != nil {
			return tls.Certificate{}, nil, err
		}
		defer v.Close()
		return v.AdminTLS(right)
	}}
}

// part is a part of the story, with the site bound to it.
func (s *site) part(t *testing.T, name string, tell func(t *testing.T, s *site)) {
	t.Helper()
	if t.Failed() {
		return // what follows stands on what has failed
	}
	t.Run(name, func(t *testing.T) {
		in := *s
		in.Cluster = s.In(t)
		tell(t, &in)
	})
}

// becomesWhole waits until all nodes are ready and nothing contradicts.
func (s *site) becomesWhole() overview.Overview {
	s.Helper()
	return s.waits("be whole", func(o overview.Overview) bool { return o.ExitCode() == 0 && len(o.Contradictions) == 0 })
}

// waits looks at the cluster from outside until it is as wanted.
func (s *site) waits(what string, want func(overview.Overview) bool) overview.Overview {
	s.Helper()
	deadline := time.Now().Add(formTime)
	for {
		o := s.Overview(s.plan, s.admin)
		if want(o) {
			return o
		}
		if time.Now().After(deadline) {
			s.Fatalf("the cluster did not %s within %v:\n%s", what, formTime, o.Text(time.Now(), status.Plain))
		}
		time.Sleep(askAgain)
	}
}

// connect opens the application's database as a client outside of the cluster
// does: with TLS, and a server that must prove who it is.
func (s *site) connect(ctx context.Context, address, role, password string) (*pgx.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	config, err := pgx.ParseConfig(fmt.Sprintf("postgres://%s@%s/%s", role, address, s.top.Databases[0].Name))
	if err != nil {
		return nil, err
	}
	config.Password = password
	config.TLSConfig = &tls.Config{RootCAs: s.authority, ServerName: host, MinVersion: tls.VersionTLS12}
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		return s.Lab().Dial(ctx, address)
	}
	config.Fallbacks = []*pgconn.FallbackConfig{}
	config.ConnectTimeout = 30 * time.Second
	return pgx.ConnectConfig(ctx, config)
}

// query runs one statement in a connection of its own and returns its first
// column as text, or "" if there is no row. It tries again until it gets through.
func (s *site) query(address, sql string, args ...any) string {
	s.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	said := ""
	for {
		answer, err := s.once(address, sql, args...)
		if err == nil {
			return answer
		}
		if err.Error() != said {
			said = err.Error()
			s.Logf("%s: %v", address, err)
		}
		if time.Now().After(deadline) {
			s.Fatalf("%s at %s: %v\n%s", sql, address, err, s.Overview(s.plan, s.admin).Text(time.Now(), status.Plain))
		}
		time.Sleep(askAgain)
	}
}

func (s *site) once(address, sql string, args ...any) (string, error) {
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	conn, err := s.connect(ctx, address, s.top.Databases[0].Owner, s.password)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var answer string
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			return "", err
		}
		if len(values) > 0 && answer == "" {
			answer = fmt.Sprint(values[0])
		}
	}
	return answer, rows.Err()
}

// readWrite and readOnly are where clients find the database.
func (s *site) readWrite() string {
	v := s.plan.VIPs[0]
	return net.JoinHostPort(v.Address.Addr().String(), fmt.Sprint(v.ReadWrite))
}

func (s *site) readOnly() string {
	v := s.plan.VIPs[0]
	return net.JoinHostPort(v.Address.Addr().String(), fmt.Sprint(v.ReadOnly))
}

// remembers writes a line through the virtual address and sees it on every
// database node, of both sites.
func (s *site) remembers(line string) {
	s.Helper()
	s.query(s.readWrite(), "create table if not exists lines (line text primary key, at timestamptz default now())")
	s.query(s.readWrite(), "insert into lines (line) values ($1) on conflict do nothing", line)
	s.stillKnows(line)
}

// stillKnows reads a line on every database node, in the node: not every
// topology lets clients past the balancers.
func (s *site) stillKnows(line string) {
	s.Helper()
	for _, n := range s.plan.Nodes {
		if plan.DatabaseRole(n.Role) && s.isOn(n.Name) {
			s.Node(n.Name).WaitUntilSucceeds(fmt.Sprintf(
				`runuser -u postgres -- psql -XqtA -d %s -c "select line from lines where line = '%s'" | grep -qxF '%[2]s'`, s.top.Databases[0].Name, line))
		}
	}
}

func (s *site) isOn(name string) bool {
	return slices.ContainsFunc(s.Lab().Nodes(), func(n lab.NodeState) bool { return n.Name == name && n.On })
}

// holder is the node that has the virtual address, by the nodes' own word.
func holder(o overview.Overview) string {
	var held []string
	for _, n := range o.Nodes {
		if n.Report == nil || n.Report.Cluster == nil {
			continue
		}
		for _, v := range n.Report.Cluster.VIPs {
			if v.Held {
				held = append(held, n.Name)
			}
		}
	}
	return strings.Join(held, " and ")
}

// primary is the node that says that it is the writable leader.
func primary(o overview.Overview) string {
	for _, n := range o.Nodes {
		if n.Report == nil || n.Report.Cluster == nil || n.Report.Cluster.Database == nil {
			continue
		}
		for _, m := range n.Report.Cluster.Database.Members {
			if m.Node == n.Name && m.Role == "leader" && m.State == "running" {
				return n.Name
			}
		}
	}
	return ""
}

// example is a topology that the project ships.
func example(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join("..", "..", "examples", name, "cluster.yaml")
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
}
