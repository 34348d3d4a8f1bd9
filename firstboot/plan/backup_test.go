package plan

import (
	"testing"
	"time"
)

func TestWhenABackupWasDueLast(t *testing.T) {
	now := time.Date(2026, 11, 18, 1, 0, 0, 0, time.FixedZone("elsewhere", 3600)) // a Wednesday, 00:00 UTC
	for when, want := range map[When]string{
		"00:00": "2026-11-18 00:00", "00:01": "2026-11-17 00:01", "sun 01:30": "2026-11-15 01:30", "wed 00:00": "2026-11-18 00:00", "wed 00:01": "2026-11-11 00:01",
	} {
		if got := when.Last(now).Format("2006-01-02 15:04"); got != want || !when.Valid() {
			t.Errorf("%q was last due at %s, want %s", when, got, want)
		}
	}
	for _, when := range []When{"", "1:30", "24:00", "01:60", "sunday 01:30", "Sun 01:30", "sun  01:30", "01:30:00", "-1:30", "+1:30"} {
		if when.Valid() || !when.Last(now).IsZero() {
			t.Errorf("%q is taken for a time", when)
		}
	}
}

func TestTheRepositoryAndTheDatabasesSpeakToEachOtherAlone(t *testing.T) {
	p := &Plan{Backup: &Backup{Repository: "r"}, Nodes: []Node{{Name: "a", Role: "db-master"}, {Name: "b", Role: "db-replica"}, {Name: "l", Role: "balancer"}, {Name: "q", Role: "repository"}, {Name: "r", Role: "repository"}}}
	names := func(name string) (all string) {
		for _, n := range p.BackupPeers(name) {
			all += n.Name
		}
		return all
	}
	for name, want := range map[string]string{"a": "r", "b": "r", "r": "ab", "l": "", "q": "", "none": ""} {
		if got := names(name); got != want {
			t.Errorf("%s speaks to %q, want %q", name, got, want)
		}
	}
	if p.Backup = (&Backup{S3: &S3{}}); names("a") != "" || p.Keeps("") {
		t.Error("with S3 nodes speak to each other")
	}
}
