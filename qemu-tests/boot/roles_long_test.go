//go:build long

package boottest

import (
	"testing"

	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// TestOtherRoles boots the roles that neither TestNode nor TestRoles does.
func TestOtherRoles(t *testing.T) {
	t.Parallel()
	for _, b := range []roleBoot{
		{role: "desktop", on: "UEFI with a vfat seed and network-config version 1", machine: vfatAndVersion1, claims: showsItself},
		{role: "repository", on: "VMware's devices, from the OVA's disk", machine: vmwareLike, claims: hasDHCPAddress, resting: status.Ready},
		// Packages come over TLS or not at all, and the certificate is the cluster's.
		{role: "mirror", on: "VirtualBox's devices, from a raw disk", machine: virtualBoxLike, claims: hasDHCPAddress, resting: status.Failed},
	} {
		b.run(t)
	}
}

// showsItself: somebody at the desktop would see something, and nobody gets in.
func showsItself(t *testing.T, m *labtest.Machine) {
	hasStaticAddress(t, m)
	m.WaitForUnit("desktop-session.service")
	m.WaitUntilSucceeds("pgrep --uid desktop --exact xterm")
	wants(m, "ss --no-header --tcp --listening --numeric sport = :5900", `LISTEN .* 127\.0\.0\.1:5900 .*`)
}
