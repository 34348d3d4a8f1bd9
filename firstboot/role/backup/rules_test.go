package backup

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// among is a node of a cluster of two databases and a repository.
func among(t *testing.T, b *plan.Backup, name string, secrets map[string]string) *member.Member {
	t.Helper()
	p := &plan.Plan{Cluster: "orders", Backup: b, Sites: []plan.Site{{Name: "a", Postgres: plan.Postgres{Port: 5432}}}}
	for i, n := range []string{"db1 db-master", "db2 db-replica", "keep repository"} {
		name, role, _ := strings.Cut(n, " ")
		p.Nodes = append(p.Nodes, plan.Node{Name: name, Role: role, Site: "a", Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(11 + i)})})
	}
	self, err := p.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	m := &member.Member{Plan: p, Self: self, Site: p.Sites[0]}
	m.Secrets = secrets
	return m
}

func TestTheRepositoryHasThePassphraseAndTheDatabasesHaveNot(t *testing.T) {
	b := &plan.Backup{Repository: "keep", KeepFull: 2, KeepDiff: 5, WALQueue: 512}
	keeper, err := render(among(t, b, "keep", map[string]string{plan.BackupCipher: "open sesame"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"repo1-cipher-pass=open sesame\n", "repo1-path=/var/lib/pgbackrest\n", "repo1-retention-full=2\n", "repo1-retention-diff=5\n",
		"tls-server-auth=db1=orders\n", "tls-server-auth=db2=orders\n", "pg1-host=192.0.2.11\n", "pg2-host=192.0.2.12\n", "pg2-host-type=tls\n", "[orders]\n"} {
		if !strings.Contains(keeper, want) {
			t.Errorf("the repository has no %q:\n%s", want, keeper)
		}
	}
	database, err := render(among(t, b, "db2", nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"repo1-host=192.0.2.13\n", "repo1-host-type=tls\n", "tls-server-auth=keep=orders\n", "archive-push-queue-max=512MiB\n", "pg1-path=/var/lib/postgresql/17/main\n"} {
		if !strings.Contains(database, want) {
			t.Errorf("the database has no %q:\n%s", want, database)
		}
	}
	if strings.Contains(database, "cipher") || strings.Contains(database, "db1") || strings.Contains(keeper, "archive-async") {
		t.Errorf("too much:\n%s\n%s", keeper, database)
	}
}

func TestWithS3TheDatabasesHaveTheKeysAndSpeakToNobody(t *testing.T) {
	b := &plan.Backup{S3: &plan.S3{Endpoint: "s3.example.org", Bucket: "orders", Region: "eu-1", Path: "/a", Style: "path"}, WALQueue: 512}
	secrets := map[string]string{plan.BackupCipher: "p", plan.S3Key: "k", plan.S3KeySecret: "s"}
	text, err := render(among(t, b, "db1", secrets))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"repo1-type=s3\n", "repo1-s3-endpoint=s3.example.org\n", "repo1-s3-uri-style=path\n", "repo1-s3-key=k\n", "repo1-s3-key-secret=s\n", "repo1-path=/a\n", "repo1-cipher-pass=p\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "tls-server") || strings.Contains(text, "-host") {
		t.Errorf("it speaks to other nodes:\n%s", text)
	}
	for name := range secrets {
		for _, bad := range []string{"", "two\nlines", " padded"} {
			spoilt := map[string]string{plan.BackupCipher: "p", plan.S3Key: "k", plan.S3KeySecret: "s", name: bad}
			if text, err := render(among(t, b, "db1", spoilt)); err == nil || fault.Mend(err) == "" {
				t.Errorf("%s is %q: %v\n%s", name, bad, err, text)
			}
		}
	}
}

func TestAnotherClustersBackupsAreReadWithWhatBelongsToThem(t *testing.T) {
	secrets := map[string]string{plan.BackupCipher: "own", plan.SourceCipher: "theirs", plan.S3Key: "k", plan.S3KeySecret: "s", plan.SourceS3Key: "tk", plan.SourceS3KeySecret: "ts"}
	s3 := &plan.S3{Endpoint: "s3.example.org", Bucket: "orders", Region: "eu-1", Path: "/a", Style: "path", CA: "authority"}
	theirs := &plan.S3{Endpoint: "s3.north.example", Bucket: "north", Region: "eu-2", Path: "/", Style: "host"}
	lacks := func(what, text string, words ...string) {
		for _, word := range words {
			if strings.Contains(text, word) {
				t.Errorf("%s has %q:\n%s", what, word, text)
			}
		}
	}
	for _, c := range []struct {
		what       string
		b          *plan.Backup
		has, hasNo []string
	}{
		{"in the repository", &plan.Backup{Repository: "keep", From: &plan.Source{Cluster: "north"}}, []string{"repo1-host=192.0.2.13\n", "[north]\npg1-path="}, []string{"cipher", "s3", "[orders]"}},
		{"in the cluster's bucket", &plan.Backup{S3: s3, From: &plan.Source{Cluster: "north"}},
			[]string{"repo1-s3-bucket=orders\n", "repo1-s3-key=k\n", "repo1-cipher-pass=theirs\n", "repo1-storage-ca-file=/etc/pgbackrest/pki/source-ca.pem\n"}, []string{"=own\n", "repo1-host"}},
		{"in a bucket of their own", &plan.Backup{Repository: "keep", From: &plan.Source{Cluster: "north", S3: theirs}},
			[]string{"repo1-s3-bucket=north\n", "repo1-s3-key=tk\n", "repo1-s3-key-secret=ts\n", "repo1-cipher-pass=theirs\n"}, []string{"=own\n", "repo1-host", "storage-ca"}},
	} {
		text, err := renderSource(among(t, c.b, "db1", secrets))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range c.has {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q:\n%s", c.what, want, text)
			}
		}
		lacks(c.what, text, c.hasNo...)
		lacks(c.what, text, "retention", "tls-server", "archive-push")
	}
	b := &plan.Backup{Repository: "keep", From: &plan.Source{Cluster: "north"}}
	keeper, err := render(among(t, b, "keep", secrets))
	if err != nil || !strings.Contains(keeper, "tls-server-auth=db1=orders,north\n") || !strings.Contains(keeper, "\n[north]\nrepo1-cipher-pass=theirs\n") {
		t.Errorf("the repository: %v\n%s", err, keeper)
	}
	b.From.S3 = theirs
	if keeper, err = render(among(t, b, "keep", secrets)); err != nil || strings.Contains(keeper, "north") {
		t.Errorf("the repository of a cluster that reads from elsewhere: %v\n%s", err, keeper)
	}
	for _, from := range []string{"south", "--config=/x"} {
		n := &node.Node{Member: among(t, b, "db1", secrets)}
		if _, err := Look(t.Context(), n, from); fault.Of(err) != fault.Usage {
			t.Errorf("backups of %s: %v", from, err)
		}
	}
}

func TestWhatIsDue(t *testing.T) {
	sunday := time.Date(2026, 11, 15, 1, 30, 0, 0, time.UTC)
	set := func(kind string, after time.Duration) status.BackupSet {
		return status.BackupSet{Type: kind, Start: sunday.Add(after)}
	}
	b := &plan.Backup{Full: "sun 01:30", Diff: "01:30"}
	for _, c := range []struct {
		why   string
		sets  []status.BackupSet
		after time.Duration
		want  string
	}{
		{"there is none", nil, time.Hour, "full"},
		{"the full one was just made", []status.BackupSet{set("full", time.Minute)}, time.Hour, ""},
		{"a day has passed", []status.BackupSet{set("full", time.Minute)}, 25 * time.Hour, "diff"},
		{"the differential one was made", []status.BackupSet{set("full", time.Minute), set("diff", 24*time.Hour)}, 25 * time.Hour, ""},
		{"one by hand counts", []status.BackupSet{set("full", time.Minute), set("incr", 24*time.Hour)}, 25 * time.Hour, ""},
		{"a week has passed", []status.BackupSet{set("full", time.Minute), set("diff", 6*24*time.Hour)}, 7 * 24 * time.Hour, "full"},
		{"a late one does not move the next", []status.BackupSet{set("full", -time.Minute)}, 0, "full"},
	} {
		if got := due(b, c.sets, sunday.Add(c.after)); got != c.want {
			t.Errorf("%s: %q, want %q", c.why, got, c.want)
		}
	}
	if got := due(&plan.Backup{}, nil, sunday); got != "" {
		t.Errorf("without a schedule %q is due", got)
	}
	if got := due(&plan.Backup{Full: "sun 01:30"}, []status.BackupSet{set("full", time.Minute)}, sunday.Add(3*24*time.Hour)); got != "" {
		t.Errorf("without differential ones %q is due", got)
	}
}

func TestWhatTheRepositoryHoldsIsRead(t *testing.T) {
	const text = `[{"archive":[{"id":"17-1","max":"0000000700000000000000FF","min":"000000010000000000000000"},{"id":"17-2","max":"000000020000000000000009","min":"000000010000000000000001"}],
"db":[{"id":1,"system-id":7318000000000000001,"version":"17"},{"id":2,"system-id":7318000000000000002,"version":"17"}],
"backup":[{"archive":{"start":"0","stop":"0"},"database":{"id":1},"error":true,"label":"20261115-013000F","timestamp":{"start":1778000000,"stop":1778000100},"type":"full"},{"archive":{"start":"B","stop":"C"},"database":{"id":2},"error":true,"info":{"size":300,"repository":{"delta":30}},"label":"20261116-013000F_20261117-013000D","timestamp":{"start":1779000000,"stop":1779000060},"type":"diff"},
{"archive":{"start":"A","stop":"A"},"database":{"id":2},"error":false,"info":{"size":200,"repository":{"delta":100}},"label":"20261116-013000F","timestamp":{"start":1778900000,"stop":1778900100},"type":"full"}],
"name":"orders","status":{"code":0,"message":"ok"}}]`
	info, err := parseInfo(text, "orders")
	if err != nil || !info.Exists || info.System != "7318000000000000002" || len(info.Sets) != 2 || info.Sets[0].Type != "full" || info.Sets[1].Stored != 30 || !info.Sets[1].Damaged ||
		info.First != "000000010000000000000001" || info.Last != "000000020000000000000009" {
		t.Errorf("%+v, %v", info, err)
	}
	if err := damaged(info); err == nil || !strings.Contains(err.Error(), "20261116-013000F_20261117-013000D") {
		t.Errorf("of a damaged backup is told: %v", err)
	}
	for text, exists := range map[string]bool{`[]`: false, `[{"name":"orders","status":{"code":1}}]`: false, `[{"name":"orders","status":{"code":3}}]`: false, `[{"name":"orders","status":{"code":2}}]`: true} {
		if info, err := parseInfo(text, "orders"); err != nil || info.Exists != exists {
			t.Errorf("%s: %+v, %v", text, info, err)
		}
	}
	for text, want := range map[string]string{
		`[{"name":"orders","status":{"code":99,"message":"other"},"repo":[{"status":{"code":99,"message":"[ProtocolError] HTTP request failed with 403 (Forbidden):\n*** Path/Query ***:\nGET /?list-type=2"}}]}]`: "the repository: [ProtocolError] HTTP request failed with 403 (Forbidden)",
		`[{"name":"orders","status":{"code":99,"message":"other"}}]`: "the repository: other",
	} {
		if _, err := parseInfo(text, "orders"); err == nil || err.Error() != want {
			t.Errorf("%s is told as: %v", text, err)
		}
	}
	for _, text := range []string{``, `{}`, `[{"name":"orders","status":{"code":99,"message":"other"}}]`} {
		if _, err := parseInfo(text, "orders"); err == nil {
			t.Errorf("%q is taken for an answer", text)
		}
	}
}

// saying is a node whose pgBackRest always ends with a status.
type saying struct {
	status string
	asked  [][]string
}

func (s *saying) Run(_ context.Context, c node.Command) (string, error) {
	s.asked = append(s.asked, c.Argv)
	if slices.Contains(c.Argv, "info") {
		return `[{"name":"orders","status":{"code":2}}]`, nil
	}
	err := exec.Command("sh", "-c", "exit "+s.status).Run()
	return "", &node.CommandError{Argv: c.Argv, How: "exit status " + s.status, Said: "ERROR: what it says", Err: err}
}

func TestWhatPgBackRestComplainsOfIsSaidInOtherWords(t *testing.T) {
	for status, want := range map[string]string{
		"28": "backups of another database", "51": "backups of another database", "50": "another backup is under way", "56": "no writable primary", "103": "what it says",
	} {
		s := &saying{status: status}
		n := &node.Node{Root: t.TempDir(), Run: s, Member: among(t, &plan.Backup{Repository: "keep"}, "keep", map[string]string{plan.BackupCipher: "open sesame"})}
		if _, err := n.Write("/usr/bin/setpriv", 0o755, []byte("x")); err != nil {
			t.Fatal(err)
		}
		_, err := Make(t.Context(), n, "full")
		if err == nil || !regexp.MustCompile(want).MatchString(err.Error()) {
			t.Errorf("%s: %v, want %q", status, err, want)
		}
		for _, argv := range s.asked {
			if slices.ContainsFunc(argv, func(word string) bool { return strings.Contains(word, "sesame") }) {
				t.Errorf("the passphrase stands in %q", argv)
			}
		}
	}
}

// told is a node whose systemd notes what it is told.
type told struct{ commands []string }

func (s *told) Run(_ context.Context, c node.Command) (string, error) {
	if slices.Contains(c.Argv, "is-active") {
		return "active", nil
	}
	s.commands = append(s.commands, strings.Join(c.Argv, " "))
	return "", nil
}

func TestTheServerReadsKeysThatWereExchanged(t *testing.T) {
	systemd := &told{}
	n := &node.Node{Root: t.TempDir(), Report: &nodetest.Said{}, Run: systemd}
	for path, text := range map[string]string{
		"/etc/passwd": fmt.Sprintf("postgres:x:%d:%d::/:/bin/sh\n", os.Getuid(), os.Getgid()), "/run/systemd/system/.keep": "", "/usr/bin/systemctl": "#!\n",
	} {
		if _, err := n.Write(path, 0o755, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	n.Member = among(t, &plan.Backup{Repository: "keep", KeepFull: 2, KeepDiff: 5, WALQueue: 512}, "db2", nil)
	const reload = "systemctl --no-block reload pgbackrest.service"
	for i, c := range []struct {
		key  string
		want int
	}{{"one", 1}, {"one", 1}, {"another", 2}} {
		n.Member.Certificates = map[string]member.Pair{member.BackupCert: {Certificate: "certificate " + c.key, Key: "key " + c.key}}
		if err := (Configure{}).Apply(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		if len(systemd.commands) != c.want || systemd.commands[c.want-1] != reload {
			t.Errorf("round %d, key %q: told %q, want %d times %q", i+1, c.key, systemd.commands, c.want, reload)
		}
	}
}
