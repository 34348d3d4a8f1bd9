package plan_test

import (
	"encoding/json"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestASignedPlanTravelsAsYAMLAndJSON(t *testing.T) {
	c := membertest.New(t)
	signed := c.Signed(t)
	for kind, travel := range map[string]func() (plan.Signed, error){
		"YAML": func() (got plan.Signed, err error) {
			text, err := yaml.Marshal(signed)
			if err == nil {
				err = yaml.Unmarshal(text, &got)
			}
			return got, err
		},
		"JSON": func() (got plan.Signed, err error) {
			text, err := json.Marshal(signed)
			if err == nil {
				err = json.Unmarshal(text, &got)
			}
			return got, err
		},
	} {
		got, err := travel()
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		p, err := got.Open(c.Authority.Cert)
		if err != nil || p.Generation != 1 || len(p.Nodes) != 3 {
			t.Errorf("%s: %+v, %v", kind, p, err)
		}
	}
}

func TestAPlanThatAnybodyChangedIsRefused(t *testing.T) {
	c, other := membertest.New(t), membertest.New(t)
	signed := c.Signed(t)
	if _, err := signed.Open(other.Authority.Cert); fault.Of(err) != fault.Integrity {
		t.Errorf("another cluster's: %v", err)
	}
	signed.Plan[len(signed.Plan)-2] ^= 1
	if _, err := signed.Open(c.Authority.Cert); fault.Of(err) != fault.Integrity {
		t.Errorf("a changed one: %v", err)
	}
}

func TestAPlanThatNamesWhatItHasNotIsRefused(t *testing.T) {
	for what, spoil := range map[string]func(p *plan.Plan){
		"a node twice":           func(p *plan.Plan) { p.Nodes[1].Name = p.Nodes[0].Name },
		"a site that is not":     func(p *plan.Plan) { p.Nodes[0].Site = "z" },
		"a voter that is not":    func(p *plan.Plan) { p.Sites[0].Consensus[0] = "z" },
		"a VIP of no site":       func(p *plan.Plan) { p.VIPs[0].Site = "z" },
		"a format of the future": func(p *plan.Plan) { p.Format = 99 },
	} {
		c := membertest.New(t)
		spoil(&c.Plan)
		if _, err := c.Signed(t).Open(c.Authority.Cert); fault.Of(err) != fault.Input {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestSlowNodesAreAskedLessOften(t *testing.T) {
	for loopWait, want := range map[int]int{0: 1, 2: 1, 5: 1, 7: 3, 10: 6, 600: 6} {
		if got := (plan.Patroni{LoopWait: loopWait}).Interval(); got != want {
			t.Errorf("with a loop_wait of %d once in %d s, want %d", loopWait, got, want)
		}
	}
}
