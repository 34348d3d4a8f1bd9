package operations

import (
	"testing"

	"github.com/slipwayhq/slipway/builder/mirror/store"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/mirror"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestMediaAreTakenInByTheMirrorAlone(t *testing.T) {
	for name, m := range map[string]*plan.Mirror{"none": nil, "a machine elsewhere": {URL: "https://mirror.example.org"}} {
		_, err := MirrorLoad(&Cluster{Plan: &plan.Plan{Cluster: "shop", Mirror: m}}, mirror.LoadArgs{})(t.Context(), overview.Overview{})
		if fault.Of(err) != fault.Input || fault.Mend(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	op, err := MirrorLoad(&Cluster{Plan: &plan.Plan{Mirror: &plan.Mirror{Node: "m1"}}}, mirror.LoadArgs{})(t.Context(), overview.Overview{})
	if err != nil || len(op.Steps) != 1 || op.Title != "take in the media that are attached to m1" {
		t.Errorf("%+v, %v", op, err)
	}
}

func TestWhatBecameOfABundleIsToldInWords(t *testing.T) {
	for want, i := range map[string]store.Imported{
		"edition 3 of plant-7 is complete and published":                      {Site: "plant-7", Edition: 3, Published: true, Missing: []int{}},
		"edition 3 of plant-7 is not complete; still to come: volume 1 and 4": {Site: "plant-7", Edition: 3, Missing: []int{1, 4}},
	} {
		if got := became(i); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
