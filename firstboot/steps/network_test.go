package steps

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/netconf"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
)

// networkd is a systemd whose networkd is in one state after the other, and stays in the
// last one.
type networkd struct {
	states []string
	ran    []string
}

func (d *networkd) Run(_ context.Context, c node.Command) (string, error) {
	if c.Argv[0] != "systemctl" {
		d.ran = append(d.ran, strings.Join(c.Argv, " "))
		return "", nil
	}
	state := d.states[0]
	d.states = d.states[min(1, len(d.states)-1):]
	d.ran = append(d.ran, state)
	return state + "\n", nil
}

// On a slow machine metadata may appear while networkd starts, which has read by then
// what was there before.
func TestANetworkThatIsWrittenWhileNetworkdStartsIsReadOnceItRuns(t *testing.T) {
	for _, c := range []struct{ states, want []string }{
		{[]string{"inactive"}, []string{"inactive"}}, // it reads them by itself
		{[]string{"active"}, []string{"active", "udevadm control --reload", "networkctl reload"}},
		{[]string{"activating", "activating", "active"}, []string{"activating", "activating", "active", "udevadm control --reload", "networkctl reload"}},
		{[]string{"activating", "failed"}, []string{"activating", "failed"}},
	} {
		d := &networkd{states: c.states}
		n := &node.Node{Root: t.TempDir(), Run: d, Report: &nodetest.Said{}}
		for _, dir := range []string{"/usr/bin", "/run/systemd/system", "/" + netconf.Dir} {
			if err := os.MkdirAll(n.Path(dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, program := range []string{"systemctl", "udevadm", "networkctl"} {
			if err := os.WriteFile(n.Path("/usr/bin/"+program), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := (Network{}).Apply(t.Context(), n); err != nil || !slices.Equal(d.ran, c.want) {
			t.Errorf("%q: ran %q, %v", c.states, d.ran, err)
		}
		d.states, d.ran = []string{"active"}, nil
		if err := (Network{}).Apply(t.Context(), n); err != nil || len(d.ran) > 0 {
			t.Errorf("a second time it ran %q, %v", d.ran, err)
		}
	}
}
