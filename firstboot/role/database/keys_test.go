package database

import (
	"context"
	"crypto/tls"
	"regexp"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

// keyFiles are, in the configurations of etcd and Patroni, a certificate's file and that of
// its key: as they stand behind each other there.
var keyFiles = map[string]*regexp.Regexp{
	"/etc/default/etcd": regexp.MustCompile(`_CERT_FILE=(\S+)\n\S+_KEY_FILE=(\S+)\n`),
	configPath:          regexp.MustCompile(`(?:cert|certfile|ssl_cert_file): (\S+)\n\s+(?:key|keyfile|ssl_key_file): (\S+)\n`),
}

// reader plays a service that reads its keys after each change of a file.
type reader struct {
	node.Reporter
	read func(after string)
}

func (r reader) Changed(what string) { r.read(what); r.Reporter.Changed(what) }

func TestAtNoMomentDoesAKeyNotFitItsCertificate(t *testing.T) {
	n := roletest.Start(t, roletest.Members(t, roletest.Plan())["a-db1"])
	apply := func() {
		t.Helper()
		for _, s := range []interface {
			Apply(ctx context.Context, n *node.Node) error
		}{consensus.Configure{}, Configure{}} {
			if err := s.Apply(t.Context(), n.Node.Node); err != nil {
				t.Fatal(err)
			}
		}
	}
	apply()
	looks := 0
	read := func(after string) {
		looks++
		for config, pattern := range keyFiles {
			pairs := pattern.FindAllStringSubmatch(n.File(t, config), -1)
			if want := map[string]int{"/etc/default/etcd": 2, configPath: 4}[config]; len(pairs) != want {
				t.Fatalf("%s names %d pairs, want %d", config, len(pairs), want)
			}
			for _, p := range pairs {
				if _, err := tls.LoadX509KeyPair(n.Path(p[1]), n.Path(p[2])); err != nil {
					t.Errorf("%s, after %q: %s with %s: %v", config, after, p[1], p[2], err)
				}
			}
		}
	}
	n.Report = reader{n.Report, read}
	m := *n.Member
	m.Issue, m.Certificates = 1, roletest.Renewed(t, &m)
	n.Member = &m
	apply()
	if read("the end"); looks < 5 {
		t.Errorf("only %d files were changed", looks)
	}
}
