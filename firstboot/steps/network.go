package steps

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/netconf"
	"github.com/slipwayhq/slipway/firstboot/node"
)

// Network writes the configuration of systemd-networkd: the metadata's, or
// DHCP on every network card.
type Network struct{}

func (Network) Name() string { return "network" }

func (Network) Apply(ctx context.Context, n *node.Node) error {
	config := netconf.Default()
	if n.Seed != nil && n.Seed.Network != nil {
		config = n.Seed.Network
	}
	config = withoutTaken(config, n.Taken)
	files, err := netconf.Render(config)
	if err != nil {
		return err
	}
	changed, removed, err := replaceNetworkFiles(n, files)
	if err != nil {
		return err
	}
	if err := renameCards(ctx, n, config); err != nil {
		return err
	}
	if !changed || !n.UnitStarted(ctx, "systemd-networkd.service") {
		return nil // networkd reads the files when it starts, after this step
	}
	if _, err := n.Command(ctx, "udevadm", "control", "--reload"); err != nil {
		return err
	}
	if _, err := n.Command(ctx, "networkctl", "reload"); err != nil {
		return err
	}
	for _, name := range removed {
		// networkd leaves a bond, bridge or VLAN alone whose file is gone.
		if device, ok := strings.CutSuffix(strings.TrimPrefix(name, netconf.Prefix), ".netdev"); ok {
			if _, err := n.Command(ctx, "networkctl", "delete", device); err != nil {
				return err
			}
		}
	}
	return nil
}

// replaceNetworkFiles makes the agent's files in networkd's directory exactly
// these; those of an administrator keep their place.
func replaceNetworkFiles(n *node.Node, files map[string][]byte) (changed bool, removed []string, err error) {
	dir := "/" + netconf.Dir
	present, err := filepath.Glob(n.Path(dir) + "/" + netconf.Prefix + "*")
	if err != nil {
		return false, nil, err
	}
	for _, path := range present {
		name := filepath.Base(path)
		if _, wanted := files[name]; wanted {
			continue
		}
		if _, err := n.Ensure(dir+"/"+name, 0, ""); err != nil {
			return changed, removed, err
		}
		changed, removed = true, append(removed, name)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		wrote, err := n.Ensure(dir+"/"+name, 0o644, string(files[name]))
		if err != nil {
			return changed, removed, err
		}
		changed = changed || wrote
	}
	return changed, removed, nil
}

// renameCards gives network cards the names that the configuration wants,
// which udev does by itself only at the next boot.
func renameCards(ctx context.Context, n *node.Node, config *netconf.Config) error {
	for _, step := range netconf.Renames(config, cards(n)) {
		if _, err := n.Command(ctx, "ip", "link", "set", "dev", step.From, "down"); err != nil {
			return err
		}
		if _, err := n.Command(ctx, "ip", "link", "set", "dev", step.From, "name", step.To); err != nil {
			return err
		}
		n.Changed("network card %s is now %s", step.From, step.To)
	}
	return nil
}

// cards lists the network cards: the interfaces that have a device behind them.
func cards(n *node.Node) []netconf.Card {
	paths, _ := filepath.Glob(n.Path("/sys/class/net/*/device"))
	var out []netconf.Card
	for _, path := range paths {
		dir := filepath.Dir(path)
		address, err := os.ReadFile(dir + "/address")
		if err != nil {
			continue // unplugged since
		}
		card := netconf.Card{Name: filepath.Base(dir), PermanentMAC: strings.TrimSpace(string(address))}
		if driver, err := os.Readlink(path + "/driver"); err == nil {
			card.Driver = filepath.Base(driver)
		}
		out = append(out, card)
	}
	return out
}
