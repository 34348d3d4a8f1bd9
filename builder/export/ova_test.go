package export

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/ovf"
	"github.com/vmware/govmomi/ovf/importer"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/slipwayhq/slipway/builder/disk"
	"github.com/slipwayhq/slipway/internal/fault"
)

// unpack unpacks the sample's OVA with tar.
func unpack(t testing.TB, in OVAInput) (dir, ova string) {
	t.Helper()
	ova, dir = ovaFile(t, in), t.TempDir()
	run(t, dir, "tar", "xf", ova)
	return dir, ova
}

func TestAnOVAIsATarInTheRightOrder(t *testing.T) {
	in := ovaInput(sample(t))
	dir, ova := unpack(t, in)
	want := in.Name + ".ovf\n" + in.Name + ".mf\n" + in.Name + "-disk1.vmdk\n"
	if got := run(t, "", "tar", "tf", ova); got != want {
		t.Errorf("tar lists\n%swant\n%s", got, want)
	}
	mf, err := os.ReadFile(filepath.Join(dir, in.Name+".mf"))
	if err != nil {
		t.Fatal(err)
	}
	wantMF := fmt.Sprintf("SHA256(%s.ovf)= %s\nSHA256(%s-disk1.vmdk)= %s\n",
		in.Name, fileSum(t, filepath.Join(dir, in.Name+".ovf")), in.Name, fileSum(t, filepath.Join(dir, in.Name+"-disk1.vmdk")))
	if string(mf) != wantMF {
		t.Errorf("the manifest is\n%swant\n%s", mf, wantMF)
	}
	run(t, "", "qemu-img", "check", filepath.Join(dir, in.Name+"-disk1.vmdk"))
	run(t, "", "qemu-img", "compare", "-f", "raw", rawFile(t, in.Image), filepath.Join(dir, in.Name+"-disk1.vmdk"))
}

func TestMembersPointIntoTheOVA(t *testing.T) {
	in := ovaInput(sample(t))
	dir, ova := unpack(t, in)
	f, err := os.Open(ova)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, _ := f.Stat()
	members, err := Members(f, st.Size())
	if err != nil || len(members) != 3 {
		t.Fatalf("%v, %v", members, err)
	}
	for _, m := range members {
		got, err := io.ReadAll(io.NewSectionReader(f, m.Offset, m.Size))
		want, err2 := os.ReadFile(filepath.Join(dir, m.Name))
		if err != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d (%v, %v)", m.Name, len(got), len(want), err, err2)
		}
	}
	r, size, err := OpenVMDK(io.NewSectionReader(f, members[2].Offset, members[2].Size), members[2].Size)
	if err != nil {
		t.Fatal(err)
	}
	sameContent(t, in.Image, r, size)
}

// The descriptor's elements must stand in the order of DSP8023 1.1.1, the OVF
// schema. The schema itself may not be copied here; with SLIPWAY_OVF_SCHEMA
// naming a copy of dsp8023_1.1.1.xsd, xmllint validates against it.
func TestTheDescriptorIsValid(t *testing.T) {
	in := ovaInput(sample(t))
	dir, _ := unpack(t, in)
	p := filepath.Join(dir, in.Name+".ovf")
	run(t, "", "xmllint", "--noout", "--nonet", p)
	if schema := os.Getenv("SLIPWAY_OVF_SCHEMA"); schema != "" {
		run(t, "", "xmllint", "--noout", "--nonet", "--schema", schema, p)
	}
	order := map[string]string{
		"Envelope":               "References DiskSection NetworkSection VirtualSystem",
		"References":             "File",
		"DiskSection":            "Info Disk",
		"NetworkSection":         "Info Network",
		"Network":                "Description",
		"VirtualSystem":          "Info Name OperatingSystemSection VirtualHardwareSection ProductSection AnnotationSection",
		"OperatingSystemSection": "Info Description",
		"VirtualHardwareSection": "Info System Item Config ExtraConfig",
		"System": "AutomaticRecoveryAction AutomaticShutdownAction AutomaticStartupAction AutomaticStartupActionDelay " +
			"AutomaticStartupActionSequenceNumber Caption ConfigurationDataRoot ConfigurationFile ConfigurationID CreationTime " +
			"Description ElementName InstanceID LogDataRoot Notes RecoveryFile SnapshotDataRoot SuspendDataRoot SwapFileDataRoot " +
			"VirtualSystemIdentifier VirtualSystemType",
		"Item": "Address AddressOnParent AllocationUnits AutomaticAllocation AutomaticDeallocation Caption Connection " +
			"ConsumerVisibility Description ElementName HostResource InstanceID Limit MappingBehavior OtherResourceType Parent " +
			"PoolID Reservation ResourceSubType ResourceType VirtualQuantity VirtualQuantityUnits Weight",
		"ProductSection":    "Info Product Vendor Version FullVersion ProductUrl VendorUrl AppUrl Icon Category Property",
		"Property":          "Label Description Value",
		"AnnotationSection": "Info Annotation",
	}
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	type open struct {
		name string
		at   int // position in its order of the last child
	}
	var stack []open
	for dec := xml.NewDecoder(bytes.NewReader(b)); ; {
		token, err := dec.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if len(stack) > 0 {
				up := &stack[len(stack)-1]
				at := -1
				for i, name := range strings.Fields(order[up.name]) {
					if name == token.Name.Local {
						at = i
					}
				}
				if at < up.at {
					t.Errorf("%s must not stand there in %s", token.Name.Local, up.name)
				}
				up.at = at
			}
			stack = append(stack, open{token.Name.Local, 0})
		case xml.EndElement:
			stack = stack[:len(stack)-1]
		}
	}
}

func TestGovmomiReadsTheDescriptor(t *testing.T) {
	in := ovaInput(sample(t))
	dir, _ := unpack(t, in)
	f, err := os.Open(filepath.Join(dir, in.Name+".ovf"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e, err := ovf.Unmarshal(f)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(dir, in.Name+"-disk1.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	if e.References[0].Size != uint(st.Size()) {
		t.Errorf("ovf:size is %d, the disk has %d bytes", e.References[0].Size, st.Size())
	}
	var keys []string
	for _, p := range e.VirtualSystem.Product[0].Property {
		if p.UserConfigurable == nil || !*p.UserConfigurable || p.Default != nil && *p.Default != "" {
			t.Errorf("property %s must be configurable and have no default", p.Key)
		}
		keys = append(keys, p.Key)
	}
	if got := strings.Join(keys, " "); got != "instance-id hostname network-config public-keys password meta-data user-data" {
		t.Errorf("properties: %s", got)
	}
	if a := e.VirtualSystem.Annotation.Annotation; a != in.Summary {
		t.Errorf("annotation %q, want %q", a, in.Summary)
	}
	if tr := e.VirtualSystem.VirtualHardware[0].Transport; tr == nil || *tr != "com.vmware.guestInfo iso" {
		t.Errorf("transport %v", tr)
	}
}

// vCenter's simulator imports the OVA, and the machine has what was asked for.
func TestVCenterImportsTheOVA(t *testing.T) {
	in := ovaInput(sample(t))
	ova := ovaFile(t, in)
	err := simulator.VPX().Run(func(ctx context.Context, c *vim25.Client) error {
		finder := find.NewFinder(c)
		dc, err := finder.DefaultDatacenter(ctx)
		if err != nil {
			return err
		}
		finder.SetDatacenter(dc)
		folders, err := dc.Folders(ctx)
		if err != nil {
			return err
		}
		store, err := finder.DefaultDatastore(ctx)
		if err != nil {
			return err
		}
		host, err := finder.HostSystem(ctx, "DC0_H0")
		if err != nil {
			return err
		}
		pool, err := host.ResourcePool(ctx)
		if err != nil {
			return err
		}
		imp := &importer.Importer{
			Log:    func(s string) (int, error) { return len(s), nil },
			Client: c, Finder: finder, Datacenter: dc, Datastore: store, ResourcePool: pool, Host: host, Folder: folders.VmFolder,
			Archive: &importer.TapeArchive{Path: ova, Opener: importer.Opener{Client: c}},
		}
		if err := imp.ReadManifest(in.Name + ".ovf"); err != nil {
			return err
		}
		if len(imp.Manifest) != 2 {
			t.Errorf("the manifest is read as %v", imp.Manifest)
		}
		ref, err := imp.Import(ctx, "*.ovf", importer.Options{})
		if err != nil {
			return err
		}
		vm := object.NewVirtualMachine(c, *ref)
		devices, err := vm.Device(ctx)
		if err != nil {
			return err
		}
		if n := len(devices.SelectByType((*types.VirtualDisk)(nil))); n != 1 {
			t.Errorf("%d disks", n)
		}
		for _, d := range devices.SelectByType((*types.VirtualDisk)(nil)) {
			if got := d.(*types.VirtualDisk).CapacityInKB * 1024; got != in.Image.Size() {
				t.Errorf("the disk has %d bytes, want %d", got, in.Image.Size())
			}
		}
		if n := len(devices.SelectByType((*types.VirtualEthernetCard)(nil))); n != 1 {
			t.Errorf("%d network cards", n)
		}
		if n := len(devices.SelectByType((*types.VirtualLsiLogicController)(nil))); n != 1 {
			t.Errorf("%d LSI Logic controllers", n)
		}
		name, err := vm.ObjectName(ctx)
		if err != nil || name != in.Name {
			t.Errorf("the machine's name is %q (%v)", name, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// virt-v2v reads the descriptor and plans the conversion. It needs an operating
// system on the disk to go further, so this asks only for what the OVA says.
func TestVirtV2VReadsTheOVA(t *testing.T) {
	in := ovaInput(sample(t))
	p, err := exec.LookPath("virt-v2v")
	if err != nil {
		t.Fatal("virt-v2v is missing: apt-get install virt-v2v")
	}
	cmd := exec.Command(p, "-i", "ova", ovaFile(t, in), "-o", "null", "--print-source")
	cmd.Env = append(os.Environ(), "LIBGUESTFS_BACKEND=direct")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("virt-v2v: %v\n%s", err, out)
	}
	for _, want := range []string{"name: " + in.Name, "memory: 4294967296", "nr vCPUs: 2", "firmware: uefi", "0 [scsi]", "CD-ROM [ide]", `"VM Network" [e1000]`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("virt-v2v does not say %q:\n%s", want, out)
		}
	}
}

func TestOVARefuses(t *testing.T) {
	im, err := disk.NewImage(1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "a/b", "../x", "a b", strings.Repeat("n", 81), "-x"} {
		in := ovaInput(im)
		in.Name = name
		if err := OVA(context.Background(), &failingWriter{1 << 30}, in); fault.Of(err) != fault.Input {
			t.Errorf("the name %q gives %v", name, err)
		}
	}
}

func FuzzMembers(f *testing.F) {
	im, err := disk.NewImage(1<<20, nil)
	if err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(ovaFile(f, ovaInput(im)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		members, err := Members(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, m := range members {
			if m.Offset < 0 || m.Size < 0 || m.Offset+m.Size > int64(len(b)) {
				t.Errorf("member %+v leaves the archive of %d bytes", m, len(b))
			}
		}
	})
}
