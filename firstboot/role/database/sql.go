package database

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// psql has the superuser run a script on this node, through the socket. Nothing of
// the script or its output is logged.
func psql(ctx context.Context, n *node.Node, script string) (string, error) {
	quiet := "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic';\n"
	return n.Execute(ctx, node.Command{
		// Not runuser(1): a login session for each question would be work for nothing.
		Argv:    []string{"setpriv", "--reuid=" + user, "--regid=" + user, "--init-groups", "--", binDir + "/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "/run/postgresql", "-d", "postgres"},
		Stdin:   quiet + script,
		Timeout: 2 * time.Minute,
		Private: true,
	})
}

// login is a role that gets in with a password.
type login struct {
	name, password string
	replicates     bool // has the attribute REPLICATION
}

func logins(m *member.Member) ([]login, error) {
	list := []login{
		{superuser, m.Secrets[plan.SuperuserPassword], true},
		{replicator, m.Secrets[plan.ReplicationPassword], true},
		{rewinder, m.Secrets[plan.RewindPassword], false},
	}
	for _, d := range m.Plan.Databases {
		if !slices.ContainsFunc(list, func(l login) bool { return l.name == d.Owner }) {
			list = append(list, login{d.Owner, m.Secrets[d.PasswordKey()], false})
		}
	}
	for _, l := range list {
		if l.password == "" {
			return nil, fmt.Errorf("the seed holds no password for the role %s", l.name)
		}
	}
	return list, nil
}

// rewinds are the functions that pg_rewind calls on the primary (PostgreSQL
// documentation, "pg_rewind", Notes).
var rewinds = []string{
	"pg_ls_dir(text, boolean, boolean)", "pg_stat_file(text, boolean)",
	"pg_read_binary_file(text)", "pg_read_binary_file(text, bigint, bigint, boolean)",
}

// furnish makes the plan's databases and their owners, and sets passwords that a
// newer seed has changed. It also makes the roles of replication, which Patroni
// makes right after initdb and never again: the power may be cut between the two.
// It may be done again at any time. It returns what it changed.
func furnish(ctx context.Context, n *node.Node, m *member.Member) ([]string, error) {
	list, err := logins(m)
	if err != nil {
		return nil, err
	}
	out, err := psql(ctx, n, "SELECT 'role ' || rolname || ' ' || rolreplication || ' ' || coalesce(rolpassword, '') FROM pg_authid;\nSELECT 'database ' || datname FROM pg_database;\n")
	if err != nil {
		return nil, err
	}
	type known struct{ password, replicates string }
	roles, databases := map[string]known{}, map[string]bool{}
	for line := range strings.Lines(out) {
		switch f := strings.Split(strings.TrimRight(line, "\n"), " "); {
		case len(f) == 4 && f[0] == "role":
			roles[f[1]] = known{password: f[3], replicates: f[2]}
		case len(f) == 2 && f[0] == "database":
			databases[f[1]] = true
		}
	}
	var script strings.Builder
	var changes []string
	for _, l := range list {
		known, exists := roles[l.name]
		lacksRight := l.replicates && known.replicates != "true"
		if exists && !lacksRight && verifies(known.password, l.password) {
			continue
		}
		hash, err := verifier(l.password)
		if err != nil {
			return nil, err
		}
		verb, right := "CREATE", ""
		switch {
		case !exists:
			changes = append(changes, "made the role "+l.name)
		case lacksRight:
			verb = "ALTER"
			changes = append(changes, "let the role "+l.name+" replicate")
		default:
			verb = "ALTER"
			changes = append(changes, "set the password of the role "+l.name)
		}
		if l.replicates {
			right = " REPLICATION"
		}
		fmt.Fprintf(&script, "%s ROLE %s LOGIN%s PASSWORD %s;\n", verb, name(l.name), right, literal(hash))
	}
	for _, f := range rewinds {
		fmt.Fprintf(&script, "GRANT EXECUTE ON FUNCTION pg_catalog.%s TO %s;\n", f, name(rewinder))
	}
	for _, d := range m.Plan.Databases {
		if !databases[d.Name] {
			changes = append(changes, "made the database "+d.Name)
			fmt.Fprintf(&script, "CREATE DATABASE %s OWNER %s;\nREVOKE ALL ON DATABASE %[1]s FROM PUBLIC;\n", name(d.Name), name(d.Owner))
		}
	}
	_, err = psql(ctx, n, script.String())
	return changes, err
}

// name and literal quote (PostgreSQL documentation, "Lexical Structure").
func name(text string) string    { return `"` + strings.ReplaceAll(text, `"`, `""`) + `"` }
func literal(text string) string { return `'` + strings.ReplaceAll(text, `'`, `''`) + `'` }

const rounds = 4096 // PostgreSQL's scram_iterations

// verifier is what PostgreSQL stores of a password (RFC 5803), so that the server
// never sees the password itself.
func verifier(password string) (string, error) {
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return "", err
	}
	return scram(password, salt, rounds)
}

func scram(password string, salt []byte, rounds int) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, rounds, sha256.Size)
	if err != nil {
		return "", err
	}
	keyed := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(keyed(salted, "Client Key"))
	text := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", rounds, text(salt), text(stored[:]), text(keyed(salted, "Server Key"))), nil
}

// verifies reports whether a stored verifier is that of a password.
func verifies(stored, password string) bool {
	rest, ok := strings.CutPrefix(stored, "SCRAM-SHA-256$")
	if !ok {
		return false
	}
	head, _, _ := strings.Cut(rest, "$")
	count, salt, _ := strings.Cut(head, ":")
	rounds, err := strconv.Atoi(count)
	raw, err2 := base64.StdEncoding.DecodeString(salt)
	if err != nil || err2 != nil || rounds < 1 || rounds > 10_000_000 {
		return false
	}
	again, err := scram(password, raw, rounds)
	return err == nil && subtle.ConstantTimeCompare([]byte(again), []byte(stored)) == 1
}
