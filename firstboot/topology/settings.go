package topology

import (
	"regexp"
	"strings"
)

// settingName is the name of a setting of postgresql.conf, an extension's included.
var settingName = regexp.MustCompile(`^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$`)

// maxSetting bounds the text of a setting.
const maxSetting = 1000

// settings that the topology may not add, with what to do in place of it. The
// first that fits the name counts; a name that ends in * stands for all that begin
// so. Those that Patroni passes on the command line or writes itself are in its
// documentation under "PostgreSQL parameters controlled by Patroni".
var refusedSettings = []struct{ names, mend string }{
	{"max_connections", "write roles.database.max_connections"},
	{"max_slot_wal_keep_size", "write roles.database.max_slot_wal_keep"},
	{"listen_addresses port unix_socket_directories cluster_name data_directory hba_file ident_file config_file external_pid_file",
		"leave it out: it follows from the node"},
	{"ssl ssl_* password_encryption", "leave it out: connections are TLS with the cluster's certificates, passwords are scram"},
	{"archive_timeout", "write backup.archive_timeout"},
	{"archive_* restore_command recovery_* primary_conninfo primary_slot_name promote_trigger_file hot_standby hot_standby_feedback " +
		"synchronous_standby_names wal_level wal_log_hints max_wal_senders max_replication_slots track_commit_timestamp " +
		"max_prepared_transactions max_locks_per_transaction max_worker_processes wal_keep_size wal_keep_segments",
		"leave it out: Patroni sets it on every node alike"},
	{"fsync full_page_writes synchronous_commit data_checksums zero_damaged_pages ignore_checksum_failure",
		"leave it out: without it a commit that was acknowledged could be lost"},
}

// setting says what is wrong with a setting, and how to mend it.
func setting(name, text string) (wrong, mend string) {
	if !settingName.MatchString(name) {
		return "this is no name of a PostgreSQL setting", "write it as postgresql.conf does, in lower case"
	}
	for _, r := range refusedSettings {
		for _, refused := range strings.Fields(r.names) {
			prefix, all := strings.CutSuffix(refused, "*")
			if name == refused || all && strings.HasPrefix(name, prefix) {
				return "this setting is the cluster's own", r.mend
			}
		}
	}
	if len(text) > maxSetting || strings.ContainsAny(text, "\x00\r\n") {
		return "the value is longer than a line", "give one line of at most 1000 bytes"
	}
	return "", ""
}
