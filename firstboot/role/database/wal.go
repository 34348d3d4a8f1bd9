package database

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

// lsn is a place in the write-ahead log (PostgreSQL documentation, "pg_lsn Type").
type lsn uint64

func (l lsn) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

var lsnText = regexp.MustCompile(`^([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})$`)

func parseLSN(text string) (lsn, error) {
	m := lsnText.FindStringSubmatch(strings.TrimSpace(text))
	if m == nil {
		return 0, fmt.Errorf("%.40q is no place in the write-ahead log", text)
	}
	high, _ := strconv.ParseUint(m[1], 16, 32)
	low, _ := strconv.ParseUint(m[2], 16, 32)
	return lsn(high<<32 | low), nil
}

// control is what PostgreSQL's control file says, by pg_controldata(1)'s labels.
func control(ctx context.Context, n *node.Node) (map[string]string, error) {
	out, err := n.Command(ctx, "env", "LC_ALL=C", binDir+"/pg_controldata", "-D", dataDir)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for line := range strings.Lines(out) {
		if label, value, ok := strings.Cut(line, ":"); ok {
			values[label] = strings.TrimSpace(value)
		}
	}
	return values, nil
}

// tip is the last record of the write-ahead log in a data directory: on which
// timeline, and where it begins.
type tip struct {
	timeline int
	at       lsn
}

var (
	segment    = regexp.MustCompile(`^([0-9A-F]{8})[0-9A-F]{16}$`)
	recordLine = regexp.MustCompile(`, lsn: ([0-9A-F]+/[0-9A-F]+), prev `)
)

// scanLimit bounds the search for the end of the log, which reads what was
// written since the last checkpoint.
const scanLimit = 15 * time.Minute

// lastRecord finds the end of the log of a database that does not run: as far as
// recovery would come. The control file does not know, unless the database was shut
// down as a primary.
func lastRecord(ctx context.Context, n *node.Node) (tip, error) {
	c, err := control(ctx, n)
	if err != nil {
		return tip{}, err
	}
	from, err := parseLSN(c["Latest checkpoint's REDO location"])
	if err != nil {
		return tip{}, err
	}
	known, err := strconv.Atoi(c["Latest checkpoint's TimeLineID"])
	if err != nil {
		return tip{}, err
	}
	end := tip{timeline: known}
	files, err := os.ReadDir(n.Path(dataDir + "/pg_wal"))
	if err != nil {
		return tip{}, err
	}
	for _, f := range files {
		if m := segment.FindStringSubmatch(f.Name()); m != nil {
			timeline, _ := strconv.ParseInt(m[1], 16, 64)
			end.timeline = max(end.timeline, int(timeline))
		}
	}
	if end.timeline > known {
		// It begins on this timeline where the history file says that it branched off.
		if begins, err := branch(n, end.timeline); err == nil {
			from = max(from, begins)
		}
	}
	out, err := n.Execute(ctx, node.Command{
		Argv: []string{"sh", "-c", `LC_ALL=C "$0" "$@" 2>/dev/null | tail -n 1`, binDir + "/pg_waldump",
			"-p", dataDir + "/pg_wal", "-t", strconv.Itoa(end.timeline), "-s", from.String()},
		Timeout: scanLimit,
	})
	if err != nil {
		return tip{}, err
	}
	m := recordLine.FindStringSubmatch(out)
	if m == nil {
		return end, fault.New(fault.Failed, "the write-ahead log in %s cannot be read from %s on", dataDir, from)
	}
	end.at, err = parseLSN(m[1])
	return end, err
}

// branch is where a timeline branched off: the last line of its history file is its
// parent, where that ended, and why.
func branch(n *node.Node, timeline int) (lsn, error) {
	text, err := n.Read(fmt.Sprintf("%s/pg_wal/%08X.history", dataDir, timeline))
	if err != nil {
		return 0, err
	}
	var at lsn
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) >= 2 {
			if v, err := parseLSN(words[1]); err == nil {
				at = v
			}
		}
	}
	if at == 0 {
		return 0, fmt.Errorf("the history of timeline %d cannot be read", timeline)
	}
	return at, nil
}

// fork is where a site's database left the common history when it was promoted.
type fork struct {
	Timeline int // the last common one
	At       lsn // and its end
}

// lacks reports whether the promoted site lacks something of a log that ends at
// this tip. What is on an earlier timeline is the business of the site itself.
func (f fork) lacks(t tip) bool {
	return t.timeline > f.Timeline || t.timeline == f.Timeline && t.at >= f.At
}
