package rehearsal

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/sirupsen/logrus"
)

// pretended is a database that answers each connection's statements in its own way: "" for
// done, else with an error. It is no Ground for anything but connections.
type pretended struct {
	Ground
	connections int
	answer      func(connection int, statement string) string
}

// Connect implements Ground.
func (p *pretended) Connect(ctx context.Context) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig("postgres://app@127.0.0.1/app?sslmode=disable")
	if err != nil {
		return nil, err
	}
	p.connections++
	number := p.connections
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go p.serve(server, number)
		return client, nil
	}
	return pgx.ConnectConfig(ctx, config)
}

func (p *pretended) serve(conn net.Conn, number int) {
	defer conn.Close()
	b := pgproto3.NewBackend(conn, conn)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	b.Send(&pgproto3.AuthenticationOk{})
	for {
		b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		if b.Flush() != nil {
			return
		}
		m, err := b.Receive()
		if err != nil {
			return
		}
		text := "an unforeseen message"
		if q, ok := m.(*pgproto3.Query); ok {
			text = p.answer(number, q.String)
		}
		if text != "" {
			b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", Code: "25006", Message: text})
		} else {
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte("CREATE TABLE")})
		}
	}
}

func TestTablesThatCannotBeMadeEndARehearsalWithTheReason(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	p := &pretended{answer: func(int, string) string { return "there is no room left" }}
	if _, err := Run(t.Context(), Config{Ground: p, Log: log}); err == nil || !strings.Contains(err.Error(), "making the tables") || !strings.Contains(err.Error(), "there is no room left") {
		t.Errorf("%v", err)
	}
}

func TestTheFirstWriteIsTriedAgainOverAnotherConnection(t *testing.T) {
	p := &pretended{answer: func(connection int, statement string) string {
		if connection == 1 {
			return "cannot execute CREATE TABLE in a read-only transaction"
		}
		return ""
	}}
	conn, err := Config{Ground: p, Patience: time.Minute}.writable(t.Context())
	if err != nil || p.connections != 2 {
		t.Fatalf("%d connections, %v", p.connections, err)
	}
	conn.Close(t.Context())
	p = &pretended{answer: func(int, string) string { return "read-only" }}
	if _, err := (Config{Ground: p, Patience: time.Millisecond}).writable(t.Context()); err == nil || !strings.Contains(err.Error(), "takes no writes") {
		t.Errorf("%v", err)
	}
}
