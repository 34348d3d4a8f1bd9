package datasource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/internal/fault"
)

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// parseYAML reads one YAML document whose root is a mapping; nil for an empty one.
func parseYAML(file string, data []byte) (*yaml.Node, error) {
	wrong := func(line, text string) error {
		return fault.New(fault.Input, "%s:%s: %s", file, line, text).
			WithMend("Correct the file in the seed and start the node again.")
	}
	var doc yaml.Node
	switch err := yaml.NewDecoder(bytes.NewReader(data)).Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		line, text := "1", err.Error()
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			line, text = m[1], strings.TrimPrefix(text, m[0])
		}
		return nil, wrong(line, "not valid YAML: "+strings.TrimPrefix(text, "yaml: "))
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 {
		return nil, nil
	}
	root := doc.Content[0]
	switch {
	case root.Kind == yaml.ScalarNode && root.Tag == "!!null":
		return nil, nil
	case root.Kind != yaml.MappingNode:
		return nil, wrong(fmt.Sprint(root.Line), "must hold keys and values, such as local-hostname: db1")
	}
	return root, nil
}

// Keys of meta-data that platforms write and that have no meaning for a node.
var ignoredMeta = map[string]bool{
	"dsmode": true, "availability-zone": true, "availability_zone": true, "region": true, "cloud-name": true, "cloud_name": true, "platform": true, "launch-index": true,
	"ami-id": true, "instance-type": true, "seedfrom": true, "local-ipv4": true, "public-ipv4": true, "wait-on-network": true, "cleanup-guestinfo": true, "redact": true,
}

// readMeta reads meta-data of NoCloud and VMware. It returns the network
// configuration that may stand in it; one that cannot be unpacked is no error
// of the meta-data but NetworkError.
func (m *Metadata) readMeta(file string, data []byte) (network []byte, err error) {
	root, err := parseYAML(file, data)
	if root == nil || err != nil {
		return nil, err
	}
	m.Raw = root
	var encoding string
	for i := 0; i+1 < len(root.Content); i += 2 {
		k, v := root.Content[i], root.Content[i+1]
		if v.Kind == yaml.AliasNode && v.Alias != nil {
			v = v.Alias
		}
		at := fmt.Sprintf("%s:%d: ", file, k.Line)
		text := func() string {
			if v.Kind != yaml.ScalarNode {
				m.warn("%s%s must be a single value; it has no effect", at, k.Value)
				return ""
			}
			if v.Tag == "!!null" {
				return ""
			}
			return strings.TrimSpace(v.Value)
		}
		switch k.Value {
		case "instance-id", "instance_id":
			m.InstanceID = text()
		case "local-hostname", "local_hostname":
			m.setHostname(text())
		case "hostname":
			if m.Hostname == "" {
				m.setHostname(text())
			}
		case "public-keys", "public_keys", "public-keys-data":
			m.addKeyNode(at, v)
		case "slipway":
			m.Slipway = v
		case "network", "network-config":
			if v.Kind == yaml.ScalarNode {
				network = []byte(v.Value)
			} else if network, err = yaml.Marshal(v); err != nil {
				m.NetworkError = fault.New(fault.Input, "%snetwork: %v", at, err)
			}
		case "network.encoding":
			encoding = text()
		case "network-interfaces":
			m.warn("%snetwork-interfaces (the format of /etc/network/interfaces) is not read; give network-config", at)
		default:
			if !ignoredMeta[k.Value] {
				m.warn("%skey %q is not known here and has no effect", at, k.Value)
			}
		}
	}
	if network != nil && encoding != "" {
		if network, err = decode(encoding, string(network)); err != nil {
			m.NetworkError = fault.New(fault.Input, "%s: network: %w", file, err).
				WithMend("Encode the network configuration as network.encoding says: base64 or gzip+base64.")
		}
	}
	return network, nil
}

// setHostname takes a name with or without its domain.
func (m *Metadata) setHostname(name string) {
	name = strings.TrimSuffix(strings.TrimSpace(name), ".")
	if name == "" {
		return
	}
	host, domain, dotted := strings.Cut(name, ".")
	if !validName(name) {
		m.warn("%q is no host name: letters, digits and hyphens, at most 63 in a row; it is not used", name)
		return
	}
	m.Hostname, m.FQDN = host, ""
	if dotted && domain != "" {
		m.FQDN = name
	}
}

var label = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// validName checks a host name by RFC 1123, section 2.1.
func validName(name string) bool {
	if len(name) > 253 {
		return false
	}
	for _, l := range strings.Split(name, ".") {
		if !label.MatchString(l) {
			return false
		}
	}
	return true
}

// addKeys adds SSH keys that stand one to a line.
func (m *Metadata) addKeys(text string) {
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		for _, have := range m.PublicKeys {
			if have == line {
				line = ""
			}
		}
		if line != "" {
			m.PublicKeys = append(m.PublicKeys, line)
		}
	}
}

// addKeyNode reads public keys in the forms that occur: one string, a list of
// strings, a mapping of names to strings or (EC2) to {openssh-key: …}.
func (m *Metadata) addKeyNode(at string, v *yaml.Node) {
	switch v.Kind {
	case yaml.ScalarNode:
		if v.Tag != "!!null" {
			m.addKeys(v.Value)
		}
	case yaml.SequenceNode:
		for _, item := range v.Content {
			m.addKeyItem(at, item)
		}
	case yaml.MappingNode:
		for i := 1; i < len(v.Content); i += 2 {
			m.addKeyItem(at, v.Content[i])
		}
	}
}

func (m *Metadata) addKeyItem(at string, v *yaml.Node) {
	switch v.Kind {
	case yaml.ScalarNode:
		m.addKeys(v.Value)
		return
	case yaml.SequenceNode:
		for _, item := range v.Content {
			if item.Kind == yaml.ScalarNode {
				m.addKeys(item.Value)
			}
		}
		return
	case yaml.MappingNode:
		for i := 0; i+1 < len(v.Content); i += 2 {
			if k := v.Content[i].Value; (k == "openssh-key" || k == "data") && v.Content[i+1].Kind == yaml.ScalarNode {
				m.addKeys(v.Content[i+1].Value)
				return
			}
		}
	}
	m.warn("%sa public key in an unknown form has no effect", at)
}

// openStackMeta is what of meta_data.json has a meaning for a node.
type openStackMeta struct {
	UUID       string            `json:"uuid"`
	Hostname   string            `json:"hostname"`
	Name       string            `json:"name"`
	PublicKeys map[string]string `json:"public_keys"`
	Keys       []struct {
		Type, Data string
	} `json:"keys"`
	// AdminPass is Nova's random password. It is not used: nobody asked for a
	// password on this node.
	Meta map[string]string `json:"meta"`
	// Proxmox gives its network as a file for /etc/network/interfaces.
	NetworkConfig *struct {
		ContentPath string `json:"content_path"`
	} `json:"network_config"`
}

// readOpenStack reads meta_data.json. It returns the network configuration that
// may stand in it, in cloud-init's format: network_data.json can tell a card by
// its address alone, and whoever writes a seed may not know that.
func (m *Metadata) readOpenStack(file string, data []byte) (network []byte, err error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	var om openStackMeta
	if err := json.Unmarshal(data, &om); err != nil {
		return nil, jsonError(file, data, err)
	}
	m.InstanceID = om.UUID
	m.setHostname(om.Name)
	m.setHostname(om.Hostname)
	names := make([]string, 0, len(om.PublicKeys))
	for name := range om.PublicKeys {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		m.addKeys(om.PublicKeys[name])
	}
	for _, k := range om.Keys {
		if k.Type == "ssh" {
			m.addKeys(k.Data)
		}
	}
	if om.NetworkConfig != nil {
		m.warn("%s: network_config (the format of /etc/network/interfaces) is not read; on Proxmox choose the cloud-init type nocloud", file)
	}
	// JSON is YAML, so that our block reads alike from both; it stands in
	// OpenStack's meta, which holds strings only.
	if root, err := parseYAML(file, data); err == nil {
		m.Raw = root
	}
	if block, ok := om.Meta["slipway"]; ok {
		node, err := parseYAML(file+", meta.slipway", []byte(block))
		if err != nil {
			return nil, err
		}
		m.Slipway = node
	}
	if text, ok := om.Meta["network-config"]; ok {
		network = []byte(text)
	}
	return network, nil
}

// jsonError turns an offset of encoding/json into a line.
func jsonError(file string, data []byte, err error) error {
	offset := int64(0)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	}
	line := 1 + bytes.Count(data[:min(offset, int64(len(data)))], []byte("\n"))
	return fault.New(fault.Input, "%s:%d: not valid JSON: %v", file, line, err).
		WithMend("Correct the file in the seed and start the node again.")
}
