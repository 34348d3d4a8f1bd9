package steps

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
)

// Final says the metadata's last word, and restarts or stops the machine if it
// asks for that: once for what it asks, or it would do so at every boot.
type Final struct{}

func (Final) Name() string { return "final" }

func (Final) Apply(ctx context.Context, n *node.Node) error {
	c := &n.User.Config
	if c.FinalMessage != "" {
		uptime, _ := n.Read("/proc/uptime")
		seconds, _, _ := strings.Cut(string(uptime), " ")
		words := map[string]string{
			"uptime": seconds, "UPTIME": seconds, "timestamp": time.Now().UTC().Format(time.RFC1123Z),
			"version": n.Boot.Version, "datasource": n.Seed.Source,
		}
		message := c.FinalMessage
		for name, value := range words {
			message = strings.NewReplacer("$"+name, value, "${"+name+"}", value, "$"+strings.ToUpper(name), value).Replace(message)
		}
		n.Report.Say(strings.Join(strings.Fields(message), " "))
	}
	p := c.PowerState
	if p == nil || n.Kept.Is("power_state", p) {
		return nil
	}
	if proceed, err := powerCondition(ctx, n); err != nil || !proceed {
		return err
	}
	delay := strings.TrimPrefix(p.Delay, "+")
	if delay == "" || delay == "now" {
		delay = "0"
	}
	if strings.Trim(delay, "0123456789") != "" || len(delay) > 6 {
		return fmt.Errorf("power_state.delay must be now or a number of minutes")
	}
	option := map[string]string{"poweroff": "--poweroff", "reboot": "--reboot", "halt": "--halt"}[p.Mode]
	argv := []string{"shutdown", option, "+" + delay}
	if p.Message != "" {
		argv = append(argv, p.Message)
	}
	if err := n.Kept.Done("power_state", nil, p); err != nil {
		return err
	}
	_, err := n.Command(ctx, argv...)
	if err == nil {
		n.Changed("%s in %s minutes, as the metadata asks", p.Mode, delay)
	}
	return err
}

func powerCondition(ctx context.Context, n *node.Node) (bool, error) {
	condition := n.User.Config.PowerState.Condition
	argv := condition.Words
	switch text := strings.ToLower(condition.Text); {
	case !condition.Given || len(argv) == 0 && (text == "true" || text == "yes" || text == "on" || text == ""):
		return true, nil
	case condition.Off():
		return false, nil
	case len(argv) == 0:
		argv = []string{"sh", "-c", condition.Text}
	}
	_, err := n.Execute(ctx, node.Command{Argv: argv, Private: true})
	return err == nil, nil // a command that fails says no
}
