package steps

import (
	"context"
	"crypto/subtle"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/slipwayhq/slipway/firstboot/node"
)

// KeyDir is where the ssh host keys stand: on the state partition, so that an
// upgrade does not change who the node is.
const KeyDir = "/var/lib/slipway/ssh"

// HostKeys makes the ssh host keys at the first boot, unless the metadata
// brings them.
type HostKeys struct{}

func (HostKeys) Name() string { return "host keys" }

func (HostKeys) Apply(ctx context.Context, n *node.Node) error {
	if err := os.MkdirAll(n.Path(KeyDir), 0o755); err != nil {
		return err
	}
	c := &n.User.Config
	// No RSA unless asked for: it takes seconds to make, and every ssh since
	// 2014 reads Ed25519.
	kinds := c.SSHGenKeyTypes
	if len(kinds) == 0 {
		kinds = []string{"ed25519", "ecdsa"}
	}
	for _, kind := range kinds {
		if kind != "ed25519" && kind != "ecdsa" && kind != "rsa" {
			n.Warn("", "ssh_genkeytypes", "no such type of host key; use ed25519, ecdsa or rsa")
			continue
		}
		file := keyFile(kind)
		if given := c.SSHKeys[kind+"_private"]; given != "" {
			if err := giveKey(n, kind, given); err != nil {
				return err
			}
		} else if !usableKey(n, file) {
			if err := makeKey(ctx, n, kind); err != nil {
				return err
			}
		}
		if err := reportKey(n, file); err != nil {
			return err
		}
	}
	names := make([]string, 0, len(c.SSHKeys))
	for name := range c.SSHKeys {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if kind, _, ok := strings.Cut(name, "_"); !ok || !slices.Contains(kinds, kind) || strings.HasSuffix(name, "_certificate") {
			n.Warn("", "ssh_keys."+name, "not used: the node has host keys of the types %s, and no certificates for them", strings.Join(kinds, ", "))
		}
	}
	return nil
}

func keyFile(kind string) string { return KeyDir + "/ssh_host_" + kind + "_key" }

// usableKey tells a whole key from one whose making was cut short.
func usableKey(n *node.Node, file string) bool {
	private, err := os.ReadFile(n.Path(file))
	if err != nil {
		return false
	}
	signer, err := ssh.ParsePrivateKey(private)
	if err != nil {
		return false
	}
	public, err := os.ReadFile(n.Path(file + ".pub"))
	if err != nil {
		return false
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(public)
	return err == nil && subtle.ConstantTimeCompare(key.Marshal(), signer.PublicKey().Marshal()) == 1
}

// makeKey makes a key beside its place and renames it, private part last, so
// that a power cut leaves no half of one.
func makeKey(ctx context.Context, n *node.Node, kind string) error {
	file := keyFile(kind)
	fresh := file + ".new"
	for _, leftover := range []string{fresh, fresh + ".pub"} {
		if _, err := n.Remove(leftover); err != nil {
			return err
		}
	}
	if _, err := n.Command(ctx, "ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", fresh); err != nil {
		return err
	}
	for _, suffix := range []string{".pub", ""} {
		if err := os.Rename(n.Path(fresh+suffix), n.Path(file+suffix)); err != nil {
			return err
		}
	}
	n.Changed("made an ssh host key, %s", kind)
	return nil
}

// giveKey puts a key in place that came with the metadata.
func giveKey(n *node.Node, kind, private string) error {
	private = strings.TrimSpace(private) + "\n"
	signer, err := ssh.ParsePrivateKey([]byte(private))
	if err != nil {
		return fmt.Errorf("ssh_keys.%s_private cannot be read as a private key without a passphrase", kind)
	}
	if !strings.Contains(signer.PublicKey().Type(), kind) {
		return fmt.Errorf("ssh_keys.%s_private is a key of type %s", kind, signer.PublicKey().Type())
	}
	file := keyFile(kind)
	if _, err := n.Write(file+".pub", 0o644, ssh.MarshalAuthorizedKey(signer.PublicKey())); err != nil {
		return err
	}
	changed, err := n.Write(file, 0o600, []byte(private))
	if changed {
		n.Changed("took over an ssh host key, %s", kind)
	}
	return err
}

func reportKey(n *node.Node, file string) error {
	if err := os.Chmod(n.Path(file), 0o600); err != nil {
		return err
	}
	public, err := os.ReadFile(n.Path(file + ".pub"))
	if err != nil {
		return err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(public)
	if err != nil {
		return fmt.Errorf("%s.pub: %w", file, err)
	}
	n.Report.HostKey(key.Type(), ssh.FingerprintSHA256(key))
	return nil
}
