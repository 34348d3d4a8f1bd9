package database

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
)

// tree is a piece of Patroni's dynamic configuration, as JSON has it.
type tree = map[string]any

// appliedKey is where the dynamic configuration itself remembers what was last
// taken from a plan. It makes a later change of the plan a three-way merge: what
// an operator changed by hand is overwritten only when the plan's own value moves.
const appliedKey = "slipway"

// settings are what the plan says about a running cluster.
func settings(m *member.Member) tree {
	p, times := m.Site.Postgres, m.Site.Patroni
	parameters := tree{
		"max_connections":        p.MaxConnections,
		"max_slot_wal_keep_size": fmt.Sprintf("%dMB", p.MaxSlotWALKeep),
		// A replica that is promoted just after it has lost the primary first sits out
		// this pause (PostgreSQL 17, xlogrecovery.c, WaitForWALToBecomeAvailable), which
		// is 5 s otherwise: seconds in which nobody can write. Slow nodes, which are asked
		// less often too, keep it: each try is a process and costs them as much.
		"wal_retrieve_retry_interval": fmt.Sprintf("%ds", min(times.Interval(), 5)),
		// After a crash all data are synchronized before anything is replayed. By default
		// each file is opened for that, of which there may be tens of thousands; this is one
		// call to the kernel, which since Linux 5.8 tells of errors too.
		"recovery_init_sync_method": "syncfs",
	}
	if b := m.Plan.Backup; b != nil {
		parameters["archive_mode"] = "on"
		parameters["archive_command"] = backup.ArchiveCommand(m.Plan)
		parameters["archive_timeout"] = fmt.Sprintf("%ds", b.ArchiveTimeout)
	}
	for name, value := range p.Parameters {
		parameters[name] = value
	}
	s := tree{
		"ttl": times.TTL, "loop_wait": times.LoopWait, "retry_timeout": times.RetryTimeout,
		"primary_start_timeout": times.PrimaryStartTimeout, "maximum_lag_on_failover": times.MaximumLag,
		"postgresql": tree{"parameters": parameters},
	}
	if m.Plan.Backup != nil {
		// A replica that was away for longer than its slot has kept WAL for goes on
		// from the archive, rather than being cloned anew.
		s["postgresql"].(tree)["recovery_conf"] = tree{"restore_command": backup.RestoreCommand(m.Plan)}
	}
	// What a standby site lacks is kept for it, within max_slot_wal_keep_size.
	slots := tree{}
	for _, site := range m.Plan.Sites {
		if site.StandbyOf == m.Site.Name {
			slots[slotOf(site.Name)] = tree{"type": "physical"}
		}
	}
	if len(slots) > 0 {
		s["slots"] = slots
	}
	return s
}

// slotOf is the replication slot for a standby site (letters, digits and
// underscores: PostgreSQL documentation, "Replication Slots").
func slotOf(site string) string { return "standby_" + strings.ReplaceAll(site, "-", "_") }

// initial is the configuration that a new database cluster begins with.
func initial(m *member.Member) tree {
	begin := tree{
		"failsafe_mode": true, "synchronous_mode": "quorum",
		"postgresql": tree{
			"use_pg_rewind": true, "use_slots": true,
			"parameters": tree{
				"wal_level": "replica", "hot_standby": "on", "wal_log_hints": "on",
				"max_wal_senders": 10, "max_replication_slots": 10, "wal_keep_size": "128MB",
			},
		},
		appliedKey: settings(m),
	}
	if m.Site.StandbyOf != "" {
		begin["standby_cluster"] = follows(m)
	}
	return merged(begin, settings(m))
}

// follows is the other site, which a standby site replicates. With several hosts
// PostgreSQL itself finds the one that can be written to.
func follows(m *member.Member) tree {
	return followsSite(m, m.Site.StandbyOf)
}

func followsSite(m *member.Member, other string) tree {
	var hosts []string
	port := m.Site.Postgres.Port
	for _, n := range m.Plan.DatabaseNodes(other) {
		hosts = append(hosts, n.Address.String())
	}
	if site, err := m.Plan.Site(other); err == nil {
		port = site.Postgres.Port
	}
	return tree{
		"host": strings.Join(hosts, ","), "port": port, "primary_slot_name": slotOf(m.Site.Name),
		"create_replica_methods": []any{"basebackup"},
	}
}

// patch is what has to be changed in a running cluster's configuration so that it
// follows the plan; nil if nothing has. A site that was promoted has no
// standby_cluster any more and does not get it back from here.
func patch(running tree, m *member.Member) (tree, error) {
	want, err := canonical(settings(m))
	if err != nil {
		return nil, err
	}
	before, _ := running[appliedKey].(tree)
	change := difference(before, want)
	if _, standby := running["standby_cluster"].(tree); standby && m.Site.StandbyOf != "" {
		now, err := canonical(follows(m))
		if err != nil {
			return nil, err
		}
		if d := difference(running["standby_cluster"].(tree), tree{"host": now["host"], "port": now["port"]}); d["host"] != nil || d["port"] != nil {
			change = merged(change, tree{"standby_cluster": tree{"host": now["host"], "port": now["port"]}})
		}
	}
	if len(change) == 0 {
		return nil, nil
	}
	if applied := difference(before, want); len(applied) > 0 {
		change[appliedKey] = applied
	}
	return change, nil
}

// difference is the JSON merge patch (RFC 7396) that makes want out of have.
func difference(have, want tree) tree {
	change := tree{}
	for key := range have {
		if _, stays := want[key]; !stays {
			change[key] = nil
		}
	}
	for key, value := range want {
		old, _ := have[key].(tree)
		if sub, ok := value.(tree); ok {
			if d := difference(old, sub); len(d) > 0 || old == nil {
				change[key] = d
			}
		} else if !reflect.DeepEqual(have[key], value) {
			change[key] = value
		}
	}
	return change
}

// merged lays b over a and leaves both as they are.
func merged(a, b tree) tree {
	all := tree{}
	maps.Copy(all, a)
	for key, value := range b {
		old, is := all[key].(tree)
		if sub, ok := value.(tree); ok && is {
			value = merged(old, sub)
		}
		all[key] = value
	}
	return all
}

// canonical is a tree as it comes back from JSON, for comparison.
func canonical(t tree) (tree, error) {
	data, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	var back tree
	return back, json.Unmarshal(data, &back)
}
