package backup

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	infoLimit = 2 * time.Minute
	setsLimit = 128 // backups that a report names
)

// Info is what the repository holds.
type Info struct {
	// Exists says that there is a stanza: the repository knows the database.
	Exists bool
	// System is PostgreSQL's system identifier of the database that the stanza is for.
	System string
	// Sets are the backups of that database, the oldest first. Those of one that it has
	// taken the place of are no way back to anything.
	Sets []status.BackupSet
	// First and Last are the WAL files that the archive begins and ends with.
	First, Last string
}

// stanza is a part of what "pgbackrest info --output=json" prints (Command
// Reference, "Info Command").
type stanza struct {
	Name   string `json:"name"`
	Status struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"status"`
	// Repo are the repositories; what is wrong with one stands here.
	Repo []struct {
		Status struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		} `json:"status"`
	} `json:"repo"`
	// DB are the databases that the stanza was for, one after the other.
	DB []struct {
		ID     int         `json:"id"`
		System json.Number `json:"system-id"`
	} `json:"db"`
	Archive []struct {
		ID  string `json:"id"` // VERSION-DATABASE
		Min string `json:"min"`
		Max string `json:"max"`
	} `json:"archive"`
	Backup []struct {
		Label string `json:"label"`
		Type  string `json:"type"`
		Error bool   `json:"error"`
		DB    struct {
			ID int `json:"id"`
		} `json:"database"`
		Archive struct {
			Start string `json:"start"`
			Stop  string `json:"stop"`
		} `json:"archive"`
		Info struct {
			Size       int64 `json:"size"`
			Repository struct {
				Delta int64 `json:"delta"`
			} `json:"repository"`
		} `json:"info"`
		Timestamp struct {
			Start int64 `json:"start"`
			Stop  int64 `json:"stop"`
		} `json:"timestamp"`
	} `json:"backup"`
}

// Codes of a stanza's status (pgBackRest, src/command/info/info.c).
const (
	statusOK        = 0
	statusNoPath    = 1
	statusNoBackup  = 2
	statusNoData    = 3
	statusNoBackups = 6
)

// Look asks what the repository holds. from is the cluster whose backups are meant,
// "" for this one.
func Look(ctx context.Context, n *node.Node, from string) (Info, error) {
	if err := Knows(n, from); err != nil {
		return Info{}, err
	}
	out, err := Command(ctx, n, from, infoLimit, "info", "--output=json")
	if err != nil {
		return Info{}, err
	}
	return parseInfo(out, cmp.Or(from, n.Member.Plan.Stanza()))
}

// Knows refuses a cluster whose backups the node knows nothing of.
func Knows(n *node.Node, from string) error {
	b := n.Member.Plan.Backup
	switch {
	case from == "":
	case b == nil || b.From == nil:
		return fault.New(fault.Input, "%s knows of no backups that another cluster made", n.Member.Self.Name).
			WithMend("name the cluster under \"backup.from\" in the topology, and seed anew")
	case b.From.Cluster != from:
		return fault.New(fault.Usage, "%s knows of backups that the cluster %s made, not of any by %s", n.Member.Self.Name, b.From.Cluster, from)
	}
	return nil
}

func parseInfo(text, name string) (Info, error) {
	var list []stanza
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return Info{}, fmt.Errorf("what pgBackRest says of the repository makes no sense: %w", err)
	}
	i := slices.IndexFunc(list, func(s stanza) bool { return s.Name == name })
	if i < 0 {
		return Info{}, nil
	}
	s := list[i]
	switch s.Status.Code {
	case statusOK, statusNoBackup, statusNoBackups:
	case statusNoPath, statusNoData:
		return Info{}, nil
	default:
		said := s.Status.Message
		for _, r := range s.Repo {
			if r.Status.Code != statusOK {
				said = r.Status.Message
			}
		}
		return Info{}, fmt.Errorf("the repository: %s", brief(said))
	}
	info, now := Info{Exists: true}, 0
	for _, db := range s.DB {
		if db.ID > now {
			now, info.System = db.ID, db.System.String()
		}
	}
	for _, a := range s.Archive {
		if now > 0 && !strings.HasSuffix(a.ID, "-"+strconv.Itoa(now)) {
			continue
		}
		if a.Min != "" && (info.First == "" || a.Min < info.First) {
			info.First = a.Min
		}
		info.Last = max(info.Last, a.Max)
	}
	for _, b := range s.Backup {
		if now > 0 && b.DB.ID != now {
			continue
		}
		info.Sets = append(info.Sets, status.BackupSet{
			Label: b.Label, Type: b.Type, Start: time.Unix(b.Timestamp.Start, 0).UTC(), Stop: time.Unix(b.Timestamp.Stop, 0).UTC(),
			FirstWAL: b.Archive.Start, LastWAL: b.Archive.Stop, Size: b.Info.Size, Stored: b.Info.Repository.Delta, Damaged: b.Error,
		})
	}
	slices.SortFunc(info.Sets, func(a, b status.BackupSet) int { return cmp.Compare(a.Label, b.Label) })
	return info, nil
}

// brief is what pgBackRest says without the request that failed, which it adds in
// full.
func brief(said string) string {
	said, _, _ = strings.Cut(said, "*** Path/Query ***")
	said = strings.TrimRight(strings.Join(strings.Fields(said), " "), ":")
	if len(said) > 300 {
		said = strings.ToValidUTF8(said[:300], "") + " …"
	}
	return said
}

// due is the kind of backup that has to be made now, or "". A database without
// any backup is given one at once.
func due(b *plan.Backup, sets []status.BackupSet, now time.Time) string {
	if b.Full == "" && b.Diff == "" {
		return ""
	}
	var full, last time.Time
	for _, s := range sets {
		if s.Type == "full" {
			full = s.Start
		}
		last = s.Start
	}
	switch {
	case full.IsZero(), full.Before(b.Full.Last(now)):
		return "full"
	case last.Before(b.Diff.Last(now)):
		return "diff"
	}
	return ""
}
