package boottest

import (
	"archive/tar"
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// TestRoles boots the roles that TestNode does not, each on another machine
// and with another datasource, so that five boots cover them all. The rest, which
// TestOtherRoles boots, would make it too long.
func TestRoles(t *testing.T) {
	t.Parallel()
	for _, b := range []roleBoot{
		{role: "balancer", on: "UEFI with a vfat seed and network-config version 1", machine: vfatAndVersion1, claims: hasStaticAddress},
		{role: "db-master", on: "Secure Boot with a config drive", machine: secureBootAndConfigDrive, claims: secureBootIsEnforced},
		{role: "db-replica", on: "BIOS with a seed over HTTP that DMI names", machine: dmiAndHTTP, claims: hasDHCPAddress},
		{role: "broker", on: "VMware's devices, from the OVA's disk", machine: vmwareLike, claims: hasDHCPAddress},
		{role: "dispatcher", on: "VirtualBox's devices, from a raw disk", machine: virtualBoxLike, claims: hasDHCPAddress},
	} {
		b.run(t)
	}
}

// roleBoot is a node of a role that stands alone.
type roleBoot struct {
	role    string
	on      string
	machine func(t *testing.T, n named) lab.VM
	claims  func(t *testing.T, m *labtest.Machine)
	// resting is what a node is whose services start in a cluster only; "" of the others.
	resting status.State
}

func (b roleBoot) run(t *testing.T) {
	t.Run(b.role+" boots on "+b.on, func(t *testing.T) {
		t.Parallel()
		n := named{name: b.role + "-1", key: newKey(t), image: func(format string) string { return images.Path(t, b.role, format) }}
		vm := b.machine(t, n)
		vm.Name = n.name
		m := labtest.Start(t, vm)
		report := waitUntil(m, cmp.Or(b.resting, status.Ready))
		if report.Role != b.role || report.Hostname != n.name {
			t.Errorf("the node is %q, a %q; want %q, a %q", report.Hostname, report.Role, n.name, b.role)
		}
		if b.resting == "" {
			servicesRun(m)
		} else {
			servicesRest(m)
		}
		noPasswords(m)
		onlyRolePortsOpen(m)
		wants(m, "sudo --user slipway -- sudo -n id --user", "0")
		wants(m, "cat /home/slipway/.ssh/authorized_keys | cut -d ' ' -f 2", strings.NewReplacer("+", `\+`).Replace(strings.Fields(n.key.authorized)[1]))
		b.claims(t, m)
	})
}

// named is what a datasource has to tell a node.
type named struct {
	name  string
	key   sshKey
	image func(format string) string
}

func (n named) metaData() []byte {
	return fmt.Appendf(nil, "instance-id: %s\nlocal-hostname: %s\n", n.name, n.name)
}

func (n named) userData() []byte {
	return fmt.Appendf(nil, "#cloud-config\nssh_authorized_keys: [%q]\n", n.key.authorized)
}

// userAddr is on QEMU's user network, but not what its DHCP gives.
const userAddr = "10.0.2.50"

func vfatAndVersion1(t *testing.T, n named) lab.VM {
	return lab.VM{
		Image: n.image("qcow2"), Firmware: lab.UEFI, WideAtomics: true, // for HAProxy
		Seeds: []string{noCloudVFAT(t, seed.Files{
			MetaData: n.metaData(), UserData: n.userData(),
			NetworkConfig: []byte(`version: 1
config:
  - type: physical
    name: lan0
    mac_address: "` + nodeMAC + `"
    subnets:
      - {type: static, address: ` + userAddr + `, netmask: 255.255.255.0, gateway: 10.0.2.2, dns_nameservers: [10.0.2.3]}
`),
		})},
		NICs: []lab.NIC{{MAC: nodeMAC}},
	}
}

func hasStaticAddress(t *testing.T, m *labtest.Machine) {
	hasOnlyAddress(m, userAddr+"/24")
	wants(m, "cat /sys/class/net/lan0/address", nodeMAC)
	wants(m, "resolvectl dns lan0", "10.0.2.3")
	m.Succeed("test -d /sys/firmware/efi")
}

func secureBootAndConfigDrive(t *testing.T, n named) lab.VM {
	return lab.VM{
		Image: n.image("qcow2"), Firmware: lab.SecureBoot,
		Seeds: []string{configDrive(t, seed.ConfigDrive{
			MetaData: fmt.Appendf(nil, `{"uuid": %q, "hostname": %q, "public_keys": {"admin": %q}}`, n.name, n.name, n.key.authorized),
		})},
	}
}

// secureBootIsEnforced asks the firmware and the kernel: the variable SecureBoot
// (UEFI 2.10, 3.3; four bytes of attributes, then the value) and the lockdown
// that Debian's kernel goes into with it.
func secureBootIsEnforced(t *testing.T, m *labtest.Machine) {
	variable := m.ReadFile("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
	if len(variable) != 5 || variable[4] != 1 {
		t.Errorf("the firmware's variable SecureBoot is %q", variable)
	}
	if mode := m.ReadFile("/sys/kernel/security/lockdown"); !strings.Contains(mode, "[integrity]") && !strings.Contains(mode, "[confidentiality]") {
		t.Errorf("the kernel is not locked down: %s", mode)
	}
}

func dmiAndHTTP(t *testing.T, n named) lab.VM {
	url := serveSeed(t, seed.Files{MetaData: n.metaData(), UserData: n.userData()})
	return lab.VM{
		Image: n.image("qcow2"), DMISerial: "ds=nocloud;s=" + url, NICs: []lab.NIC{{Open: true}},
	}
}

func hasDHCPAddress(t *testing.T, m *labtest.Machine) { hasOnlyAddress(m, "10.0.2.15/24") }

func vmwareLike(t *testing.T, n named) lab.VM {
	return lab.VM{
		Image: diskOfOVA(t, n.image("ova")), Format: "vmdk", // BIOS: Debian's OVMF has no driver for PVSCSI
		DiskBus: lab.PVSCSI, NICs: []lab.NIC{{Model: "vmxnet3"}},
		Seeds: []string{noCloudISO(t, seed.Files{MetaData: n.metaData(), UserData: n.userData()})},
	}
}

func virtualBoxLike(t *testing.T, n named) lab.VM {
	return lab.VM{
		Image: n.image("raw"), Format: "raw",
		DiskBus: lab.SATA, NICs: []lab.NIC{{Model: "e1000"}},
		Seeds: []string{noCloudISO(t, seed.Files{MetaData: n.metaData(), UserData: n.userData()})},
	}
}

// diskOfOVA takes the disk out of an appliance, as an importer does.
func diskOfOVA(t *testing.T, ova string) string {
	t.Helper()
	f, err := os.Open(ova)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	archive := tar.NewReader(f)
	for {
		entry, err := archive.Next()
		if err != nil {
			t.Fatalf("%s holds no disk: %v", ova, err)
		}
		if filepath.Ext(entry.Name) != ".vmdk" {
			continue
		}
		return medium(t, "disk.vmdk", func(w io.Writer) error {
			_, err := io.Copy(w, archive)
			return err
		})
	}
}
