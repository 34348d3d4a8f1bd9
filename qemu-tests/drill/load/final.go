package load

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Final reads what the set holds on every node: on the primary, which is the one
// that is not in recovery, and on each replica once it has replayed what the
// primary had written by then. It tries until ctx ends; who is missing then is an
// error.
func Final(ctx context.Context, cfg Config) (sets map[string][]int64, primary string, err error) {
	cfg = cfg.complete()
	sets = map[string][]int64{}
	var position string
	for {
		for node, address := range cfg.Direct {
			if sets[node] != nil || primary != "" && node == primary {
				continue
			}
			set, leads, upTo, why := readSet(ctx, cfg, node, address, position)
			switch {
			case why != nil:
				err = fault.New(fault.Failed, "what %s holds at the end: %w", node, why)
			case leads && primary != "":
				return nil, "", fault.New(fault.Failed, "%s and %s both can be written to at the end", primary, node)
			case leads:
				primary, position, sets[node] = node, upTo, set
			case position != "":
				sets[node] = set
			}
		}
		if len(sets) == len(cfg.Direct) {
			return sets, primary, nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fault.New(fault.Failed, "no database could be written to at the end")
			}
			return sets, primary, err
		case <-time.After(time.Second):
		}
	}
}

// readSet reads the set of one node. With a position, a replica must have replayed
// up to it; without, it is only asked whether it leads.
func readSet(ctx context.Context, cfg Config, node, address, position string) (set []int64, leads bool, upTo string, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s, err := open(ctx, cfg, node, address)
	if err != nil {
		return nil, false, "", err
	}
	defer s.close()
	if err := s.conn.QueryRow(ctx, "select not pg_is_in_recovery()").Scan(&leads); err != nil {
		return nil, false, "", err
	}
	if !leads {
		if position == "" {
			return nil, false, "", nil
		}
		var there bool
		if err := s.conn.QueryRow(ctx, "select coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)", position).Scan(&there); err != nil {
			return nil, false, "", err
		}
		if !there {
			return nil, false, "", fault.New(fault.Failed, "it has not replayed up to %s yet", position)
		}
	}
	rows, err := s.conn.Query(ctx, "select value from drill_set order by value")
	if err != nil {
		return nil, false, "", err
	}
	set, err = pgx.AppendRows([]int64{}, rows, pgx.RowTo[int64])
	if err != nil || !leads {
		return set, leads, "", err
	}
	// Taken after the set was read, and so not before anything in it.
	err = s.conn.QueryRow(ctx, "select pg_current_wal_flush_lsn()::text").Scan(&upTo)
	return set, leads, upTo, err
}
