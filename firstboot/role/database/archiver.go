package database

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

const (
	// droppedPath names the WAL files that pgBackRest has dropped, each with its
	// time; overlays/backup/usr/lib/slipway/pgbackrest-archive writes it.
	droppedPath  = baseDir + "/wal-dropped"
	droppedLimit = 100 // that a report names
	askArchiver  = 30 * time.Second
	walMiB       = 16 // a file's size, MiB
)

// archiverState is what PostgreSQL says of its archiver: the last file and its
// time, whether a later one has failed, how many wait.
const archiverState = `SELECT coalesce(last_archived_wal, ''), coalesce(extract(epoch FROM last_archived_time)::bigint, 0),
 coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false),
 (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') FROM pg_stat_archiver;
`

// archiver asks the primary how its WAL gets into the archive.
func archiver(ctx context.Context, n *node.Node) (status.Archiver, error) {
	out, err := psql(ctx, n, archiverState)
	if err != nil {
		return status.Archiver{}, err
	}
	a, err := parseArchiver(out)
	if err != nil {
		return a, err
	}
	a.Dropped, err = gap(ctx, n)
	return a, err
}

func parseArchiver(out string) (status.Archiver, error) {
	var a status.Archiver
	f := strings.Split(strings.TrimSpace(out), "|")
	if len(f) != 4 {
		return a, fmt.Errorf("PostgreSQL does not tell of its archiver")
	}
	seconds, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil {
		return a, err
	}
	if a.LastWAL = f[0]; seconds > 0 {
		a.Last = time.Unix(seconds, 0).UTC()
	}
	a.Failing = f[2] == "t"
	a.Waiting, err = strconv.Atoi(f[3])
	return a, err
}

// droppedKeys is where the site's etcd has what each node has dropped: whoever is the
// primary after a failover tells of it, even if that node is gone.
func droppedKeys(m *member.Member) string { return "/slipway/" + m.Site.Scope + "/wal-dropped/" }

// gap names the files that were dropped on any node of the site and that the database
// cannot be brought past, until a backup has begun after the last of them.
func gap(ctx context.Context, n *node.Node) ([]string, error) {
	own, err := n.Read(droppedPath)
	if err != nil {
		return nil, err
	}
	client, err := consensus.Dial(n.Member)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	self := droppedKeys(n.Member) + n.Member.Self.Name
	// The node's own file is told of whether etcd answers or not.
	known := map[string]string{self: string(own)}
	if shared := share(ctx, client, droppedKeys(n.Member), known, self); shared != nil && len(own) == 0 {
		return nil, errors.New("whether WAL was dropped is not known: " + noanswer.Words(shared))
	}
	var files []string
	var last time.Time
	for _, text := range known {
		for line := range strings.Lines(text) {
			at, file, ok := strings.Cut(strings.TrimSpace(line), " ")
			if when, err := time.Parse(time.RFC3339, at); ok && err == nil {
				files = append(files, file)
				if when.After(last) {
					last = when
				}
			}
		}
	}
	if len(files) == 0 {
		return nil, nil
	}
	slices.Sort(files)
	files = slices.Compact(files)
	info, err := backup.Look(ctx, n, "")
	if err == nil && len(info.Sets) > 0 && info.Sets[len(info.Sets)-1].Start.After(last) {
		if _, err := n.Remove(droppedPath); err != nil {
			return files, err
		}
		if err := client.Delete(ctx, slices.Collect(maps.Keys(known))...); err != nil {
			return files, err
		}
		n.Changed("a backup was made since WAL was dropped: the archive goes on from there")
		return nil, nil
	}
	return files[:min(len(files), droppedLimit)], nil
}

// share tells etcd what this node has dropped, and adds what others have.
func share(ctx context.Context, client *consensus.Client, prefix string, known map[string]string, self string) error {
	keys, err := client.List(ctx, prefix)
	if err != nil {
		return err
	}
	told := ""
	for _, key := range keys {
		text, found, err := client.Get(ctx, key)
		switch {
		case err != nil:
			return err
		case key == self:
			told = text
		case found:
			known[key] = text
		}
	}
	if known[self] == "" {
		// The node may be a new machine in the place of the one that has dropped it.
		known[self] = told
	}
	if known[self] == told {
		return nil
	}
	return client.Put(ctx, self, known[self])
}

// complaints are what is wrong with the archive, in words.
func complaints(a status.Archiver, queue int) []string {
	var wrong []string
	if a.Failing && a.Waiting > 0 {
		wrong = append(wrong, fmt.Sprintf("WAL does not get into the archive: %d files wait (%d MiB); from %d MiB on it is dropped, so mend the repository first; see: journalctl -u %s",
			a.Waiting, a.Waiting*walMiB, queue, Unit))
	}
	if len(a.Dropped) > 0 {
		wrong = append(wrong, fmt.Sprintf("the archive has a gap: WAL was dropped from %s to %s; nothing after it can be restored until there is a new backup: slipway backup",
			a.Dropped[0], a.Dropped[len(a.Dropped)-1]))
	}
	return wrong
}

// archived is what was last learnt of the archiver.
type archived struct {
	at   time.Time
	busy bool
	// primary says that last is a primary's word.
	primary bool
	last    *status.Archiver
	err     error
}

// watchArchive asks for the archiver every now and then, beside the observer, which
// must not take long, and returns what is known. A node that is not the primary knows
// of nothing but what it has dropped itself while it was.
func (s *Start) watchArchive(ctx context.Context, n *node.Node, primary bool) (*status.Archiver, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.archived.primary != primary {
		// It has changed its part since.
		s.archived = archived{primary: primary, busy: s.archived.busy}
	}
	if !s.archived.busy && time.Since(s.archived.at) >= askArchiver {
		s.archived.busy = true
		own := *n
		go func() {
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
			defer cancel()
			var a status.Archiver
			var err error
			if primary {
				a, err = archiver(limited, &own)
			} else {
				a.Dropped, err = gap(limited, &own)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.archived.primary != primary {
				s.archived.busy = false
				return
			}
			if s.archived = (archived{at: time.Now(), primary: primary, err: err}); err == nil {
				s.archived.last = &a
			}
		}()
	}
	return s.archived.last, s.archived.err
}
