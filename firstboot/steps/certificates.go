package steps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/pki"
)

// Certificates makes the node trust further certificate authorities, as
// ca-certificates does it (update-ca-certificates(8)).
type Certificates struct{}

func (Certificates) Name() string { return "certificates" }

const (
	authorityDir  = "/usr/local/share/ca-certificates"
	authorityName = "slipway-"
	authorityConf = "/etc/ca-certificates.conf"
)

func (Certificates) Apply(ctx context.Context, n *node.Node) error {
	wanted := map[string]string{}
	removeDefaults := false
	if ca := n.User.Config.CACerts; ca != nil {
		removeDefaults = ca.RemoveDefaults
		for i, text := range ca.Trusted {
			certificates, err := pki.ParseAuthorities(text)
			if err != nil {
				n.Warn("", fmt.Sprintf("ca_certs.trusted[%d]", i), "%v; it is left out as a whole", err)
				continue
			}
			for _, c := range certificates {
				sum := sha256.Sum256(c.Raw)
				wanted[authorityName+hex.EncodeToString(sum[:8])+".crt"] = pki.EncodeCertificate(c.Raw)
			}
		}
	}
	changed := false
	present, err := filepath.Glob(n.Path(authorityDir) + "/" + authorityName + "*.crt")
	if err != nil {
		return err
	}
	for _, path := range present {
		if name := filepath.Base(path); wanted[name] == "" {
			if _, err := n.Ensure(authorityDir+"/"+name, 0, ""); err != nil {
				return err
			}
			changed = true
		}
	}
	for name, content := range wanted {
		wrote, err := n.Ensure(authorityDir+"/"+name, 0o644, content)
		if err != nil {
			return err
		}
		changed = changed || wrote
	}
	if removeDefaults {
		wrote, err := distrustDefaults(n)
		if err != nil {
			return err
		}
		changed = changed || wrote
	}
	// The bundle is rebuilt when a file changed, and when it was not rebuilt
	// after the last change because the power went.
	if !changed && n.Local.Is("certificates", wanted, removeDefaults) {
		return nil
	}
	if len(wanted) == 0 && !changed {
		return n.Local.Done("certificates", nil, wanted, removeDefaults)
	}
	if _, err := n.Execute(ctx, node.Command{Argv: []string{"update-ca-certificates"}, Timeout: 5 * time.Minute}); err != nil {
		return err
	}
	return n.Local.Done("certificates", nil, wanted, removeDefaults)
}

// distrustDefaults deselects every certificate that Debian ships.
func distrustDefaults(n *node.Node) (bool, error) {
	conf, err := n.Read(authorityConf)
	if err != nil {
		return false, err
	}
	lines := strings.Split(string(conf), "\n")
	for i, line := range lines {
		if line != "" && line[0] != '#' && line[0] != '!' {
			lines[i] = "!" + line
		}
	}
	return n.Ensure(authorityConf, 0o644, strings.Join(lines, "\n"))
}
