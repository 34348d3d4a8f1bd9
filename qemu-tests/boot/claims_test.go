package boottest

import (
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// settleTime bounds the wait for a node that was started under TCG beside
// another one.
const settleTime = 6 * time.Minute

// waitUntilReady waits until the agent says that the node is ready, and ends
// the test as soon as it says that it will not be.
func waitUntilReady(m *labtest.Machine) status.Report {
	m.Helper()
	return waitUntil(m, status.Ready)
}

func waitUntil(m *labtest.Machine, want status.State) status.Report {
	m.Helper()
	m.WaitForUnit("slipway-firstboot.service")
	// The exit status tells the state once more; here the report is what counts.
	text := m.Succeed(fmt.Sprintf("firstboot status --json --wait %v || true", settleTime))
	var report status.Report
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		m.Fatalf("firstboot status --json: %v\n%s", err, text)
	}
	if report.State != want {
		m.Fatalf("the node is %s, not %s:\n%s", report.State, want, report.Text(time.Now(), status.Plain))
	}
	return report
}

// warnsOf checks that the node warns of something.
func warnsOf(m *labtest.Machine, r status.Report, what string) {
	m.Helper()
	for _, w := range r.Warnings {
		if strings.Contains(w.String(), what) {
			return
		}
	}
	m.Errorf("nothing warns of %s: %v", what, r.Warnings)
}

// roleOf reads the role marker.
func roleOf(m *labtest.Machine) *manifest.Role {
	m.Helper()
	role, err := manifest.ParseRole([]byte(m.ReadFile("/" + manifest.RolePath)))
	if err != nil {
		m.Fatal(err)
	}
	return role
}

// servicesRun checks the units that make the role, and that no other unit failed.
func servicesRun(m *labtest.Machine) {
	m.Helper()
	for _, unit := range roleOf(m).Services {
		m.WaitForUnit(unit)
	}
	noUnitFailed(m)
}

// servicesRest checks that the units that make the role wait for a cluster, for want of
// what the agent writes in one.
func servicesRest(m *labtest.Machine) {
	m.Helper()
	for _, unit := range roleOf(m).Services {
		wants(m, "systemctl show --property=ActiveState "+unit, "ActiveState=inactive")
		wants(m, "systemctl show --property=ConditionResult "+unit, "ConditionResult=no")
	}
	noUnitFailed(m)
}

func noUnitFailed(m *labtest.Machine) {
	m.Helper()
	if failed := strings.TrimSpace(m.Succeed("systemctl list-units --state=failed --plain --no-legend")); failed != "" {
		m.Errorf("failed units:\n%s", failed)
	}
}

// noPasswords checks that no account can be entered with a password (shadow(5):
// a field that begins with ! or * is no hash).
func noPasswords(m *labtest.Machine) {
	m.Helper()
	for line := range strings.Lines(m.ReadFile("/etc/shadow")) {
		fields := strings.Split(line, ":")
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "!") && !strings.HasPrefix(fields[1], "*") {
			m.Errorf("/etc/shadow: account %s has a password", fields[0])
		}
	}
}

// onlyRolePortsOpen compares what listens on the network, and the firewall's
// default, with the ports of the role marker.
func onlyRolePortsOpen(m *labtest.Machine) {
	m.Helper()
	role := roleOf(m)
	for line := range strings.Lines(m.Succeed("ss --no-header --tcp --listening --numeric")) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue
		}
		host, port, err := net.SplitHostPort(strings.Replace(fields[3], "*", "0.0.0.0", 1))
		if err != nil {
			m.Fatalf("ss says %q: %v", line, err)
		}
		host, _, _ = strings.Cut(host, "%")
		if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
			continue
		}
		if !slices.Contains(append(portsOf(m, role, "tcp", "any"), portsOf(m, role, "tcp", "cluster")...), port) {
			m.Errorf("something listens on port %s, which is not the role's: %s", port, strings.TrimSpace(line))
		}
	}
	rules := m.Succeed("nft list ruleset")
	if !regexp.MustCompile(`hook input priority [^;]*; policy drop;`).MatchString(rules) {
		m.Errorf("the firewall does not drop by default:\n%s", rules)
	}
	for _, proto := range []string{"tcp", "udp"} {
		for set, from := range map[string]string{"_any": "any", "_cluster": "cluster"} {
			open := strings.Join(openPorts(m, proto+set), " ")
			if want := strings.Join(portsOf(m, role, proto, from), " "); open != want {
				m.Errorf("the firewall opens the %s ports %q to %s, the role marker says %q", proto, open, from, want)
			}
		}
	}
}

// openPorts reads a set of the firewall, in which neighbours are merged.
func openPorts(m *labtest.Machine, set string) []string {
	m.Helper()
	elements := regexp.MustCompile(`elements = \{([^}]*)\}`).FindStringSubmatch(m.Succeed("nft list set inet slipway " + set))
	if elements == nil {
		return nil
	}
	var ports []string
	for _, e := range strings.Split(elements[1], ",") {
		ports = append(ports, expand(m, strings.TrimSpace(e))...)
	}
	return sorted(ports)
}

// portsOf lists the ports that the role marker opens.
func portsOf(t testing.TB, role *manifest.Role, proto, from string) []string {
	var ports []string
	for _, p := range role.Ports {
		if p.Proto == proto && p.From == from {
			ports = append(ports, expand(t, p.Port)...)
		}
	}
	return sorted(ports)
}

// expand makes single ports of "5432" or "7000-7100".
func expand(t testing.TB, text string) []string {
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.Atoi(first)
	to, err2 := strconv.Atoi(last)
	if err1 != nil || err2 != nil {
		t.Fatalf("%q is no range of ports", text)
	}
	var ports []string
	for p := from; p <= to; p++ {
		ports = append(ports, strconv.Itoa(p))
	}
	return ports
}

func sorted(ports []string) []string {
	slices.Sort(ports)
	return slices.Compact(ports)
}

// hasOnlyAddress checks the IPv4 addresses of the node's network cards; bridges
// that the role makes for itself do not count.
func hasOnlyAddress(m *labtest.Machine, want string) {
	m.Helper()
	got := strings.Fields(m.Succeed("for d in /sys/class/net/*/device; do d=${d%/device}; ip -4 -oneline address show dev ${d##*/} scope global; done | awk '{ print $4 }'"))
	if len(got) != 1 || got[0] != want {
		m.Errorf("the node's addresses are %v, want %s", got, want)
	}
}
