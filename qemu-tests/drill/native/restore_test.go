//go:build long

package native

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/qemu-tests/drill/rehearsal"
)

// burnt is a cluster of two databases and a repository, as a rehearsal's ground. It
// does what slipway's agents do when they are asked to.
type burnt struct {
	t       *testing.T
	plan    *plan.Plan
	members map[string]*member.Member
	net     *network
	keeper  *roletest.Node
	nodes   []*roletest.Node
	// corrupt spoils what is back, before anybody looks.
	corrupt string
}

func newBurnt(t *testing.T) *burnt {
	p := roletest.Plan()
	p.Sites = p.Sites[:1]
	p.Sites[0].Consensus = []string{"a-db1"}
	p.Nodes = p.Nodes[:2]
	p.Clients = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}
	address := netip.MustParseAddr("10.77.1.31")
	p.Nodes = append(p.Nodes, plan.Node{Name: "a-keep", Role: plan.RepositoryRole, Site: "a", Address: address, Addresses: []netip.Prefix{netip.PrefixFrom(address, 24)}})
	p.Backup = &plan.Backup{Repository: "a-keep", KeepFull: 2, KeepDiff: 4, ArchiveTimeout: 10, WALQueue: 128}
	b := &burnt{t: t, plan: p, members: roletest.Members(t, p), net: newNetwork(t)}
	b.keeper = b.net.start(b.members["a-keep"])
	b.keeper.Overlay("backup")
	b.must(b.backs(t.Context(), b.keeper))
	b.must(b.Renew(t.Context()))
	return b
}

func (b *burnt) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// backs has a node take its part in backups.
func (b *burnt) backs(ctx context.Context, n *roletest.Node) error {
	if err := (backup.Configure{}).Apply(ctx, n.Node.Node); err != nil {
		return err
	}
	return (&backup.Start{}).Apply(ctx, n.Node.Node)
}

// Renew implements rehearsal.Ground: new machines, the same seeds.
func (b *burnt) Renew(ctx context.Context) error {
	b.nodes = nil
	for _, name := range []string{"a-db1", "a-db2"} {
		n := bootDatabase(b.t, b.net, b.members[name])
		n.Overlay("backup")
		if err := b.backs(ctx, n); err != nil {
			return err
		}
		b.nodes = append(b.nodes, n)
	}
	return b.each(func(n *roletest.Node) error {
		if err := (&consensus.Start{}).Apply(ctx, n.Node.Node); err != nil {
			return err
		}
		return (&database.Start{}).Apply(ctx, n.Node.Node)
	})
}

// each does something on all databases at once.
func (b *burnt) each(do func(*roletest.Node) error) error {
	errs := make(chan error, len(b.nodes))
	for _, n := range b.nodes {
		go func() {
			err := do(n)
			if err != nil {
				err = fmt.Errorf("%s: %w\n%s", n.Member.Self.Name, err, n.Log(database.Unit))
			}
			errs <- err
		}()
	}
	var first error
	for range b.nodes {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Connect implements rehearsal.Ground.
func (b *burnt) Connect(ctx context.Context) (*pgx.Conn, error) {
	err := error(nil)
	for _, n := range b.nodes {
		m := n.Member
		var config *pgx.ConnConfig
		if config, err = pgx.ParseConfig(fmt.Sprintf("postgres://app@%s:5432/app", m.Self.Address)); err != nil {
			return nil, err
		}
		config.Password, config.ConnectTimeout, config.Fallbacks = m.Secrets[plan.Database{Owner: "app"}.PasswordKey()], 5*time.Second, []*pgconn.FallbackConfig{}
		config.TLSConfig = &tls.Config{RootCAs: pki.Pool(m.CA), ServerName: m.Self.Address.String(), MinVersion: tls.VersionTLS12}
		var conn *pgx.Conn
		if conn, err = pgx.ConnectConfig(ctx, config); err != nil {
			continue
		}
		standby := false
		if err = conn.QueryRow(ctx, "select pg_is_in_recovery()").Scan(&standby); err == nil && !standby {
			return conn, nil
		}
		conn.Close(ctx)
	}
	if err == nil {
		err = fmt.Errorf("nobody is the primary")
	}
	return nil, err
}

// Backup implements rehearsal.Ground.
func (b *burnt) Backup(ctx context.Context) error {
	_, err := backup.Make(ctx, b.keeper.Node.Node, "full")
	return err
}

// Lose implements rehearsal.Ground.
func (b *burnt) Lose(context.Context) error {
	for _, n := range b.nodes {
		n.Crash()
		b.net.remove(n.Member.Self.Name)
	}
	return nil
}

// Restore implements rehearsal.Ground: the deeds in the order that package operations has
// for them.
func (b *burnt) Restore(ctx context.Context) error {
	want := database.Request{Target: database.Latest, Node: "a-db1"}
	say := func(line string) { b.t.Log(line) }
	for _, n := range []*roletest.Node{b.nodes[1], b.nodes[0]} {
		if _, err := database.StepAside(ctx, n.Node.Node, want, say); err != nil {
			return err
		}
	}
	first := b.nodes[0].Node.Node
	if _, err := database.BringBack(ctx, first, want, say); err != nil {
		return err
	}
	for _, n := range b.nodes {
		if err := database.Commit(n.Node.Node); err != nil {
			return err
		}
	}
	if err := database.Forget(ctx, first); err != nil {
		return err
	}
	for _, n := range b.nodes {
		if err := database.TakePart(ctx, n.Node.Node); err != nil {
			return err
		}
	}
	for _, n := range b.nodes {
		if err := database.Tidy(n.Node.Node); err != nil {
			return err
		}
	}
	if b.corrupt == "" {
		return nil
	}
	conn, err := b.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, b.corrupt)
	return err
}

func (b *burnt) rehearse() *rehearsal.Result {
	b.t.Helper()
	log := logrus.New()
	log.SetOutput(testLog{b.t})
	r, err := rehearsal.Run(b.t.Context(), rehearsal.Config{Cluster: "test", Ground: b, After: 25 * time.Second, Every: 50 * time.Millisecond, Patience: 3 * time.Minute, Log: log})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Log("\n" + r.Text())
	return r
}

func TestALostDatabaseIsBackInNewMachinesRowByRow(t *testing.T) {
	b := newBurnt(t)
	r := b.rehearse()
	if !r.Held() || r.Outcome != "held" || len(r.Tables) != 2 || r.Sooner == 0 || r.RecoverySeconds < r.RestoreSeconds || r.RestoreSeconds == 0 {
		t.Errorf("%+v", r)
	}
	// What was not in the archive yet is lost, and told of.
	if (r.Lost > 0) != (r.LostSeconds > 0) {
		t.Errorf("%d rows are lost, the last %.1f s", r.Lost, r.LostSeconds)
	}
	// A second loss, on the history that goes on, and with one value in one row that is not
	// what it was.
	b.corrupt = "update rehearsal.kinds set json = '{}' where n = 1234"
	if r = b.rehearse(); r.Held() || !strings.Contains(strings.Join(r.Problems, "; "), "the table rehearsal.kinds is not what it was") {
		t.Errorf("a changed row was not seen: %+v", r)
	}
}
