package product

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
)

const (
	factsPath  = Dir + "/cluster.json"
	secretsDir = Dir + "/secrets"
)

// tellFacts writes cluster.json, and the node's secrets each into a file of its own.
// A node that stands alone has neither. told is what else was written.
func tellFacts(n *node.Node, told *bytes.Buffer) error {
	owner, secrets, text := user(of(n)), map[string]string{}, ""
	if n.Member != nil {
		secrets = n.Member.Secrets
		for _, name := range slices.Sorted(maps.Keys(secrets)) {
			fmt.Fprintf(told, "%s %d\n%s", name, len(secrets[name]), secrets[name])
		}
		var err error
		digest := sha256.Sum256(told.Bytes())
		if text, err = facts(n.Member, n.Maintenance() != nil, hex.EncodeToString(digest[:])); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(n.Path(secretsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if _, ok := secrets[e.Name()]; !ok {
			if _, err := n.Ensure(path.Join(secretsDir, e.Name()), 0, ""); err != nil {
				return err
			}
		}
	}
	for name, value := range secrets {
		if _, err := n.EnsureFor(owner, path.Join(secretsDir, path.Base(name)), 0o600, value+"\n"); err != nil {
			return err
		}
	}
	if text == "" {
		_, err := n.Ensure(factsPath, 0, "")
		return err
	}
	// The last, since units look for it to change.
	_, err = n.EnsureFor(owner, factsPath, 0o600, text)
	return err
}

// about is what cluster.json says: the site as the product's own programs may need
// it. None of it is secret.
type about struct {
	Cluster     string `json:"cluster"`
	Domain      string `json:"domain"`
	Site        string `json:"site"`
	Node        string `json:"node"`
	Address     string `json:"address"`
	Maintenance bool   `json:"maintenance"` // of this node
	// Digest is another one whenever another file here is: whoever looks for this one to
	// change hears of all, once, after the last of them was written.
	Digest string `json:"digest"`
	// Nodes are those of the site, whatever their role, by name.
	Nodes []aboutNode `json:"nodes"`
	VIPs  []aboutVIP  `json:"vips"`
}

type aboutNode struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	Address string `json:"address"`
}

// aboutVIP is a virtual address of the site. A port that leads nowhere is 0.
type aboutVIP struct {
	Name      string   `json:"name"`
	Address   string   `json:"address"`
	Names     []string `json:"names"`
	ReadWrite int      `json:"read_write"`
	ReadOnly  int      `json:"read_only"`
	HTTP      int      `json:"http"`
	HTTPS     int      `json:"https"`
	Gateway   int      `json:"gateway"`
	Tunnel    int      `json:"tunnel"`
}

// facts is cluster.json for a node.
func facts(m *member.Member, maintenance bool, digest string) (string, error) {
	f := about{
		Cluster: m.Plan.Cluster, Domain: m.Plan.Domain, Site: m.Self.Site, Node: m.Self.Name, Address: m.Self.Address.String(),
		Maintenance: maintenance, Digest: digest, Nodes: []aboutNode{}, VIPs: []aboutVIP{},
	}
	for _, n := range m.Plan.Nodes {
		if n.Site == m.Self.Site {
			f.Nodes = append(f.Nodes, aboutNode{n.Name, n.Role, n.Address.String()})
		}
	}
	for _, v := range m.Plan.VIPs {
		if v.At(m.Self.Site) {
			f.VIPs = append(f.VIPs, aboutVIP{
				Name: v.Name, Address: v.Address.Addr().String(), Names: append([]string{}, v.Names...),
				ReadWrite: v.ReadWrite, ReadOnly: v.ReadOnly, HTTP: v.HTTP, HTTPS: v.HTTPS, Gateway: v.Gateway, Tunnel: v.Tunnel,
			})
		}
	}
	data, err := json.MarshalIndent(f, "", "  ")
	return string(data) + "\n", err
}
