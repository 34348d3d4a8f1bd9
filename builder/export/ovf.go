package export

import (
	"bytes"
	"encoding/xml"
	"fmt"

	"github.com/slipwayhq/slipway/builder/manifest"
)

// Name spaces of an OVF 1.1 descriptor (DMTF DSP0243 1.1.0, section 6).
const (
	nsOVF  = "http://schemas.dmtf.org/ovf/envelope/1"
	nsRASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
	nsVSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
	nsVMW  = "http://www.vmware.com/schema/ovf"

	streamOptimized = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
)

// CIM_ResourceAllocationSettingData.ResourceType.
const (
	cimProcessor = 3
	cimMemory    = 4
	cimIDE       = 5
	cimSCSI      = 6
	cimEthernet  = 10
	cimCD        = 15
	cimDisk      = 17
)

// The structs below have their fields in the order that the OVF schema demands.
type envelope struct {
	XMLName xml.Name `xml:"Envelope"`
	Xmlns   string   `xml:"xmlns,attr"`
	OVF     string   `xml:"xmlns:ovf,attr"`
	RASD    string   `xml:"xmlns:rasd,attr"`
	VSSD    string   `xml:"xmlns:vssd,attr"`
	VMW     string   `xml:"xmlns:vmw,attr"`

	Files   []ovfFile     `xml:"References>File"`
	Disks   diskSection   `xml:"DiskSection"`
	Nets    netSection    `xml:"NetworkSection"`
	Machine virtualSystem `xml:"VirtualSystem"`
}

type ovfFile struct {
	Href string `xml:"ovf:href,attr"`
	ID   string `xml:"ovf:id,attr"`
	Size string `xml:"ovf:size,attr"`
}

type diskSection struct {
	Info string  `xml:"Info"`
	Disk ovfDisk `xml:"Disk"`
}

type ovfDisk struct {
	Capacity      int64  `xml:"ovf:capacity,attr"`
	Units         string `xml:"ovf:capacityAllocationUnits,attr"`
	ID            string `xml:"ovf:diskId,attr"`
	FileRef       string `xml:"ovf:fileRef,attr"`
	Format        string `xml:"ovf:format,attr"`
	PopulatedSize int64  `xml:"ovf:populatedSize,attr"`
}

type netSection struct {
	Info    string `xml:"Info"`
	Network struct {
		Name        string `xml:"ovf:name,attr"`
		Description string `xml:"Description"`
	} `xml:"Network"`
}

type virtualSystem struct {
	ID         string     `xml:"ovf:id,attr"`
	Info       string     `xml:"Info"`
	Name       string     `xml:"Name"`
	OS         osSection  `xml:"OperatingSystemSection"`
	Hardware   hardware   `xml:"VirtualHardwareSection"`
	Product    product    `xml:"ProductSection"`
	Annotation annotation `xml:"AnnotationSection"`
}

type osSection struct {
	ID          int    `xml:"ovf:id,attr"`
	Type        string `xml:"vmw:osType,attr"`
	Info        string `xml:"Info"`
	Description string `xml:"Description"`
}

type hardware struct {
	Transport string     `xml:"ovf:transport,attr"`
	Info      string     `xml:"Info"`
	System    system     `xml:"System"`
	Items     []item     `xml:"Item"`
	Config    []vmwValue `xml:"vmw:Config"`
	Extra     []vmwValue `xml:"vmw:ExtraConfig"`
}

type system struct {
	ElementName string `xml:"vssd:ElementName"`
	InstanceID  int    `xml:"vssd:InstanceID"`
	Identifier  string `xml:"vssd:VirtualSystemIdentifier"`
	Type        string `xml:"vssd:VirtualSystemType"`
}

type item struct {
	Address         string `xml:"rasd:Address,omitempty"`
	AddressOnParent string `xml:"rasd:AddressOnParent,omitempty"`
	AllocationUnits string `xml:"rasd:AllocationUnits,omitempty"`
	Automatic       string `xml:"rasd:AutomaticAllocation,omitempty"`
	Connection      string `xml:"rasd:Connection,omitempty"`
	Description     string `xml:"rasd:Description,omitempty"`
	ElementName     string `xml:"rasd:ElementName"`
	HostResource    string `xml:"rasd:HostResource,omitempty"`
	InstanceID      int    `xml:"rasd:InstanceID"`
	Parent          int    `xml:"rasd:Parent,omitempty"`
	SubType         string `xml:"rasd:ResourceSubType,omitempty"`
	Type            int    `xml:"rasd:ResourceType"`
	Quantity        int64  `xml:"rasd:VirtualQuantity,omitempty"`
}

type vmwValue struct {
	Required bool   `xml:"ovf:required,attr"`
	Key      string `xml:"vmw:key,attr"`
	Value    string `xml:"vmw:value,attr"`
}

type product struct {
	Info       string     `xml:"Info"`
	Product    string     `xml:"Product"`
	Vendor     string     `xml:"Vendor"`
	Version    string     `xml:"Version"`
	Category   string     `xml:"Category"`
	Properties []property `xml:"Property"`
}

type property struct {
	Key              string `xml:"ovf:key,attr"`
	Type             string `xml:"ovf:type,attr"`
	UserConfigurable bool   `xml:"ovf:userConfigurable,attr"`
	Value            string `xml:"ovf:value,attr"`
	Password         bool   `xml:"ovf:password,attr,omitempty"`
	Label            string `xml:"Label"`
	Description      string `xml:"Description"`
}

type annotation struct {
	Info       string `xml:"Info"`
	Annotation string `xml:"Annotation"`
}

// properties are the keys under which cloud-init's DataSourceOVF and our agent
// look for a node's metadata.
func properties() []property {
	p := func(key, label, description string) property {
		return property{Key: key, Type: "string", UserConfigurable: true, Label: label, Description: description}
	}
	all := []property{
		p("instance-id", "Instance ID", "A name that is unique to this machine. May stay empty."),
		p("hostname", "Host name", "The machine's host name, with or without its domain."),
		p("network-config", "Network configuration", "cloud-init network configuration, version 1 or 2, in base64. If empty, the first network card asks DHCP."),
		p("public-keys", "SSH public keys", "Keys that may log in, one a line."),
		p("password", "Password", "A password for the default user. If empty, nobody can log in with a password."),
		p("meta-data", "Meta-data", "A meta-data document in base64, with what the other fields cannot say of this machine. Most leave it empty."),
		p("user-data", "User data", "A cloud-config document in base64."),
	}
	for i := range all {
		all[i].Password = all[i].Key == "password"
	}
	return all
}

// machine lists the virtual hardware. Each choice is the one that VMware,
// VirtualBox and virt-v2v all know: an LSI Logic controller (VirtualBox has no
// paravirtual one), which is also what the VMDK's descriptor names, and an
// Intel E1000 (VirtualBox has no vmxnet3). The appliance has drivers for the
// paravirtual ones too, so either can be exchanged after the import. The CD drive
// carries the properties where the platform hands them over as an ISO image.
func machine(vm manifest.VM) []item {
	const diskController, cdController = 3, 4
	memory := vm.Memory >> 20
	return []item{
		{ElementName: fmt.Sprintf("%d virtual CPUs", vm.CPUs), Description: "Number of virtual CPUs",
			InstanceID: 1, Type: cimProcessor, AllocationUnits: "hertz * 10^6", Quantity: int64(vm.CPUs)},
		{ElementName: fmt.Sprintf("%d MiB of memory", memory), Description: "Memory size",
			InstanceID: 2, Type: cimMemory, AllocationUnits: "byte * 2^20", Quantity: memory},
		{ElementName: "SCSI controller 0", Description: "SCSI controller",
			InstanceID: diskController, Type: cimSCSI, SubType: "lsilogic", Address: "0"},
		{ElementName: "IDE controller 0", Description: "IDE controller",
			InstanceID: cdController, Type: cimIDE, Address: "0"},
		{ElementName: "Hard disk 1", InstanceID: 5, Type: cimDisk, Parent: diskController,
			AddressOnParent: "0", HostResource: "ovf:/disk/" + diskID},
		{ElementName: "CD/DVD drive 1", InstanceID: 6, Type: cimCD, Parent: cdController,
			AddressOnParent: "0", Automatic: "false", SubType: "vmware.cdrom.remotepassthrough"},
		{ElementName: "Network adapter 1", Description: "E1000 network adapter", InstanceID: 7, Type: cimEthernet,
			AddressOnParent: "7", Automatic: "true", Connection: networkName, SubType: "E1000"},
	}
}

const (
	diskID      = "disk1"
	networkName = "VM Network"
)

// envelopeFor describes the appliance. diskFile and diskSize are the VMDK's.
func envelopeFor(in OVAInput, diskFile, diskSize string, populated int64) envelope {
	e := envelope{
		Xmlns: nsOVF, OVF: nsOVF, RASD: nsRASD, VSSD: nsVSSD, VMW: nsVMW,
		Files: []ovfFile{{Href: diskFile, ID: "file1", Size: diskSize}},
		Disks: diskSection{Info: "Virtual disks", Disk: ovfDisk{
			// Bytes are the unit when none is named, but not every importer knows that.
			Capacity: in.Image.Size(), Units: "byte", ID: diskID, FileRef: "file1", Format: streamOptimized, PopulatedSize: populated,
		}},
		Nets: netSection{Info: "Logical networks"},
		Machine: virtualSystem{
			ID: in.Name, Info: "A virtual machine", Name: in.Name,
			// 96 is Debian, 64 bit (CIM_OperatingSystem.OsType). Debian 10 is the
			// newest that hardware version 15 has a name for.
			OS: osSection{ID: 96, Type: "debian10_64Guest", Info: "The guest operating system", Description: "Debian GNU/Linux, 64 bit"},
			Hardware: hardware{
				Transport: "com.vmware.guestInfo iso",
				Info:      "Virtual hardware",
				System: system{ElementName: "Virtual hardware family", Identifier: in.Name,
					// vSphere 6.7 U2 and later, Workstation 15: old enough for what is still run.
					Type: "vmx-15"},
				Items: machine(in.VM),
				Config: []vmwValue{
					// The disk boots both ways. UEFI is what allows Secure Boot, which the
					// administrator may switch on (shim and GRUB are signed); importers that
					// do not know this key use a BIOS, which works as well.
					{Key: "firmware", Value: "efi"},
					{Key: "bootOptions.efiSecureBootEnabled", Value: "false"},
					{Key: "tools.syncTimeWithHost", Value: "false"}, // the node has NTP
					{Key: "powerOpInfo.powerOffType", Value: "soft"},
					{Key: "powerOpInfo.resetType", Value: "soft"},
				},
				// Without it VMware hides the disk's serial number from the guest.
				Extra: []vmwValue{{Key: "disk.EnableUUID", Value: "TRUE"}},
			},
			Product: product{
				Info: "The appliance", Product: in.Product, Vendor: "slipway", Version: in.Version,
				Category: "First boot", Properties: properties(),
			},
			Annotation: annotation{Info: "Description", Annotation: in.Summary},
		},
	}
	e.Nets.Network.Name = networkName
	e.Nets.Network.Description = "The network of the first network card"
	return e
}

// marshalOVF encodes the descriptor.
func marshalOVF(e envelope) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(xml.Header)
	enc := xml.NewEncoder(&b)
	enc.Indent("", "  ")
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}
