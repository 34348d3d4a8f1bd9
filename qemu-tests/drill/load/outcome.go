package load

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
)

// outcome says what came of a statement that is a transaction of its own.
//
// Acknowledged: the server has said that it is committed, and warned of nothing.
// A commit whose wait for synchronous replication is cancelled is reported as
// done, with a warning that the replicas may not have it (PostgreSQL,
// src/backend/replication/syncrep.c, SyncRepWaitForLSN): that is unknown.
//
// Failed: the statement was not sent, or the server refused it with severity
// ERROR, which undoes the transaction, such as 25006 on a replica and class 40.
// Two codes say themselves that they do not know: 40003 and class 08 (PostgreSQL
// documentation, "PostgreSQL Error Codes").
//
// Unknown: all else. A server that ends the session (FATAL, PANIC) or that is not
// heard of any more may have committed before it did.
func outcome(err error, warned *pgconn.Notice) history.Outcome {
	if err == nil {
		// NOTICE and less say nothing of the commit.
		if warned != nil && severity(warned.SeverityUnlocalized, warned.Severity) == "WARNING" {
			return history.Unknown
		}
		return history.Acknowledged
	}
	if pgconn.SafeToRetry(err) {
		return history.Failed
	}
	var said *pgconn.PgError
	if errors.As(err, &said) && severity(said.SeverityUnlocalized, said.Severity) == "ERROR" && said.Code != "40003" && (len(said.Code) < 2 || said.Code[:2] != "08") {
		return history.Failed
	}
	return history.Unknown
}

// severity is the word that is not translated, which servers send since 9.6.
func severity(unlocalized, localized string) string {
	if unlocalized != "" {
		return unlocalized
	}
	return localized
}
