package topology

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// never is what stands for a kind of backup that is not made.
const never = "never"

// backup reads where backups are kept. What the file leaves out: a full backup on
// Sundays, a differential one on every night; a month of both; at most a minute of
// an idle database's last changes is not in the archive.
func (v value) backup() *plan.Backup {
	b := &plan.Backup{Full: "sun 01:30", Diff: "01:30", KeepFull: 4, KeepDiff: 14, ArchiveTimeout: 60, WALQueue: int(4 * profile.GiB / profile.MiB)}
	o := v.object("backup")
	if v, ok := o.get("repository"); ok {
		b.Repository, _ = v.text()
	}
	if v, ok := o.get("s3"); ok {
		b.S3 = v.s3()
	}
	if v, ok := o.get("schedule"); ok {
		o := v.object("schedule")
		for key, into := range map[string]*plan.When{"full": &b.Full, "diff": &b.Diff} {
			if v, ok := o.get(key); ok {
				*into = v.when()
			}
		}
	}
	if v, ok := o.get("retention"); ok {
		o := v.object("retention")
		for key, into := range map[string]*int{"full": &b.KeepFull, "diff": &b.KeepDiff} {
			if v, ok := o.get(key); ok {
				*into, _ = v.number(1, 9999, "give how many are kept, at least 1")
			}
		}
	}
	if v, ok := o.get("archive_timeout"); ok {
		b.ArchiveTimeout, _ = v.number(10, 86400, "give seconds, at least 10; a minute is usual")
	}
	if v, ok := o.get("wal_queue"); ok {
		size, _ := v.size(256*profile.MiB, 64*profile.TiB)
		b.WALQueue = int(size / profile.MiB)
	}
	if v, ok := o.get("from"); ok {
		o := v.object("from")
		b.From = &plan.Source{}
		if v, ok := o.need("cluster", "name the cluster that made the backups"); ok {
			b.From.Cluster, _ = v.text()
		}
		if v, ok := o.get("s3"); ok {
			b.From.S3 = v.s3()
		}
	}
	return b
}

// when reads a time of the day or week; "" for never.
func (v value) when() plan.When {
	text, ok := v.text()
	if !ok || text == never {
		return ""
	}
	if !plan.When(text).Valid() {
		v.fail("write a time of the day, \"01:30\", or of the week, \"sun 01:30\", in UTC; or "+never, "%q is no time", short(text))
		return ""
	}
	return plan.When(text)
}

func (v value) s3() *plan.S3 {
	o := v.object("s3")
	s := &plan.S3{Path: "/", Style: "host"}
	for _, f := range []struct {
		key, mend string
		into      *string
	}{
		{"endpoint", "give the storage's host name, such as \"endpoint: s3.example.org\"", &s.Endpoint},
		{"bucket", "name the bucket", &s.Bucket},
		{"region", "name the region; storage without regions takes any word, us-east-1 is usual", &s.Region},
	} {
		if v, ok := o.need(f.key, f.mend); ok {
			*f.into, _ = v.text()
		}
	}
	if v, ok := o.get("path"); ok {
		s.Path, _ = v.text()
	}
	if v, ok := o.get("style"); ok {
		if s.Style, _ = v.text(); s.Style != "host" && s.Style != "path" {
			v.fail("write host, or path for storage that has no host name for each bucket", "%q is no style of requests", short(s.Style))
		}
	}
	if v, ok := o.get("ca"); ok {
		s.CA, _ = v.text()
	}
	return s
}

var (
	// bucketName is what every S3 takes (Amazon S3 User Guide, "General purpose
	// bucket naming rules").
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	regionName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,61}$`)
	s3Path     = regexp.MustCompile(`^/([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$`)
)

// backup checks where backups are kept, and that what keeps them is of use.
func (c *checker) backup() {
	b := c.Backup
	for i, n := range c.Nodes {
		if n.Role == repository && (b == nil || b.Repository != n.Name) {
			c.wrong(at("nodes", i)+".role", "write \"backup: {repository: "+short(n.Name)+"}\", or take the node out", "nothing is kept on the repository %s", short(n.Name))
		}
	}
	if b == nil {
		return
	}
	if !slices.ContainsFunc(c.Nodes, func(n Node) bool { return n.Role == dbMaster }) {
		c.wrong("backup", "add a db-master, or take the backups out", "no node runs PostgreSQL")
	}
	const where = "write \"repository: NODE\", or s3 with its fields"
	switch {
	case b.Repository != "" && b.S3 != nil:
		c.wrong("backup.s3", "keep one of them", "backups are kept on a repository or on S3, not on both")
	case b.Repository == "" && b.S3 == nil && c.lines["backup.repository"] == 0:
		c.wrong("backup", where, "it does not say where backups are kept")
	case b.Repository != "":
		c.keeper(b.Repository)
	case b.S3 != nil:
		c.storage("backup.s3", b.S3)
	}
	if b.From != nil {
		c.source(b)
	}
	if len(c.found.Errors()) == 0 && b.Full == "" && b.Diff != "" {
		c.doubt("backup.schedule.full", "give a time of the week", "without new full backups each differential one grows, and nothing is ever taken away")
	}
	for i, n := range c.Nodes {
		if queue := profile.Size(b.WALQueue) * profile.MiB; databases(n.Role) && n.Size.Disk > 0 && queue > n.Size.Disk/2 {
			c.wrong(at("nodes", i)+".size.disk", "give a larger disk, or lower backup.wal_queue",
				"%s is too little: WAL that waits for the repository may take %s of it, and more than half is not safe", n.Size.Disk, queue)
		}
	}
}

// keeper checks the node that keeps backups.
func (c *checker) keeper(name string) {
	var names []string
	for _, n := range c.Nodes {
		if n.Role == repository {
			names = append(names, n.Name)
		}
	}
	n, ok := c.Node(name)
	switch {
	case ok && n.Role == repository:
	case ok:
		c.wrong("backup.repository", "name a node with the role "+repository, "%s is a %s: its loss would take the backups along", short(name), short(n.Role))
	case len(names) == 0:
		c.wrong("backup.repository", "add a node with the role "+repository, "there is no node %q", short(name))
	default:
		c.unknown("backup.repository", "node", name, names)
	}
}

// source checks where another cluster's backups are.
func (c *checker) source(b *plan.Backup) {
	switch name := b.From.Cluster; {
	case name == "":
	case !label.MatchString(name):
		c.wrong("backup.from.cluster", "write the name that its topology has", "%q is no cluster's name", short(name))
	case name == c.Name && b.From.S3 == nil:
		c.wrong("backup.from", "take it out: a cluster's own backups are restored without --from; or give the s3 that another cluster of this name had", "%s is this cluster", short(name))
	}
	if b.From.S3 != nil {
		c.storage("backup.from.s3", b.From.S3)
	}
}

// storage checks how storage is reached.
func (c *checker) storage(field string, s *plan.S3) {
	host, port, given := strings.Cut(s.Endpoint, ":")
	number, err := strconv.Atoi(port)
	_, address := netip.ParseAddr(host)
	switch {
	case s.Endpoint == "":
	case strings.Contains(s.Endpoint, "/"):
		c.wrong(field+".endpoint", "write the host name alone, without https:// and without the bucket", "%q is no host name", short(s.Endpoint))
	case !hostOrAddress(host) || given && (err != nil || number < 1 || number > 65535):
		c.wrong(field+".endpoint", "write it as in s3.example.org or s3.example.org:9000", "%q is no host name", short(s.Endpoint))
	case address == nil && s.Style == "host":
		c.wrong(field+".style", "write \"style: path\"", "an address cannot have the bucket's name in front")
	}
	for _, f := range []struct {
		name, value, mend string
		form              *regexp.Regexp
	}{
		{"bucket", s.Bucket, "use small letters, digits, hyphens and dots, 3 to 63", bucketName},
		{"region", s.Region, "write it as in eu-central-1", regionName},
		{"path", s.Path, "write it as in /backups/orders", s3Path},
	} {
		if f.value != "" && !f.form.MatchString(f.value) {
			c.wrong(field+"."+f.name, f.mend, "%q cannot be used", short(f.value))
		}
	}
	if s.CA != "" {
		if _, err := pki.ParseAuthorities(s.CA); err != nil {
			c.wrong(field+".ca", "paste the certificate of the storage's authority, PEM, after \"ca: |\"", "%v", err)
		}
	}
}
