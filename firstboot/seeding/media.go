package seeding

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Format is a way of handing a seed to a node.
type Format string

const (
	NoCloud     Format = "nocloud"
	ConfigDrive Format = "configdrive"
	OVF         Format = "ovf"
)

// Formats are all of them.
func Formats() []Format { return []Format{NoCloud, ConfigDrive, OVF} }

// ParseFormat reads a format's name.
func ParseFormat(name string) (Format, error) {
	for _, f := range Formats() {
		if string(f) == name {
			return f, nil
		}
	}
	return "", fault.New(fault.Usage, "there is no format %q", name).WithMend("use nocloud, configdrive or ovf")
}

// endings are those of a format's files.
func (f Format) endings() []string {
	if f == OVF {
		return []string{".ovf.json", ".ovf.iso"}
	}
	return []string{"." + string(f) + ".iso"}
}

// file is a file of a seed.
type file struct {
	path    string
	content []byte
}

type presence int

const (
	fileSame presence = iota
	fileMissing
	fileDiffers
)

// onDisk compares a file with the one that is there, its mode too.
func (f file) onDisk() presence {
	st, err := os.Lstat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return fileMissing
	}
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm() != 0o600 || st.Size() != int64(len(f.content)) {
		return fileDiffers
	}
	there, err := os.ReadFile(f.path)
	if err != nil || !bytes.Equal(there, f.content) {
		return fileDiffers
	}
	return fileSame
}

// render makes the files of a node's seed, in memory.
func (w *writer) render(n topology.Node, c content) ([]file, error) {
	block, err := w.block(n, c)
	if err != nil {
		return nil, err
	}
	var files seed.Files
	if files.MetaData, err = w.metaData(n, block); err != nil {
		return nil, err
	}
	if files.UserData, err = w.userData(n); err != nil {
		return nil, err
	}
	if files.NetworkConfig, err = networkConfig(w.t, n); err != nil {
		return nil, err
	}
	properties := seed.OVF{InstanceID: w.instanceID(n), Hostname: fqdn(w.t, n), Files: files}
	var out []file
	for _, f := range w.o.Formats {
		for _, ending := range f.endings() {
			var b bytes.Buffer
			switch ending {
			case ".nocloud.iso":
				err = seed.NoCloudISO(&b, files)
			case ".configdrive.iso":
				err = w.configDrive(&b, n, block, files)
			case ".ovf.json":
				err = importOptions(&b, n.Name, properties)
			case ".ovf.iso":
				err = seed.OVFISO(&b, properties)
			}
			if err != nil {
				return nil, err
			}
			out = append(out, file{filepath.Join(w.out, n.Name+ending), b.Bytes()})
		}
	}
	return out, nil
}

// configDrive writes the seed as a config drive. What OpenStack's format has no
// place for stands in its free field meta, as text: the block slipway, and the
// network configuration, since network_data.json can tell a card by its address
// alone and knows no search domains.
func (w *writer) configDrive(to io.Writer, n topology.Node, block any, files seed.Files) error {
	slipway, err := toYAML(block)
	if err != nil {
		return err
	}
	meta, err := json.MarshalIndent(map[string]any{
		"uuid": w.instanceID(n), "name": n.Name, "hostname": fqdn(w.t, n),
		"meta": map[string]string{"slipway": string(slipway), "network-config": string(files.NetworkConfig)},
	}, "", "  ")
	if err != nil {
		return err
	}
	network, err := networkData(w.t, n)
	if err != nil {
		return err
	}
	return seed.ConfigDriveISO(to, seed.ConfigDrive{MetaData: meta, UserData: files.UserData, NetworkData: network})
}

// importOptions writes the seed as options of "govc import.ova -options FILE"
// (govmomi, package ovf/importer).
func importOptions(to io.Writer, name string, o seed.OVF) error {
	type property struct{ Key, Value string }
	options := struct {
		Name               string
		DiskProvisioning   string
		IPAllocationPolicy string
		IPProtocol         string
		PropertyMapping    []property
		PowerOn            bool
		// An ESXi host without vCenter hands over no properties by itself.
		InjectOvfEnv bool
	}{Name: name, DiskProvisioning: "thin", IPAllocationPolicy: "fixedPolicy", IPProtocol: "IPv4", InjectOvfEnv: true}
	for _, p := range o.Properties() {
		options.PropertyMapping = append(options.PropertyMapping, property(p))
	}
	encoder := json.NewEncoder(to)
	encoder.SetIndent("", "  ")
	return encoder.Encode(options)
}
