package agent

import (
	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// actions are what administrators can have this node do.
func (r *run) actions() *actions.Server {
	return &actions.Server{
		Log:   &actions.Log{Path: r.node.Path(actions.LogPath)},
		Again: r.ask,
		Line:  func(text string) { r.tracker.Update(func(*status.Report) {}, text) },
		Actions: []actions.Action{
			database.Switchover,
		},
	}
}
