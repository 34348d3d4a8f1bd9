package agent

import (
	"slices"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/database"
)

func TestWhatChangesNothingTakesTheRightToLookAlone(t *testing.T) {
	has := func(list []actions.Action, name string) bool {
		return slices.ContainsFunc(list, func(a actions.Action) bool { return a.Name == name })
	}
	s := (&run{node: &node.Node{Root: t.TempDir()}}).actions()
	for _, a := range []actions.Action{database.Position, database.ProbeSite} {
		if !has(s.Looks, a.Name) || has(s.Actions, a.Name) {
			t.Errorf("%s changes nothing, and counts as a change", a.Name)
		}
	}
}
