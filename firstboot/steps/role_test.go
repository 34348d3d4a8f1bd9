package steps

import (
	"context"
	"slices"
	"testing"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/units"
)

// systemd tells of units, and what it tells changes with each question for one.
type systemd struct {
	units   map[string][]units.Unit
	booting bool
}

func (s *systemd) Units(_ context.Context, names []string) (list []units.Unit, err error) {
	for _, name := range names {
		story := s.units[name]
		u := story[0]
		if len(story) > 1 {
			s.units[name] = story[1:]
		}
		u.Name = name
		list = append(list, u)
	}
	return list, nil
}

func (s *systemd) Starting(context.Context) bool { return s.booting }

func TestANodeIsReadyWhenItsServicesAndItsSSHServerAre(t *testing.T) {
	up := units.Unit{Load: "loaded", Active: "active", Sub: "running"}
	coming := units.Unit{Load: "loaded", Active: "activating", Sub: "start"}
	stopped := units.Unit{Load: "loaded", Active: "inactive", Sub: "dead"}
	missing := units.Unit{Load: "not-found", Active: "inactive", Sub: "dead"}
	for name, c := range map[string]struct {
		role, ssh []units.Unit
		booting   bool
		said      []string
	}{
		"both are up":                      {[]units.Unit{up}, []units.Unit{up}, false, []string{""}},
		"the service comes, then ssh":      {[]units.Unit{coming, up}, []units.Unit{coming, up}, true, []string{"haproxy.service is activating (start)", "ssh.service is activating (start)", ""}},
		"ssh has not been begun with":      {[]units.Unit{up}, []units.Unit{stopped, up}, true, []string{"ssh.service is inactive (dead)", ""}},
		"ssh was switched off on purpose":  {[]units.Unit{up}, []units.Unit{stopped}, false, []string{""}},
		"there is no ssh server, and boot": {[]units.Unit{up}, []units.Unit{missing}, true, []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			said := &nodetest.Said{}
			n := &node.Node{Root: t.TempDir(), Role: &manifest.Role{Services: []string{"haproxy.service"}}, Report: said,
				Units: &systemd{map[string][]units.Unit{"haproxy.service": c.role, sshUnit: c.ssh}, c.booting}}
			if err := (Role{}).Apply(t.Context(), n); err != nil {
				t.Error(err)
			}
			if !slices.Equal(said.Waits, c.said) {
				t.Errorf("said %q, want %q", said.Waits, c.said)
			}
		})
	}
}
