package agent

import (
	"slices"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/role/mirror"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/steps"
)

// actions are what administrators can have this node do.
func (r *run) actions() *actions.Server {
	return &actions.Server{
		Log:   &actions.Log{Path: r.node.Path(actions.LogPath)},
		Again: r.ask,
		After: r.lookNow,
		Line:  func(text string) { r.tracker.Update(func(*status.Report) {}, text) },
		Actions: slices.Concat([]actions.Action{
			database.Switchover, database.ForgetMember, database.PromoteSite, database.DemoteSite,
			steps.Maintenance,
			backup.Backup, backup.Taking,
			consensus.Expel,
			mirror.Load,
			steps.Take(r.membership), steps.Leave(r.membership),
		}, database.Restoring, r.versions.Actions(r.lookAtVersions)),
		Looks: []actions.Action{backup.Looking, database.Position, database.ProbeSite},
	}
}

// lookAtVersions brings the report's versions up to date.
func (r *run) lookAtVersions() {
	if r.node.Boot.ESP == "" {
		return
	}
	list, err := r.versions.List()
	if err != nil {
		r.tracker.Update(func(*status.Report) {}, "the versions on the boot partition cannot be read: "+err.Error())
		return
	}
	r.tracker.Update(func(rep *status.Report) { rep.Versions = list })
}

// lookNow has the observers asked at once: what was done shows in the report.
func (r *run) lookNow() {
	select {
	case r.looking <- struct{}{}:
	default: // they are about to be
	}
}
