package datasource

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/datasource/volume"
	"github.com/slipwayhq/slipway/internal/fault"
)

// search is one look at all sources.
type search struct {
	ctx      context.Context
	env      Env
	looked   []string // what was looked at and had nothing
	warnings []string
}

func (s *search) nothing(format string, args ...any) {
	s.looked = append(s.looked, fmt.Sprintf(format, args...))
}

// all returns what the sources hold, best first.
func (s *search) all() ([]*content, error) {
	disks, err := s.disks()
	if err != nil {
		return nil, err
	}
	found := disks[NoCloud]
	named, err := s.named(len(found) > 0)
	if err != nil {
		return nil, err
	}
	found = append(found, named...)
	found = append(found, disks[ConfigDrive]...)
	guest, err := s.vmware()
	if err != nil {
		return nil, err
	}
	found = append(found, guest[VMware]...)
	found = append(found, disks[OVF]...)
	return append(found, guest[OVF]...), nil
}

// disks looks at every block device and returns the seeds by source.
func (s *search) disks() (map[string][]*content, error) {
	devices, err := s.env.Devices()
	if err != nil {
		return nil, fmt.Errorf("listing block devices: %w", err)
	}
	found := map[string][]*content{}
	if len(devices) == 0 {
		s.nothing("no disk or CD is there")
	}
	for _, d := range devices {
		if err := s.ctx.Err(); err != nil {
			return nil, err
		}
		seed, err := s.disk(d)
		if err != nil {
			return nil, err
		}
		if seed != nil {
			found[seed.source] = append(found[seed.source], seed)
		}
	}
	return found, nil
}

// disk reads a device if it is a seed. A device that cannot be read at all is
// noted; one that is a seed and cannot be read is an error.
func (s *search) disk(d Device) (*content, error) {
	medium, err := d.Open()
	if err != nil {
		s.nothing("%s (%v)", d.Path, plain(err))
		return nil, nil
	}
	defer medium.Close()
	v, err := volume.Open(medium)
	switch {
	case errors.Is(err, volume.ErrUnknown):
		s.nothing("%s (no seed)", d.Path)
		return nil, nil
	case err != nil:
		s.nothing("%s (%v)", d.Path, err)
		s.warnings = append(s.warnings, fmt.Sprintf("%s cannot be read: %v", d.Path, err))
		return nil, nil
	}
	var seed *content
	switch {
	case strings.EqualFold(v.Label, "cidata"):
		seed, err = noCloudVolume(d.Path, v)
	case strings.EqualFold(v.Label, "config-2"):
		seed, err = configDrive(d.Path, v)
	case v.Type == "iso9660":
		seed, err = s.ovfVolume(d.Path, v)
	}
	if seed == nil && err == nil {
		s.nothing("%s (%s labelled %q)", d.Path, v.Type, v.Label)
	}
	return seed, err
}

// plain is an error without the path that the message has already.
func plain(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// files reads files of one seed and keeps the first error.
type files struct {
	source, location string
	v                *volume.Volume
	err              error
}

// get returns a file's content, or nil if it is not there.
func (f *files) get(name string) []byte {
	if f.err != nil {
		return nil
	}
	data, err := f.v.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		f.err = fault.New(fault.Input, "%s (%s): %w", f.source, f.location, err).
			WithMend("Make the seed anew and attach it again.")
	}
	return data
}

func noCloudVolume(path string, v *volume.Volume) (*content, error) {
	f := files{source: NoCloud, location: path, v: v}
	s := &content{
		source: NoCloud, location: path, metaName: "meta-data", networkName: "network-config",
		meta: f.get("meta-data"), user: f.get("user-data"), vendor: f.get("vendor-data"), network: f.get("network-config"),
	}
	if f.err != nil {
		return nil, f.err
	}
	if s.meta == nil && s.user == nil {
		names, _ := v.Names("")
		return nil, fault.New(fault.Input, "%s (%s): the label is cidata, but there is neither meta-data nor user-data; it holds %s",
			NoCloud, path, orNothing(names)).WithMend("Put the files meta-data and user-data at the top of the seed; either may be empty.")
	}
	for name, data := range map[string][]byte{"meta-data": s.meta, "user-data": s.user} {
		if data == nil {
			s.warnings = append(s.warnings, fmt.Sprintf("%s (%s): %s is missing; it counts as empty", NoCloud, path, name))
		}
	}
	return s, nil
}

func orNothing(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	sort.Strings(names)
	return strings.Join(names[:min(len(names), 10)], ", ")
}

func configDrive(path string, v *volume.Volume) (*content, error) {
	f := files{source: ConfigDrive, location: path, v: v}
	const dir = "openstack/latest/"
	s := &content{
		source: ConfigDrive, location: path, openStack: true,
		metaName: dir + "meta_data.json", networkName: dir + "network_data.json",
		meta: f.get(dir + "meta_data.json"), user: f.get(dir + "user_data"), network: f.get(dir + "network_data.json"),
	}
	vendor := f.get(dir + "vendor_data.json")
	if f.err != nil {
		return nil, f.err
	}
	if s.meta == nil && s.user == nil {
		return nil, fault.New(fault.Input, "%s (%s): the label is config-2, but there is neither %smeta_data.json nor %suser_data", ConfigDrive, path, dir, dir).
			WithMend("Make a config drive of OpenStack's form, or label the disk cidata and give the files of NoCloud.")
	}
	var err error
	if s.vendor, err = vendorJSON(fmt.Sprintf("%s (%s): %svendor_data.json", ConfigDrive, path, dir), vendor); err != nil {
		return nil, err
	}
	return s, nil
}
