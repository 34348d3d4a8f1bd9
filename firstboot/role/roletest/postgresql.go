package roletest

import (
	"strings"

	"github.com/slipwayhq/slipway/firstboot/member"
)

// PostgreSQL runs one on the node, with TLS, without Patroni, for as long as the test
// lasts: with a role that owns a database of its own name.
func (n *Node) PostgreSQL(owner, password string) {
	n.t.Helper()
	n.Put(n.t, "/tmp/start", `set -eu
cd /tmp
export PATH=$PATH:/usr/lib/postgresql/17/bin
initdb -D /tmp/db --auth-local=trust --auth-host=scram-sha-256 >/dev/null
echo "hostssl all all 0.0.0.0/0 scram-sha-256" >>/tmp/db/pg_hba.conf
pg_ctl -D /tmp/db -w -l /tmp/db/log -o "-c listen_addresses=* -c unix_socket_directories=/tmp -c fsync=off -c ssl=on -c ssl_cert_file=/tmp/cert -c ssl_key_file=/tmp/key" start >/dev/null
psql -X -q -h /tmp -d postgres -v owner="$1" -v password="$2" <<'END'
CREATE ROLE :"owner" LOGIN PASSWORD :'password';
CREATE DATABASE :"owner" OWNER :"owner";
END
`)
	pair := n.Member.Certificates[member.ServiceCert]
	for path, text := range map[string]string{"/tmp/cert": pair.Certificate, "/tmp/key": pair.Key} {
		_, err := n.EnsureFor("postgres", path, 0o600, text)
		must(n.t, err)
	}
	as := []string{"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"}
	if out, err := n.On(append(as, "sh", "/tmp/start", owner, password)...); err != nil {
		n.t.Fatalf("%v: %s", err, out)
	}
	n.t.Cleanup(func() { n.StopPostgreSQL() })
}

// StopPostgreSQL takes it away at once.
func (n *Node) StopPostgreSQL() {
	n.On("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "/usr/lib/postgresql/17/bin/pg_ctl", "-D", "/tmp/db", "-m", "immediate", "stop")
}

// SQL asks the database something, as its superuser.
func (n *Node) SQL(database, text string) string {
	n.t.Helper()
	out, err := n.On("psql", "-X", "-A", "-t", "-q", "-h", "/tmp", "-U", "postgres", "-d", database, "-c", text)
	if err != nil {
		n.t.Fatalf("%s: %v: %s", text, err, out)
	}
	return strings.TrimSpace(out)
}
