package backup

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
)

const (
	infoLimit = 2 * time.Minute
	setsLimit = 128 // backups that a report names
)

// Info is what the repository holds.
type Info struct {
	// Exists says that there is a stanza: the repository knows the database.
	Exists bool
	// Sets are the backups, the oldest first.
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
	Archive []struct {
		Min string `json:"min"`
		Max string `json:"max"`
	} `json:"archive"`
	Backup []struct {
		Label   string `json:"label"`
		Type    string `json:"type"`
		Error   bool   `json:"error"`
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

// Look asks what the repository holds.
func Look(ctx context.Context, n *node.Node) (Info, error) {
	out, err := Command(ctx, n, infoLimit, "info", "--output=json")
	if err != nil {
		return Info{}, err
	}
	return parseInfo(out, n.Member.Plan.Stanza())
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
		return Info{}, fmt.Errorf("the repository: %s", s.Status.Message)
	}
	info := Info{Exists: true}
	for _, a := range s.Archive {
		if a.Min != "" && (info.First == "" || a.Min < info.First) {
			info.First = a.Min
		}
		info.Last = max(info.Last, a.Max)
	}
	for _, b := range s.Backup {
		info.Sets = append(info.Sets, status.BackupSet{
			Label: b.Label, Type: b.Type, Start: time.Unix(b.Timestamp.Start, 0).UTC(), Stop: time.Unix(b.Timestamp.Stop, 0).UTC(),
			FirstWAL: b.Archive.Start, LastWAL: b.Archive.Stop, Size: b.Info.Size, Stored: b.Info.Repository.Delta, Damaged: b.Error,
		})
	}
	slices.SortFunc(info.Sets, func(a, b status.BackupSet) int { return cmp.Compare(a.Label, b.Label) })
	return info, nil
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
