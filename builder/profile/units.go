package profile

import (
	"fmt"
	"path"
	"strings"

	"github.com/coreos/ignition/v2/config/v3_5/types"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// unitDirs is where units stand, the administrator's first (systemd.unit(5),
// "Unit File Load Path").
var unitDirs = []string{"etc/systemd/system", "usr/lib/systemd/system"}

// maxAlso bounds how far Also= leads from unit to unit.
const maxAlso = 32

// unit applies one entry of systemd.units: content, drop-ins, mask, and whether it
// is enabled.
func (a *applier) unit(u types.Unit) error {
	if strings.ContainsAny(u.Name, "/\x00") || !strings.Contains(u.Name, ".") {
		return fmt.Errorf("%q is not a unit name", u.Name)
	}
	own := path.Join(unitDirs[0], u.Name)
	if u.Contents != nil && *u.Contents != "" {
		if err := a.putText(own, *u.Contents); err != nil {
			return err
		}
	}
	for _, d := range u.Dropins {
		if d.Contents == nil {
			continue
		}
		if err := a.putText(path.Join(own+".d", d.Name), *d.Contents); err != nil {
			return err
		}
	}
	if u.Mask != nil && *u.Mask {
		if u.Enabled != nil && *u.Enabled {
			return fmt.Errorf("%s is both masked and enabled", u.Name)
		}
		return a.putLink(own, "/dev/null")
	}
	switch {
	case u.Enabled == nil:
		return nil
	case *u.Enabled:
		return a.installLinks(u.Name, a.putLink)
	default:
		return a.installLinks(u.Name, a.hide)
	}
}

func (a *applier) putText(p, content string) error {
	e := &tree.Entry{Path: p, Kind: tree.Regular, Perm: 0o644}
	setContent(e, []byte(content))
	return a.put(e)
}

func (a *applier) putLink(p, target string) error {
	return a.put(&tree.Entry{Path: p, Kind: tree.Symlink, Perm: 0o777, Target: target})
}

// hide takes away a link that a layer below has, with the overlay file system's
// whiteout: a character device 0:0 (kernel, "Overlay Filesystem", "whiteouts and
// opaque directories").
func (a *applier) hide(p, _ string) error {
	a.tree.Remove(p)
	if a.lower(p) == nil {
		return nil
	}
	return a.put(&tree.Entry{Path: p, Kind: tree.Char})
}

// installLinks calls do for every link that "systemctl enable" would make for a
// unit, following Also= (systemd.unit(5), "[INSTALL] SECTION OPTIONS").
func (a *applier) installLinks(name string, do func(link, target string) error) error {
	done := map[string]bool{}
	queue := []string{name}
	for len(queue) > 0 {
		if len(done) > maxAlso {
			return fmt.Errorf("%s leads to more than %d further units by Also=", name, maxAlso)
		}
		unit := queue[0]
		queue = queue[1:]
		if done[unit] {
			continue
		}
		done[unit] = true
		file, content, ok := a.findUnit(unit)
		if !ok {
			if unit != name {
				continue // Also= may name units of packages that are not there
			}
			return fault.New(fault.Input, "there is no unit %s in the overlays or packages", name).
				WithMend("mend its name, give contents:, or add the package that has it")
		}
		install := parseInstall(string(content))
		if install.empty() {
			if unit != name {
				continue
			}
			return fault.New(fault.Input, "%s has no [Install] section, so it cannot be enabled or disabled", name).
				WithMend("something else starts it; use mask: true to keep it from starting")
		}
		links, err := install.links(unit, "/"+file)
		if err != nil {
			return err
		}
		for _, l := range links {
			if err := do(path.Join(unitDirs[0], l.name), l.target); err != nil {
				return err
			}
		}
		queue = append(queue, install.also...)
	}
	return nil
}

// findUnit finds a unit's file. For an instance "a@b.service" that is the
// template's.
func (a *applier) findUnit(name string) (file string, content []byte, ok bool) {
	names := []string{name}
	if at, dot := strings.IndexByte(name, '@'), strings.LastIndexByte(name, '.'); at >= 0 && dot > at+1 {
		names = append(names, name[:at+1]+name[dot:])
	}
	for _, n := range names {
		for _, dir := range unitDirs {
			p := path.Join(dir, n)
			if content, ok := a.read(p); ok {
				return p, content, true
			}
		}
	}
	return "", nil, false
}

// install is an [Install] section.
type install struct {
	wantedBy, requiredBy, upheldBy, alias, also []string
	defaultInstance                             string
}

func (in install) empty() bool {
	return len(in.wantedBy)+len(in.requiredBy)+len(in.upheldBy)+len(in.alias)+len(in.also) == 0
}

// parseInstall reads the [Install] section of a unit file (systemd.syntax(7)): an
// empty assignment resets a list, a trailing backslash joins lines.
func parseInstall(content string) (in install) {
	section := ""
	lines := strings.Split(strings.ReplaceAll(content, "\\\n", " "), "\n")
	for _, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if line[0] == '[' {
			section = line
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if section != "[Install]" || !ok {
			continue
		}
		list := map[string]*[]string{
			"WantedBy": &in.wantedBy, "RequiredBy": &in.requiredBy, "UpheldBy": &in.upheldBy,
			"Alias": &in.alias, "Also": &in.also,
		}[strings.TrimSpace(key)]
		words := strings.Fields(value)
		switch {
		case list != nil && len(words) == 0:
			*list = nil
		case list != nil:
			*list = append(*list, words...)
		case strings.TrimSpace(key) == "DefaultInstance":
			in.defaultInstance = strings.TrimSpace(value)
		}
	}
	return in
}

type unitLink struct{ name, target string }

// links lists what enabling makes, relative to /etc/systemd/system.
func (in install) links(unit, file string) ([]unitLink, error) {
	instance := ""
	if at, dot := strings.IndexByte(unit, '@'), strings.LastIndexByte(unit, '.'); at >= 0 && dot > at {
		instance = unit[at+1 : dot]
		if instance == "" {
			if in.defaultInstance == "" {
				return nil, fault.New(fault.Input, "%s is a template without DefaultInstance=", unit).
					WithMend("name an instance, such as %sNAME%s", unit[:at+1], unit[dot:])
			}
			instance = in.defaultInstance
			unit = unit[:at+1] + instance + unit[dot:]
		}
	}
	var out []unitLink
	for _, kind := range []struct {
		units  []string
		suffix string
	}{{in.wantedBy, ".wants"}, {in.requiredBy, ".requires"}, {in.upheldBy, ".upholds"}} {
		for _, other := range kind.units {
			other, err := expand(other, instance)
			if err != nil {
				return nil, err
			}
			out = append(out, unitLink{other + kind.suffix + "/" + unit, file})
		}
	}
	for _, alias := range in.alias {
		alias, err := expand(alias, instance)
		if err != nil {
			return nil, err
		}
		out = append(out, unitLink{alias, file})
	}
	return out, nil
}

// expand replaces the one specifier that means the same on every machine.
func expand(word, instance string) (string, error) {
	word = strings.ReplaceAll(strings.ReplaceAll(word, "%i", instance), "%I", instance)
	if strings.ContainsAny(word, "%/") {
		return "", fmt.Errorf("%q in an [Install] section cannot be resolved at build time", word)
	}
	return word, nil
}
