//go:build long

package desktopstest

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/balancer"
	"github.com/slipwayhq/slipway/firstboot/role/product"
)

// tell has the agent's own step tell the product of a node of its cluster, which it
// does before any unit starts. Where a test has no database the broker keeps a file.
func (m *machine) tell(maintenance bool) {
	m.t.Helper()
	if maintenance {
		must(m.t, m.BeginMaintenance(node.Maintenance{Since: time.Now(), By: "test"}))
	} else {
		must(m.t, m.EndMaintenance())
	}
	must(m.t, product.Tell(m.Node.Node))
	if m.cluster.db == nil {
		must(m.t, os.Remove(m.Path(product.Dir+"/env")))
	}
}

const (
	vip  = "10.77.1.10"
	host = "vdi.example.internal"
)

// database boots a node with a real PostgreSQL and, in Patroni's place, somebody who
// says that it is the primary.
func (c *cluster) database(name string) *machine {
	m := c.machine(name)
	m.succeed("root", "rm", "-rf", "/var/lib/postgresql/17", "/etc/postgresql")
	m.succeed("root", "install", "-d", "-o", "postgres", "-g", "postgres", "/run/postgresql", "/var/lib/postgresql/data")
	const bin, data = "/usr/lib/postgresql/17/bin/", "/var/lib/postgresql/data"
	m.succeed("postgres", bin+"initdb", "-D", data, "--no-sync", "--auth-local=peer", "--auth-host=scram-sha-256")
	pair := m.Member.Certificates["service"]
	m.Put(c.t, "/var/lib/postgresql/cert.pem", pair.Certificate)
	m.Put(c.t, "/var/lib/postgresql/key.pem", pair.Key)
	m.succeed("root", "sh", "-c", "chown postgres /var/lib/postgresql/*.pem && chmod 600 /var/lib/postgresql/key.pem")
	must(c.t, appendTo(m.Path(data+"/pg_hba.conf"), "hostssl all all 10.77.1.0/24 scram-sha-256\n"))
	m.Put(c.t, "/usr/lib/systemd/system/postgresql.service", "[Service]\nUser=postgres\nExecStart="+bin+"postgres -D "+data+
		" -c listen_addresses=* -c ssl=on -c ssl_cert_file=/var/lib/postgresql/cert.pem -c ssl_key_file=/var/lib/postgresql/key.pem -c fsync=off\n")
	m.start("postgresql.service")
	until(c.t, "PostgreSQL answers", func() bool { return m.as("postgres", nil, "psql", "-qc", "select 1").Run() == nil })
	m.psql("CREATE ROLE broker LOGIN PASSWORD '" + c.secrets["database-broker"] + "'")
	m.psql("CREATE DATABASE broker OWNER broker")
	m.Put(c.t, "/patroni.py", `import http.server, ssl
class Primary(http.server.BaseHTTPRequestHandler):
    def do_OPTIONS(self):
        self.send_response(200 if self.path == "/primary" else 503); self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("", 8008), Primary)
tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain("/var/lib/postgresql/cert.pem", "/var/lib/postgresql/key.pem")
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
`)
	m.Put(c.t, "/usr/lib/systemd/system/patroni.service", "[Service]\nUser=postgres\nExecStart=/usr/bin/python3 /patroni.py\n")
	m.start("patroni.service")
	return m
}

func (m *machine) psql(statement string) string {
	m.t.Helper()
	return m.succeed("postgres", "psql", "-qAtX", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c", statement)
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// balancer boots a balancer; holder says that the virtual address is on it.
func (c *cluster) balancer(name string, holder bool) *machine {
	m := c.machine(name, "balancer")
	m.succeed("root", "install", "-d", "-o", "haproxy", "-g", "haproxy", "/run/haproxy", "/var/lib/haproxy")
	must(c.t, (balancer.Configure{}).Apply(c.t.Context(), m.Node.Node))
	m.command(m.inside("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind")...)
	if holder {
		m.take()
	}
	m.Put(c.t, "/usr/lib/systemd/system/haproxy.service", "[Service]\nExecStart=/usr/sbin/haproxy -W -db -f /etc/haproxy/haproxy.cfg\n")
	m.start("haproxy.service")
	return m
}

// take gives a balancer the virtual address, as keepalived does.
func (m *machine) take() {
	m.command(m.inside("ip", "address", "add", vip+"/32", "dev", "eth0")...)
}

// broker boots a broker.
func (c *cluster) broker(name string) *machine {
	m := c.machine(name, "broker")
	m.succeed("root", "useradd", "--system", "--uid", "851", "--user-group", "broker")
	m.succeed("root", "usermod", "-aG", "broker", "www-data")
	m.succeed("root", "install", "-d", "-o", "broker", "-g", "broker", "-m", "0750", "/var/server")
	m.tell(false)
	return m
}

// serve starts a broker that is set up.
func (m *machine) serve() {
	m.t.Helper()
	m.start("broker.service")
	m.start("nginx.service")
}

// adopt has a broker take the shared file of another.
func (m *machine) adopt(from *machine) {
	m.t.Helper()
	_, err := m.EnsureFor("broker", "/var/server/server/settings.py", 0o640, from.File(m.t, "/var/server/server/settings.py"))
	must(m.t, err)
}

// status is what an HTTPS service of the node answers to the node itself; "" is nothing.
func (m *machine) status(port int, path string) string {
	said, err := m.as("root", nil, "python3", "-c", `import http.client, ssl, sys
asked = http.client.HTTPSConnection("localhost", int(sys.argv[1]), timeout=10, context=ssl._create_unverified_context())
asked.request("GET", sys.argv[2])
print(asked.getresponse().status)`, strconv.Itoa(port), path).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(said))
}
