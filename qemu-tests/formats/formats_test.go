package formatstest

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/ovf/importer"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/slipwayhq/slipway/qemu-tests/images"
)

func TestMain(m *testing.M) { os.Exit(images.Main(m)) }

// TestOutsideJudges shows each role's images to all judges. One role at a time,
// since most of them are bound by the disk.
func TestOutsideJudges(t *testing.T) {
	for _, role := range images.Roles() {
		t.Run(role, func(t *testing.T) {
			raw, qcow2, vmdk, ova := images.Path(t, role, "raw"), images.Path(t, role, "qcow2"), images.Path(t, role, "vmdk"), images.Path(t, role, "ova")
			files := unpackOVA(t, ova)
			t.Run("qemu-img check finds no fault", func(t *testing.T) { // raw has nothing to check
				tool(t, "qemu-utils", "qemu-img", "check", "-f", "qcow2", qcow2)
				tool(t, "qemu-utils", "qemu-img", "check", "-f", "vmdk", vmdk)
				tool(t, "qemu-utils", "qemu-img", "check", "-f", "vmdk", files[".vmdk"])
			})
			t.Run("every format holds the same disk", func(t *testing.T) {
				tool(t, "qemu-utils", "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, qcow2)
				tool(t, "qemu-utils", "qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, vmdk)
				tool(t, "qemu-utils", "qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, files[".vmdk"])
			})
			t.Run("sgdisk finds the partition table sound", func(t *testing.T) {
				if out := tool(t, "gdisk", "sgdisk", "--verify", raw); !strings.Contains(out, "No problems found") {
					t.Error(out)
				}
			})
			t.Run("fsck.vfat finds the boot partition sound", func(t *testing.T) {
				esp := bootPartition(t, raw)
				tool(t, "dosfstools", "fsck.vfat", "-n", esp)
				for _, file := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grubx64.efi", "EFI/debian/grub.cfg", "grub/grub.cfg", "grub/grubenv"} {
					tool(t, "mtools", "mdir", "-b", "-i", esp, "::/"+file)
				}
			})
			t.Run("xmllint reads the OVF", func(t *testing.T) {
				tool(t, "libxml2-utils", "xmllint", "--noout", "--nonet", files[".ovf"])
			})
			t.Run("virt-v2v reads the OVA", func(t *testing.T) {
				out := tool(t, "virt-v2v", "virt-v2v", "-i", "ova", ova, "--print-source")
				for _, want := range []string{"source name: " + role, "nr vCPUs: 2", "memory: " + fmt.Sprint(4<<30)} {
					if !strings.Contains(out, want) {
						t.Errorf("virt-v2v does not read %q:\n%s", want, out)
					}
				}
			})
			t.Run("vCenter imports the OVA", func(t *testing.T) { vCenterImports(t, ova) })
		})
	}
}

// vCenterImports imports an OVA into VMware's own simulator and looks at the
// machine that comes of it.
func vCenterImports(t *testing.T, ova string) {
	t.Helper()
	err := simulator.VPX().Run(func(ctx context.Context, c *vim25.Client) error {
		vm, err := importOVA(ctx, c, ova)
		if err != nil {
			return err
		}
		hw := vm.Config.Hardware
		if hw.NumCPU != 2 || hw.MemoryMB != 4096 {
			return fmt.Errorf("the machine has %d processors and %d MiB, want 2 and 4096", hw.NumCPU, hw.MemoryMB)
		}
		if cards := object.VirtualDeviceList(hw.Device).SelectByType((*types.VirtualEthernetCard)(nil)); len(cards) != 1 {
			return fmt.Errorf("the machine has %d network cards, want 1", len(cards))
		}
		disks := object.VirtualDeviceList(hw.Device).SelectByType((*types.VirtualDisk)(nil))
		if len(disks) != 1 {
			return fmt.Errorf("the machine has %d disks, want 1", len(disks))
		}
		if size := disks[0].(*types.VirtualDisk).CapacityInKB; size != 30<<20 {
			return fmt.Errorf("the disk has %d KiB, want 30 GiB", size)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// importOVA does what `govc import.ova` does. The manifest must be readable, but
// the simulator cannot check it, since it only knows SHA-1, which vSphere 8
// refuses; virt-v2v checks it.
func importOVA(ctx context.Context, c *vim25.Client, ova string) (*mo.VirtualMachine, error) {
	finder := find.NewFinder(c)
	dc, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return nil, err
	}
	finder.SetDatacenter(dc)
	store, err := finder.DefaultDatastore(ctx)
	if err != nil {
		return nil, err
	}
	pool, err := finder.ResourcePool(ctx, "DC0_C0/Resources")
	if err != nil {
		return nil, err
	}
	folders, err := dc.Folders(ctx)
	if err != nil {
		return nil, err
	}
	im := importer.Importer{
		Log:    func(string) (int, error) { return 0, nil },
		Client: c, Finder: finder, Datacenter: dc, Datastore: store, ResourcePool: pool, Folder: folders.VmFolder,
		Archive: &importer.TapeArchive{Path: ova, Opener: importer.Opener{Client: c}},
	}
	if err := im.ReadManifest("*.ovf"); err != nil {
		return nil, err
	}
	for file, sum := range im.Manifest {
		if sum.Algorithm != "SHA256" {
			return nil, fmt.Errorf("the manifest's hash of %s is %s, which vSphere 8 refuses", file, sum.Algorithm)
		}
	}
	if len(im.Manifest) != 2 {
		return nil, fmt.Errorf("the manifest names %d files, want the OVF and the disk", len(im.Manifest))
	}
	ref, err := im.Import(ctx, "*.ovf", importer.Options{})
	if err != nil {
		return nil, fmt.Errorf("importing %s: %w", filepath.Base(ova), err)
	}
	var vm mo.VirtualMachine
	return &vm, object.NewVirtualMachine(c, *ref).Properties(ctx, *ref, []string{"config"}, &vm)
}

// tool runs a judge that the named Debian package brings and returns its words;
// the test fails if the judge does.
func tool(t *testing.T, pkg, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath(filepath.Join("/usr/sbin", name)) // not in every user's PATH
	}
	if err != nil {
		t.Fatalf("%s is missing; run: apt-get install --no-install-recommends %s", name, pkg)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// unpackOVA takes an appliance apart and returns its files by extension.
func unpackOVA(t *testing.T, ova string) map[string]string {
	t.Helper()
	f, err := os.Open(ova)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir, files := t.TempDir(), map[string]string{}
	archive := tar.NewReader(f)
	for {
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatalf("%s: %v", ova, err)
		}
		path := filepath.Join(dir, filepath.Base(entry.Name))
		out, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out, archive); err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
		files[filepath.Ext(path)] = path
	}
}

// bootPartition copies the EFI system partition out of a raw disk, with holes
// where it is empty; sfdisk says where it is.
func bootPartition(t *testing.T, raw string) string {
	t.Helper()
	var table struct {
		PartitionTable struct {
			Partitions []struct {
				Start, Size int64 // in sectors
				Type        string
			}
		}
	}
	if err := json.Unmarshal([]byte(tool(t, "fdisk", "sfdisk", "--json", raw)), &table); err != nil {
		t.Fatal(err)
	}
	const (
		espType = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B" // UEFI 2.10, table 5.7
		sector  = 512
	)
	for _, p := range table.PartitionTable.Partitions {
		if p.Type == espType {
			esp := filepath.Join(t.TempDir(), "esp.img")
			part := fmt.Sprintf("driver=raw,offset=%d,size=%d,file.driver=file,file.filename=%s", p.Start*sector, p.Size*sector, raw)
			tool(t, "qemu-utils", "qemu-img", "convert", "--image-opts", part, "-O", "raw", esp)
			return esp
		}
	}
	t.Fatalf("%s has no EFI system partition", raw)
	return ""
}
