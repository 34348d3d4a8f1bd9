package steps

import (
	"context"
	"fmt"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/node"
)

// Hostname names the node: user-data's word first, then meta-data's, else the
// role with the beginning of the machine id.
type Hostname struct{}

func (Hostname) Name() string { return "hostname" }

func (Hostname) Apply(ctx context.Context, n *node.Node) error {
	c := &n.User.Config
	if c.PreserveHostname {
		return nil
	}
	name, fqdn, err := hostname(n)
	if err != nil {
		return err
	}
	kernel := name
	if c.PreferFQDN && fqdn != "" {
		kernel = fqdn
	}
	if _, err := n.Ensure("/etc/hostname", 0o644, kernel+"\n"); err != nil {
		return err
	}
	if !c.ManageEtcHosts.Off() {
		hosts, err := n.Read("/etc/hosts")
		if err != nil {
			return err
		}
		if _, err := n.Ensure("/etc/hosts", 0o644, withOwnName(string(hosts), name, fqdn)); err != nil {
			return err
		}
	}
	running, err := n.Command(ctx, "hostname")
	if err != nil {
		return err
	}
	if strings.TrimSpace(running) != kernel {
		if _, err := n.Command(ctx, "hostname", kernel); err != nil {
			return err
		}
		n.Changed("the host name is %s", kernel)
	}
	return nil
}

// hostname decides on the short and, if a domain is known, the full name.
func hostname(n *node.Node) (short, full string, err error) {
	c := &n.User.Config
	given := c.FQDN
	switch {
	case c.Hostname != "" && strings.Contains(c.Hostname, ".") && given == "":
		given = c.Hostname
	case c.Hostname != "" && given != "":
		short = firstLabel(c.Hostname)
	case c.Hostname != "":
		return c.Hostname, "", nil
	case given == "" && n.Seed != nil && n.Seed.Hostname != "":
		if given = n.Seed.Hostname; !cloudconfig.ValidHostname(given) {
			return "", "", fmt.Errorf("meta-data: local-hostname %q is not a host name: use letters, digits and hyphens, at most 63 a label", given)
		}
	}
	if given == "" {
		id, err := n.Read("/etc/machine-id")
		if err != nil {
			return "", "", err
		}
		short = n.Role.Name
		if len(id) >= 6 {
			short += "-" + string(id[:6])
		}
		return short, "", nil
	}
	if short == "" {
		short = firstLabel(given)
	}
	if strings.Contains(given, ".") {
		full = given
	}
	return short, full, nil
}

func firstLabel(name string) string {
	label, _, _ := strings.Cut(name, ".")
	return label
}

// withOwnName gives /etc/hosts the node's own line, 127.0.1.1 as Debian has it
// (Debian reference, section 5.1.1), and leaves every other line alone.
func withOwnName(hosts, name, fqdn string) string {
	own := "127.0.1.1\t" + strings.TrimSpace(fqdn+" "+name)
	if hosts == "" {
		hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	}
	var out []string
	placed := false
	for _, line := range strings.Split(strings.TrimRight(hosts, "\n"), "\n") {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == "127.0.1.1" {
			if placed {
				continue
			}
			line, placed = own, true
		}
		out = append(out, line)
	}
	if !placed {
		out = append(out, own)
	}
	return strings.Join(out, "\n") + "\n"
}
