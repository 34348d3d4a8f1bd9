package database

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

// data is what stands in the data directory.
type data struct {
	empty   bool
	version string // PG_VERSION, or ""
	system  string // the database system identifier; "" if there is no whole control file
}

// identifier is a database system identifier: 64 bits, in decimal.
var identifier = regexp.MustCompile(`^[0-9]{10,20}$`)

// inspect looks at the data directory and changes nothing.
func inspect(ctx context.Context, n *node.Node) (data, error) {
	entries, err := os.ReadDir(n.Path(dataDir))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return data{empty: true}, nil
	}
	if err != nil {
		return data{}, err
	}
	text, err := n.Read(dataDir + "/PG_VERSION")
	if err != nil {
		return data{}, err
	}
	d := data{version: strings.TrimSpace(string(text[:min(len(text), 20)]))}
	if !n.Exists(dataDir + "/global/pg_control") {
		return d, nil
	}
	out, err := n.Command(ctx, binDir+"/pg_controldata", "-D", dataDir)
	if err != nil {
		return d, nil // a control file that cannot be read identifies nothing
	}
	for line := range strings.Lines(out) {
		if value, ok := strings.CutPrefix(line, "Database system identifier:"); ok && identifier.MatchString(strings.TrimSpace(value)) {
			d.system = strings.TrimSpace(value)
		}
	}
	return d, nil
}

// elder finds data of another version of PostgreSQL beside the data directory.
func elder(n *node.Node) string {
	found, _ := filepath.Glob(n.Path(baseDir + "/*/main/PG_VERSION"))
	for _, file := range found {
		if v := filepath.Base(filepath.Dir(filepath.Dir(file))); v != version {
			return v
		}
	}
	return ""
}

// record is what the agent remembers of the data directory.
type record struct {
	Cluster string `json:"cluster"` // the plan's ID
	Scope   string `json:"scope"`
	// Begun says that the directory was empty when Patroni was let to fill it, and
	// that it has not been seen whole since: what is there is no loss. With System, it
	// says that this database is being put aside: what has its name still is whole.
	Begun bool `json:"begun,omitempty"`
	// System identifies the database that was whole here at last.
	System string `json:"system,omitempty"`
	// Turn is that of the plan by which the data was last known to hold nothing that
	// the promoted site lacks.
	Turn int64 `json:"turn,omitempty"`
}

func readRecord(n *node.Node, m *member.Member) (record, error) {
	text, err := n.Read(recordPath)
	if err != nil {
		return record{}, err
	}
	var r record
	if json.Unmarshal(text, &r) != nil || r.Cluster != m.Plan.ID || r.Scope != m.Site.Scope {
		return record{}, nil // nothing is known of this cluster's data
	}
	return r, nil
}

func writeRecord(n *node.Node, m *member.Member, r record) error {
	before, err := readRecord(n, m)
	if err != nil {
		return err
	}
	r.Cluster, r.Scope, r.Turn = m.Plan.ID, m.Site.Scope, max(r.Turn, before.Turn)
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = n.Write(recordPath, 0o600, append(text, '\n'))
	return err
}

// deed is what has to be done before Patroni may start.
type deed int

const (
	start  deed = iota // nothing
	begin              // remember that the directory is empty
	tidy               // take away what an interrupted clone or initdb has left
	reopen             // tidy, and let the database be made once more
)

// decide says whether Patroni may start on what is in the data directory. key is
// Patroni's "initialize" in etcd: the cluster's system identifier; empty while
// the database is being made; absent before.
func decide(m *member.Member, d data, r record, key string, found bool) (deed, error) {
	makes := m.Site.Bootstrap == m.Self.Name
	switch {
	case !d.empty && d.version != "" && d.version != version:
		return 0, refuse("%s holds data of PostgreSQL %s; this image has PostgreSQL %s", dataDir, d.version, version).
			WithMend("start an image with PostgreSQL %s, or move %s away to have it cloned anew", d.version, dataDir)
	case d.empty && found && key == "" && makes:
		return reopen, nil // the power went while this node made the database
	case d.empty && !found && r.System != "" && !r.Begun && makes:
		return 0, refuse("%s is empty, and the cluster's etcd does not know the database %s that was here", dataDir, r.System).
			WithMend("bring back the data directory or another database node that has it; to begin with an empty database instead: rm %s", recordPath)
	case d.empty && r.Begun && r.System == "":
		return start, nil
	case d.empty:
		return begin, nil
	case d.system != "" && identifier.MatchString(key) && d.system == key:
		return start, nil
	case r.Begun && r.System == "" && (d.system == "" || !identifier.MatchString(key)):
		if makes && found && key == "" || makes && !found {
			return reopen, nil
		}
		return tidy, nil
	case d.system == "":
		return 0, refuse("%s is not empty, and no whole database", dataDir).
			WithMend("move %s away to have it cloned anew", dataDir)
	case identifier.MatchString(key):
		return 0, refuse("%s holds another database (system identifier %s) than this cluster's (%s)", dataDir, d.system, key).
			WithMend("move %s away to have it cloned anew", dataDir)
	case r.System == d.system:
		return start, nil // etcd has lost its memory, this node has not
	}
	return 0, refuse("%s holds a database (system identifier %s) of which nothing says that it is this cluster's", dataDir, d.system).
		WithMend("move %s away, and the cluster begins with an empty database or clones its own", dataDir)
}

func refuse(format string, args ...any) *fault.Error {
	return fault.New(fault.Integrity, "Patroni is not started: %s; nothing was changed", fmt.Sprintf(format, args...))
}

// leftovers is where half of a database goes.
const leftovers = dataDir + ".unfinished"

// setAside empties the data directory. What might still be a whole database stays
// under another name, until the next one takes that; what cannot be is deleted.
func setAside(n *node.Node, d data) error {
	if err := os.RemoveAll(n.Path(leftovers)); err != nil {
		return err
	}
	if err := os.Rename(n.Path(dataDir), n.Path(leftovers)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if d.system != "" {
		return nil
	}
	return os.RemoveAll(n.Path(leftovers))
}
