package profile

import (
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/builder/manifest"
)

var (
	roleName = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)
	// packageName follows Debian Policy 5.6.1, "Source": lower case letters,
	// digits, plus, minus and full stops.
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	overlayName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)
	unitName    = regexp.MustCompile(`^[A-Za-z0-9:_.\\@-]+\.(service|socket|target|timer|path|mount)$`)
)

// parse reads one profile and checks all that it alone can show.
func parse(file string, data []byte) (*Profile, error) {
	doc, err := parseDocument(file, data)
	if err != nil {
		return nil, err
	}
	p := &Profile{file: file}
	if err := doc.decode(p); err != nil {
		return nil, err
	}
	for _, check := range []func(*document, *Profile) error{checkNames, checkLists, checkPaths, checkPorts, checkVM, checkImages, checkProduct} {
		if err := check(doc, p); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func checkNames(doc *document, p *Profile) error {
	want := strings.TrimSuffix(filepath.Base(p.file), ".yaml")
	switch {
	case !roleName.MatchString(p.Role):
		return doc.errorAt(doc.find("role"), "role", "%q is not a role name", p.Role).
			WithMend("write role: %s; lower-case words joined by hyphens", want)
	case p.Role != want:
		return doc.errorAt(doc.find("role"), "role", "%q stands in a file named %s.yaml", p.Role, want).
			WithMend("give the file and the role one name")
	case p.Summary == "" || strings.Contains(p.Summary, "\n"):
		return doc.errorAt(doc.find("summary"), "summary", "one line that says what the role is for is missing")
	case len(p.Packages) == 0 && p.Role == BaseName:
		return doc.errorAt(doc.find("packages"), "packages", "base names no package, so there is nothing to boot")
	case p.Butane != "" && (p.Butane != filepath.Base(p.Butane) || !strings.HasSuffix(p.Butane, ".bu")):
		return doc.errorAt(doc.find("butane"), "butane", "%q is not the name of a .bu file beside the profile", p.Butane)
	}
	return nil
}

func checkLists(doc *document, p *Profile) error {
	for _, list := range []struct {
		field   string
		values  []string
		pattern *regexp.Regexp
		what    string
	}{
		{"packages", p.Packages, packageName, "a Debian package name"},
		{"overlays", p.Overlays, overlayName, "the name of a directory in overlays/"},
		{"services", p.Services, unitName, "a systemd unit with its suffix"},
	} {
		seen := map[string]bool{}
		for i, v := range list.values {
			at := doc.find(list.field, i)
			if !list.pattern.MatchString(v) {
				return doc.errorAt(at, fmt.Sprintf("%s[%d]", list.field, i), "%q is not %s", v, list.what)
			}
			if seen[v] {
				return doc.errorAt(at, fmt.Sprintf("%s[%d]", list.field, i), "%s is listed twice", v).WithMend("remove one")
			}
			seen[v] = true
		}
	}
	return nil
}

func checkPaths(doc *document, p *Profile) error {
	seen := map[string]bool{}
	for i, dir := range p.State {
		at, field := doc.find("state", i), fmt.Sprintf("state[%d]", i)
		if !cleanAbsolute(dir) {
			return doc.errorAt(at, field, "%q is not a clean absolute path below /", dir)
		}
		for other := range seen {
			if other == dir || strings.HasPrefix(dir, other+"/") || strings.HasPrefix(other, dir+"/") {
				return doc.errorAt(at, field, "%s and %s overlap", dir, other).WithMend("keep the outer one")
			}
		}
		seen[dir] = true
	}
	for name := range p.Preseed {
		if !cleanAbsolute(name) {
			return doc.errorAt(doc.find("preseed", name), "preseed", "%q is not a clean absolute path below /", name)
		}
	}
	return nil
}

func cleanAbsolute(p string) bool {
	return strings.HasPrefix(p, "/") && p != "/" && path.Clean(p) == p && !strings.ContainsAny(p, "\x00\n")
}

func checkPorts(doc *document, p *Profile) error {
	for i, port := range p.Ports {
		if field, problem := portProblem(port); problem != "" {
			return doc.errorAt(doc.find("ports", i, field), fmt.Sprintf("ports[%d].%s", i, field), "%s", problem)
		}
	}
	return nil
}

// portProblem names the field of a port entry that is wrong, and why.
func portProblem(port manifest.Port) (field, problem string) {
	switch port.From {
	case "any", "cluster", "clients":
	default:
		return "from", fmt.Sprintf("%q is not any (the whole world), cluster (the node's peers) or clients (the networks that the topology names)", port.From)
	}
	if port.Why == "" {
		return "why", "what listens there is missing; it is printed in the firewall's rules"
	}
	switch port.Proto {
	case "vrrp":
		if port.Port != "" {
			return "port", "vrrp is a protocol of its own and has no ports"
		}
		return "", ""
	case "tcp", "udp":
	default:
		return "proto", fmt.Sprintf("%q is not tcp, udp or vrrp", port.Proto)
	}
	low, high, isRange := strings.Cut(port.Port, "-")
	first, err := strconv.ParseUint(low, 10, 16)
	last := first
	if err == nil && isRange {
		last, err = strconv.ParseUint(high, 10, 16)
	}
	if err != nil || first == 0 || last < first {
		return "port", fmt.Sprintf("%q is not a port from 1 to 65535 or a range such as 7000-7100", port.Port)
	}
	return "", ""
}

func checkVM(doc *document, p *Profile) error {
	if p.Role == BaseName || p.Role == ToolsName {
		return nil // not machines of their own
	}
	switch {
	case p.VM.CPUs < 1 || p.VM.CPUs > 1024:
		return doc.errorAt(doc.find("vm", "cpus"), "vm.cpus", "%d is not a number of CPUs from 1 to 1024", p.VM.CPUs)
	case p.VM.Memory < 512*MiB || p.VM.Memory%MiB != 0:
		return doc.errorAt(doc.find("vm", "memory"), "vm.memory", "%s is too small (512MiB at least) or no whole number of MiB", p.VM.Memory)
	case p.VM.Disk < 8*GiB || p.VM.Disk%MiB != 0:
		return doc.errorAt(doc.find("vm", "disk"), "vm.disk", "%s is too small (8GiB at least) or no whole number of MiB", p.VM.Disk)
	}
	return nil
}
