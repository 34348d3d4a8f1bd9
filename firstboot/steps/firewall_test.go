package steps

import (
	"slices"
	"testing"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

func TestTheSwarmsDataPathIsOpenBetweenDispatchers(t *testing.T) {
	open := func(role string) bool {
		ports, _ := planned(&member.Member{Plan: &plan.Plan{Swarm: &plan.Swarm{DataPathPort: 7789}}, Self: plan.Node{Name: "x", Role: role}})
		return slices.ContainsFunc(ports, func(p manifest.Port) bool { return p.Port == "7789" && p.Proto == "udp" && p.From == "cluster" })
	}
	if !open(plan.DispatcherRole) {
		t.Error("a dispatcher does not let the overlay networks in")
	}
	if open(plan.GatewayRole) {
		t.Error("a gateway lets the overlay networks in")
	}
}
