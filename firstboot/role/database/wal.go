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

// ancestor is a timeline that another one came from, and where it was left.
type ancestor struct {
	timeline int
	end      lsn
}

// lineage are the timelines that one came from, oldest first, by its history file: each
// line is a timeline, where it ended, and why.
func lineage(n *node.Node, timeline int) ([]ancestor, error) {
	text, err := n.Read(fmt.Sprintf("%s/pg_wal/%08X.history", dataDir, timeline))
	if err != nil {
		return nil, err
	}
	var list []ancestor
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		number, err := strconv.Atoi(words[0])
		if err != nil {
			continue // a comment
		}
		end, err := parseLSN(words[1])
		if err != nil {
			return nil, fmt.Errorf("the history of timeline %d cannot be read: %w", timeline, err)
		}
		list = append(list, ancestor{number, end})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("the history of timeline %d cannot be read", timeline)
	}
	return list, nil
}

// branch is where a timeline branched off.
func branch(n *node.Node, timeline int) (lsn, error) {
	list, err := lineage(n, timeline)
	if err != nil {
		return 0, err
	}
	return list[len(list)-1].end, nil
}

// onward is the first record after a timeline was left for the next one, on the way to
// the timeline that the data directory is on. PostgreSQL writes there when that came
// to be (END_OF_RECOVERY), to the microsecond: no two promotions have the same.
func onward(ctx context.Context, n *node.Node, timeline, left int) (string, error) {
	list, err := lineage(n, timeline)
	if err != nil {
		return "", err
	}
	for i, a := range list {
		if a.timeline != left {
			continue
		}
		next := timeline
		if i+1 < len(list) {
			next = list[i+1].timeline
		}
		out, err := n.Command(ctx, "env", "LC_ALL=C", "TZ=UTC", binDir+"/pg_waldump",
			"-p", dataDir+"/pg_wal", "-t", strconv.Itoa(next), "-s", a.end.String(), "-n", "1")
		if err != nil {
			return "", err
		}
		if !strings.Contains(out, "desc: END_OF_RECOVERY ") {
			return "", fmt.Errorf("timeline %d does not begin with a promotion", next)
		}
		return strings.TrimSpace(out), nil
	}
	return "", fmt.Errorf("timeline %d does not come from timeline %d", timeline, left)
}

// fork is where a site's database left the common history when it was promoted.
type fork struct {
	Timeline int // the last common one
	At       lsn // and its end
	// Begins is the first record of the next one, or unknown.
	Begins string
}

// unknown stands for a first record that is there no more.
const unknown = "unknown"

// lacks reports whether the promoted site lacks something of a log that ends at
// this tip. What is on an earlier timeline is the business of the site itself.
func (f fork) lacks(t tip) bool {
	return t.timeline > f.Timeline || t.timeline == f.Timeline && t.at >= f.At
}

// went reports whether the log in the data directory went on as the promoted site's
// did: this node has followed it already. The number of a timeline does not tell, as
// each site counts for itself.
func (f fork) went(ctx context.Context, n *node.Node, t tip) bool {
	if t.timeline <= f.Timeline || f.Begins == unknown {
		return false
	}
	first, err := onward(ctx, n, t.timeline, f.Timeline)
	return err == nil && first == f.Begins
}
