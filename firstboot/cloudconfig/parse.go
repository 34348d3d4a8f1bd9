package cloudconfig

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// decodeYAML reads one cloud-config document into config. Keys that the
// document gives replace what config holds.
func decodeYAML(file string, data []byte, config *Config) []Finding {
	d := &decoder{file: file}
	var document yaml.Node
	decoder := yaml.NewDecoder(strings.NewReader(string(data)))
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return append(d.findings, syntaxError(file, err))
	}
	if len(document.Content) == 0 {
		return nil
	}
	root, ok := d.resolve(document.Content[0], "")
	if !ok || isNull(root) {
		return d.findings
	}
	// A part replaces whole keys of the parts before it, so each key is read
	// into a fresh value first.
	fresh := &Config{}
	d.depth++
	d.structure(root, reflect.ValueOf(fresh).Elem(), "")
	from, to := reflect.ValueOf(fresh).Elem(), reflect.ValueOf(config).Elem()
	for i := range from.NumField() {
		if to.Type().Field(i).Name != "_" && !from.Field(i).IsZero() {
			to.Field(i).Set(from.Field(i))
		}
	}
	var another yaml.Node
	if err := decoder.Decode(&another); !errors.Is(err, io.EOF) {
		d.report(Invalid, nil, "", "more than one YAML document; only the first one counts")
	}
	return d.findings
}

// syntaxError turns yaml.v3's message into a finding. Its messages hold the
// line and never text of the document, save for names of anchors and tags.
func syntaxError(file string, err error) Finding {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	finding := Finding{Kind: Invalid, File: file, Message: "not YAML, so nothing in it takes effect: " + message}
	if m := regexp.MustCompile(`^line (\d+): (.*)`).FindStringSubmatch(message); m != nil {
		finding.Line, _ = strconv.Atoi(m[1])
		finding.Message = "not YAML, so nothing in it takes effect: " + m[2]
	}
	if strings.Contains(message, "cannot start any token") {
		finding.Message += "; indent with spaces, not tabs, and quote text that begins with a special character"
	}
	return finding
}

// check looks at values that are of the right type and still cannot be right.
func (c *Config) check(file string) []Finding {
	var findings []Finding
	invalid := func(key, format string, args ...any) {
		findings = append(findings, Finding{Kind: Invalid, File: file, Key: key, Message: fmt.Sprintf(format, args...)})
	}
	if c.Hostname != "" && !ValidHostname(c.Hostname) {
		invalid("hostname", "not a host name: letters, digits and hyphens, at most 63 a label")
		c.Hostname = ""
	}
	if c.FQDN != "" && !ValidHostname(c.FQDN) {
		invalid("fqdn", "not a host name: letters, digits and hyphens, at most 63 a label")
		c.FQDN = ""
	}
	for i, m := range c.Mounts {
		if len(m) == 0 || len(m) > 6 {
			invalid(fmt.Sprintf("mounts[%d]", i), "must have one to six fields: device, mount point, type, options, dump, pass")
		}
	}
	var keep []WriteFile
	for i, f := range c.WriteFiles {
		if !strings.HasPrefix(f.Path, "/") || strings.HasSuffix(f.Path, "/") {
			invalid(fmt.Sprintf("write_files[%d].path", i), "must be an absolute path of a file")
			continue
		}
		keep = append(keep, f)
	}
	c.WriteFiles = keep
	if p := c.PowerState; p != nil && p.Mode != "poweroff" && p.Mode != "reboot" && p.Mode != "halt" {
		invalid("power_state.mode", "must be poweroff, reboot or halt")
		c.PowerState = nil
	}
	return findings
}

// ValidHostname reports whether name can be a host name, with or without a domain
// (RFC 1123, section 2.1).
func ValidHostname(name string) bool {
	if len(name) == 0 || len(name) > 253 {
		return false
	}
	for _, label := range strings.Split(name, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if !(r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') {
				return false
			}
		}
	}
	return true
}
