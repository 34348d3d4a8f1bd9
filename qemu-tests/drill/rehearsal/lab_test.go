package rehearsal

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestClientsWriteOnUntilSomeOfItIsArchived(t *testing.T) {
	for archived, want := range map[int]time.Duration{10: 150 * time.Second, 60: 150 * time.Second, 600: 25 * time.Minute} {
		if got := WritesOn(&plan.Plan{Backup: &plan.Backup{ArchiveTimeout: archived}}); got != want {
			t.Errorf("archived after %d s: %v, want %v", archived, got, want)
		}
	}
}

func TestWhatGoesByItselfIsTriedAgain(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{fault.New(fault.Network, "backup1 does not answer"), true},
		{fmt.Errorf("make a backup: %w", fault.New(fault.Failed, backup.UnderWay+" on backup1")), true},
		{fault.New(fault.Failed, "the disk is full"), false},
		{errors.New("a defect"), false},
	} {
		if got := passes(c.err); got != c.want {
			t.Errorf("%v: %t", c.err, got)
		}
	}
}
