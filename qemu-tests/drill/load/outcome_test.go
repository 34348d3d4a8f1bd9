package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
)

type unsent struct{ error }

func (unsent) SafeToRetry() bool { return true }

func TestOutcomesAreNeverBetterThanWhatTheServerSaid(t *testing.T) {
	said := func(severity, code string) error {
		return fmt.Errorf("wrapped: %w", &pgconn.PgError{SeverityUnlocalized: severity, Severity: "FEHLER", Code: code})
	}
	warning := &pgconn.Notice{SeverityUnlocalized: "WARNING", Severity: "WARNUNG", Code: "01000", Message: "canceling wait for synchronous replication due to user request"}
	for name, c := range map[string]struct {
		err    error
		warned *pgconn.Notice
		want   history.Outcome
	}{
		"committed":                     {nil, nil, history.Acknowledged},
		"committed, with a notice":      {nil, &pgconn.Notice{SeverityUnlocalized: "NOTICE"}, history.Acknowledged},
		"committed without replicas":    {nil, warning, history.Unknown},
		"a warning of an old server":    {nil, &pgconn.Notice{Severity: "WARNING"}, history.Unknown},
		"not sent":                      {unsent{io.EOF}, nil, history.Failed},
		"read only":                     {said("ERROR", "25006"), nil, history.Failed},
		"serialization":                 {said("ERROR", "40001"), nil, history.Failed},
		"deadlock":                      {said("ERROR", "40P01"), nil, history.Failed},
		"unique":                        {said("ERROR", "23505"), nil, history.Failed},
		"cancelled before its commit":   {said("ERROR", "57014"), nil, history.Failed},
		"completion unknown":            {said("ERROR", "40003"), nil, history.Unknown},
		"a connection that failed":      {said("ERROR", "08006"), nil, history.Unknown},
		"the server shuts down":         {said("FATAL", "57P01"), nil, history.Unknown},
		"another backend crashed":       {said("FATAL", "57P02"), nil, history.Unknown},
		"panic":                         {said("PANIC", "53100"), nil, history.Unknown},
		"hung up":                       {io.ErrUnexpectedEOF, nil, history.Unknown},
		"no answer":                     {context.DeadlineExceeded, nil, history.Unknown},
		"something that nobody expects": {errors.New("?"), nil, history.Unknown},
	} {
		if got := outcome(c.err, c.warned); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
