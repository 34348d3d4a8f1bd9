//go:build long

package clustertest

import (
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/overview"
)

// TestPostgresHA tells the story of examples/postgres-ha: three database nodes,
// two balancers with the virtual address, and a standby site.
func TestPostgresHA(t *testing.T) {
	s := newSite(t, example(t, "postgres-ha"))

	s.part(t, "all but one are powered on at once, and the database is usable", func(t *testing.T, s *site) {
		s.Start("a-db1", "a-db2", "a-lb1", "a-lb2", "b-db1")
		s.waits("have a primary behind the virtual address", func(o overview.Overview) bool { return primary(o) != "" && holder(o) != "" })
		s.remembers("written while a-db3 was away")
	})
	s.part(t, "the one that was missing joins by itself", func(t *testing.T, s *site) {
		s.Start("a-db3")
		o := s.becomesWhole()
		s.stillKnows("written while a-db3 was away")
		s.remembers("written when all were there")
		if h := holder(o); h != "a-lb1" && h != "a-lb2" {
			t.Errorf("the virtual address is on %q", h)
		}
	})
	s.part(t, "the cluster is as its documentation says", isAsDocumented)
	s.part(t, "readers are led to replicas, and the other site is a standby", func(t *testing.T, s *site) {
		if got := s.query(s.readOnly(), "select pg_is_in_recovery()"); got != "true" {
			t.Errorf("the read-only port leads to a node with pg_is_in_recovery() = %s", got)
		}
		if standby := s.Node("b-db1").Succeed("patronictl list"); !strings.Contains(standby, "Standby Leader") {
			t.Errorf("site b is no standby cluster:\n%s", standby)
		}
	})
	s.part(t, "nobody gets in who must not, and no secret is where it must not be", keepsSecrets)
	s.part(t, "all lose their power at once and form the same cluster again", func(t *testing.T, s *site) {
		s.remembers("acknowledged right before the power cut")
		s.Crash()
		s.StartAll()
		s.becomesWhole()
		s.stillKnows("acknowledged right before the power cut")
		s.remembers("written after the power cut")
	})
}
