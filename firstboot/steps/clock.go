package steps

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/node"
)

const timesyncdDropIn = "/etc/systemd/timesyncd.conf.d/20-slipway.conf"

// Clock sets the time zone (UTC unless told) and the servers that the time
// comes from.
type Clock struct{}

func (Clock) Name() string { return "clock" }

func (Clock) Apply(ctx context.Context, n *node.Node) error {
	c := &n.User.Config
	zoneErr := setZone(n, c.Timezone)
	ntp := c.NTP
	if ntp == nil {
		ntp = &cloudconfig.NTP{}
	}
	if ntp.Client != "" && ntp.Client != "auto" && ntp.Client != "systemd-timesyncd" {
		n.Warn("", "ntp.ntp_client", "the image's client is systemd-timesyncd; the servers are given to that")
	}
	content := ""
	var servers []string
	for _, server := range append(append([]string(nil), ntp.Servers...), ntp.Pools...) {
		if _, err := netip.ParseAddr(server); err != nil && !cloudconfig.ValidHostname(server) {
			n.Warn("", "ntp", "a server is neither a host name nor an address, and is left out")
			continue
		}
		servers = append(servers, server)
	}
	if len(servers) > 0 {
		content = "[Time]\nNTP=" + strings.Join(servers, " ") + "\n"
	}
	changed, err := n.Ensure(timesyncdDropIn, 0o644, content)
	if err != nil {
		return err
	}
	if changed {
		if err := n.Nudge(ctx, "try-restart", "systemd-timesyncd.service"); err != nil {
			return err
		}
	}
	if ntp.Enabled != nil && !*ntp.Enabled {
		if err := n.Nudge(ctx, "stop", "systemd-timesyncd.service"); err != nil {
			return err
		}
	}
	return zoneErr
}

func setZone(n *node.Node, zone string) error {
	if zone == "" {
		zone = "Etc/UTC"
	}
	const database = "/usr/share/zoneinfo/"
	target := database + zone
	if !filepath.IsLocal(zone) {
		return fmt.Errorf("timezone is not the name of a zone such as Europe/Berlin")
	}
	if info, err := os.Stat(n.Path(target)); err != nil || info.IsDir() {
		if zone == "Etc/UTC" {
			return nil // the image has no zones at all; the clock shows UTC as it is
		}
		return fmt.Errorf("the image knows no time zone %q; the name must be one such as Europe/Berlin", zone)
	}
	link := n.Path("/etc/localtime")
	if old, err := os.Readlink(link); err != nil || !strings.HasSuffix(old, "/zoneinfo/"+zone) {
		fresh := link + ".slipway"
		os.Remove(fresh)
		if err := os.Symlink(target, fresh); err != nil {
			return err
		}
		if err := os.Rename(fresh, link); err != nil {
			return err
		}
		n.Changed("the time zone is %s", zone)
	}
	_, err := n.Ensure("/etc/timezone", 0o644, zone+"\n")
	return err
}
