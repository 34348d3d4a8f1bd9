package layer

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"path"
	"sort"
	"strings"

	"github.com/slipwayhq/slipway/builder/deb"
)

// dpkg's database, as dpkg leaves it between "unpack" and "configure".
const (
	adminDir = "var/lib/dpkg"
	infoDir  = adminDir + "/info"
)

// database writes to dpkg's database in a root.
type database struct {
	root *deb.Root
}

// create makes an empty database.
func (d database) create() error {
	for _, dir := range []string{infoDir, adminDir + "/updates", adminDir + "/triggers", adminDir + "/alternatives", adminDir + "/parts"} {
		if err := d.root.MkdirAll(dir); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"status": "", "available": "", "diversions": "", "statoverride": "", "info/format": "1\n", "triggers/File": "", "triggers/Unincorp": "",
	} {
		if err := d.root.WriteFile(adminDir+"/"+name, 0o644, []byte(content)); err != nil {
			return err
		}
	}
	return nil
}

// controlFile is the path of a control file once dpkg has it.
func (d database) controlFile(p *pkg, name string) string {
	return infoDir + "/" + p.instance() + "." + name
}

// addScript stores a preinst alone, for it to run before its package is there.
func (d database) addScript(p *pkg, name string) error {
	return d.root.WriteFile(d.controlFile(p, name), 0o755, p.file.Control[name])
}

// add records packages as unpacked.
func (d database) add(pkgs []*pkg) error {
	if len(pkgs) == 0 {
		return nil
	}
	status, err := d.root.ReadFile(adminDir + "/status")
	if err != nil {
		return err
	}
	var out bytes.Buffer
	out.Write(status)
	for _, p := range pkgs {
		if out.Len() > 0 && !bytes.HasSuffix(out.Bytes(), []byte("\n\n")) {
			out.WriteByte('\n')
		}
		stanza, err := d.stanza(p)
		if err != nil {
			return err
		}
		out.WriteString(stanza.String())
		if err := d.addControl(p); err != nil {
			return err
		}
	}
	if err := d.root.WriteFile(adminDir+"/status", 0o644, out.Bytes()); err != nil {
		return err
	}
	interests, err := d.addInterests(pkgs)
	if err != nil {
		return err
	}
	return d.activate(pkgs, interests)
}

// stanza is a package's entry in the status file.
func (d database) stanza(p *pkg) (deb.Stanza, error) {
	var s deb.Stanza
	for _, f := range p.file.Fields {
		if !strings.EqualFold(f.Name, "Conffiles") && !strings.EqualFold(f.Name, "Status") {
			s = append(s, f)
		}
		if strings.EqualFold(f.Name, "Package") {
			s = append(s, deb.Field{Name: "Status", Value: "install ok unpacked"})
		}
	}
	var list strings.Builder
	const flag = "remove-on-upgrade"
	for _, line := range strings.Split(string(p.file.Control["conffiles"]), "\n") {
		if words := strings.Fields(line); len(words) == 2 && words[0] == flag {
			list.WriteString("\n " + words[1] + " newconffile " + flag)
		}
	}
	for _, name := range conffiles(p) {
		// dpkg computes the sum itself when it moves the .dpkg-new into place.
		sum := "newconffile"
		if p.inPlace {
			content, err := d.root.ReadFile(name[1:])
			if err != nil {
				return nil, fmt.Errorf("configuration file of %s: %w", p.Name, err)
			}
			digest := md5.Sum(content)
			sum = hex.EncodeToString(digest[:])
		}
		list.WriteString("\n " + name + " " + sum)
	}
	if list.Len() > 0 {
		s = append(s, deb.Field{Name: "Conffiles", Value: list.String()})
	}
	return s, nil
}

// conffiles are the configuration files that a package ships (deb-conffiles(5)).
func conffiles(p *pkg) []string {
	var out []string
	for _, line := range strings.Split(string(p.file.Control["conffiles"]), "\n") {
		// A line with a flag before the path names a file that is not shipped.
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "/") {
			out = append(out, line)
		}
	}
	return out
}

// addControl stores a package's control files and its file list.
func (d database) addControl(p *pkg) error {
	for name, content := range p.file.Control {
		perm := uint32(0o644)
		switch name {
		case "control":
			continue
		case "preinst", "postinst", "prerm", "postrm", "config":
			perm = 0o755
		case "md5sums":
			content = adjustSums(content, p.contents)
		}
		if err := d.root.WriteFile(d.controlFile(p, name), perm, content); err != nil {
			return err
		}
	}
	if !p.has("md5sums") {
		if err := d.root.WriteFile(d.controlFile(p, "md5sums"), 0o644, ownSums(p)); err != nil {
			return err
		}
	}
	var list bytes.Buffer
	for _, name := range p.contents.Paths {
		if !p.lost[name] {
			list.WriteString(name)
			list.WriteByte('\n')
		}
	}
	return d.root.WriteFile(d.controlFile(p, "list"), 0o644, list.Bytes())
}

// adjustSums gives transformed files their new name and sum in md5sums, and
// drops files that were not laid down.
func adjustSums(sums []byte, c *deb.Contents) []byte {
	there := make(map[string]bool, len(c.Paths))
	for _, name := range c.Paths {
		there[name] = true
	}
	var out bytes.Buffer
	for _, line := range strings.Split(string(sums), "\n") {
		sum, name, ok := strings.Cut(line, "  ")
		if to, renamed := c.Renamed["/"+name]; renamed {
			name, sum = to[1:], c.Sums[to]
		}
		if ok && there["/"+name] {
			out.WriteString(sum + "  " + name + "\n")
		}
	}
	return out.Bytes()
}

// ownSums are the sums of a package that ships none: dpkg then computes those
// of all files but configuration files.
func ownSums(p *pkg) []byte {
	except := map[string]bool{}
	for _, name := range conffiles(p) {
		except[name] = true
	}
	var out bytes.Buffer
	for _, name := range p.contents.Paths {
		if sum, ok := p.contents.Sums[name]; ok && !except[name] && !p.lost[name] {
			out.WriteString(sum + "  " + name[1:] + "\n")
		}
	}
	return out.Bytes()
}

// directive is a line of a package's triggers file (deb-triggers(5)).
type directive struct {
	interest bool
	await    bool
	name     string
}

func directives(p *pkg) []directive {
	var out []directive
	for _, line := range strings.Split(string(p.file.Control["triggers"]), "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) != 2 {
			continue
		}
		kind, option, _ := strings.Cut(words[0], "-")
		if kind == "interest" || kind == "activate" {
			out = append(out, directive{kind == "interest", option != "noawait", words[1]})
		}
	}
	return out
}

// interest is a file trigger that a package waits for.
type interest struct {
	path  string
	await bool
}

// addInterests registers what packages want to be told, and returns all file
// triggers that are known.
func (d database) addInterests(pkgs []*pkg) ([]interest, error) {
	const file = adminDir + "/triggers/File"
	files, err := d.root.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for _, p := range pkgs {
		for _, t := range directives(p) {
			if !t.interest {
				continue
			}
			entry := p.instance()
			if !t.await {
				entry += "/noawait"
			}
			if strings.HasPrefix(t.name, "/") {
				files = append(files, t.name+" "+entry+"\n"...)
				continue
			}
			name := adminDir + "/triggers/" + t.name
			var known []byte
			if d.root.Exists(name) {
				if known, err = d.root.ReadFile(name); err != nil {
					return nil, err
				}
			}
			if err := d.root.WriteFile(name, 0o644, append(known, entry+"\n"...)); err != nil {
				return nil, err
			}
		}
	}
	var out []interest
	for _, line := range strings.Split(string(files), "\n") {
		if name, who, ok := strings.Cut(line, " "); ok {
			out = append(out, interest{name, !strings.HasSuffix(who, "/noawait")})
		}
	}
	return out, d.root.WriteFile(file, 0o644, files)
}

// activate writes the triggers that unpacking sets off to where dpkg takes
// them up at its next start (dpkg, doc/triggers.txt, "Unincorp").
func (d database) activate(pkgs []*pkg, interests []interest) error {
	awaiting := map[string]bool{} // path → some interest awaits
	for _, i := range interests {
		awaiting[i.path] = awaiting[i.path] || i.await
	}
	pending := map[string]map[string]bool{} // trigger → awaiting packages, "-" for none
	note := func(trigger, who string) {
		if pending[trigger] == nil {
			pending[trigger] = map[string]bool{}
		}
		pending[trigger][who] = true
	}
	for _, p := range pkgs {
		for _, t := range directives(p) {
			if !t.interest && t.await {
				note(t.name, p.instance())
			} else if !t.interest {
				note(t.name, "-")
			}
		}
		for _, name := range p.contents.Paths {
			for dir := name; len(dir) > 1; dir = path.Dir(dir) {
				if await, ok := awaiting[dir]; ok && await {
					note(dir, p.instance())
				} else if ok {
					note(dir, "-")
				}
			}
		}
	}
	const file = adminDir + "/triggers/Unincorp"
	old, err := d.root.ReadFile(file)
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(old), "\n") {
		if words := strings.Fields(line); len(words) > 1 {
			for _, who := range words[1:] {
				note(words[0], who)
			}
		}
	}
	var lines []string
	for trigger, who := range pending {
		names := make([]string, 0, len(who))
		for name := range who {
			names = append(names, name)
		}
		sort.Strings(names)
		lines = append(lines, trigger+" "+strings.Join(names, " ")+"\n")
	}
	sort.Strings(lines)
	return d.root.WriteFile(file, 0o644, []byte(strings.Join(lines, "")))
}

// diversion moves a path of all packages but one out of the way
// (dpkg-divert(1)).
type diversion struct {
	to, by string // by is ":" for the administrator's own
}

// diversions reads those that stand now, by path without leading slash.
func (d database) diversions() (map[string]diversion, error) {
	text, err := d.root.ReadFile(adminDir + "/diversions")
	if err != nil {
		return nil, err
	}
	out := map[string]diversion{}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	for i := 0; i+2 < len(lines); i += 3 {
		out[strings.TrimPrefix(lines[i], "/")] = diversion{strings.TrimPrefix(lines[i+1], "/"), lines[i+2]}
	}
	return out, nil
}
