// Package seed writes the media that hand metadata to a node: NoCloud as an
// ISO or a FAT image, OpenStack's config drive, the OVF environment. The
// package datasource reads them back; so does cloud-init.
//
// The same files give the same bytes, always: dates are fixed, and owners and
// modes are those of no particular machine. So a seed that did not change is
// seen not to have changed.
//
// A seed may hold secrets. They are in memory and, while an ISO is made, in a
// directory of mode 0700 that is removed again.
package seed

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"time"
)

// Files is the content of a seed. Nil files are left out, except that NoCloud
// always has meta-data and user-data, which its readers ask for.
type Files struct {
	MetaData      []byte
	UserData      []byte
	NetworkConfig []byte
	VendorData    []byte
}

// epoch is the date of everything in a seed: the first that FAT can express.
// What is in a seed says nothing by its date.
func epoch() time.Time { return time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC) }

// file is a file of a medium.
type file struct {
	path    string
	content []byte
}

func (f Files) noCloud() []file {
	out := []file{{"meta-data", f.MetaData}, {"user-data", f.UserData}}
	if f.NetworkConfig != nil {
		out = append(out, file{"network-config", f.NetworkConfig})
	}
	if f.VendorData != nil {
		out = append(out, file{"vendor-data", f.VendorData})
	}
	return out
}

// NoCloudISO writes a CD labelled cidata.
func NoCloudISO(w io.Writer, f Files) error { return writeISO(w, "cidata", f.noCloud()) }

// NoCloudVFAT writes a disk without partitions labelled CIDATA.
func NoCloudVFAT(w io.Writer, f Files) error { return writeFAT(w, "CIDATA", f.noCloud()) }

// ConfigDrive is the content of a config drive.
type ConfigDrive struct {
	MetaData    []byte // meta_data.json
	UserData    []byte
	NetworkData []byte // network_data.json
	VendorData  []byte // vendor_data.json
}

// ConfigDriveISO writes a CD labelled config-2.
func ConfigDriveISO(w io.Writer, c ConfigDrive) error {
	if c.MetaData == nil {
		return errors.New("a config drive needs meta_data.json")
	}
	var files []file
	for _, f := range []file{{"meta_data.json", c.MetaData}, {"user_data", c.UserData}, {"network_data.json", c.NetworkData}, {"vendor_data.json", c.VendorData}} {
		if f.content != nil {
			files = append(files, file{"openstack/latest/" + f.path, f.content})
		}
	}
	return writeISO(w, "config-2", files)
}

// OVF is what an OVF environment can say.
type OVF struct {
	InstanceID string
	Hostname   string
	PublicKeys string // one to a line
	Password   string
	Files      Files // MetaData as a whole wins over InstanceID and is where the block slipway: rides
}

// Property is a property of an OVF environment.
type Property struct{ Key, Value string }

// Properties returns the properties that are set, files as base64.
func (o OVF) Properties() []Property {
	var out []Property
	add := func(key, value string) {
		if value != "" {
			out = append(out, Property{key, value})
		}
	}
	add("instance-id", o.InstanceID)
	add("hostname", o.Hostname)
	add("public-keys", o.PublicKeys)
	add("password", o.Password)
	add("meta-data", base64.StdEncoding.EncodeToString(o.Files.MetaData))
	add("user-data", base64.StdEncoding.EncodeToString(o.Files.UserData))
	add("network-config", base64.StdEncoding.EncodeToString(o.Files.NetworkConfig))
	add("vendor-data", base64.StdEncoding.EncodeToString(o.Files.VendorData))
	return out
}

// OVFEnv writes the OVF environment document (DSP0243, section 11).
func OVFEnv(w io.Writer, o OVF) error {
	var b bytes.Buffer
	escape := func(s string) string {
		var e bytes.Buffer
		xml.EscapeText(&e, []byte(s)) // a bytes.Buffer never fails
		return e.String()
	}
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>
<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1"
             xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
             xmlns:oe="http://schemas.dmtf.org/ovf/environment/1"
             oe:id="">
  <PropertySection>
`)
	for _, p := range o.Properties() {
		fmt.Fprintf(&b, "    <Property oe:key=\"%s\" oe:value=\"%s\"/>\n", escape(p.Key), escape(p.Value))
	}
	b.WriteString("  </PropertySection>\n</Environment>\n")
	_, err := w.Write(b.Bytes())
	return err
}

// OVFISO writes a CD with the OVF environment, as vSphere attaches it with the
// transport iso.
func OVFISO(w io.Writer, o OVF) error {
	var b bytes.Buffer
	if err := OVFEnv(&b, o); err != nil {
		return err
	}
	return writeISO(w, "OVF ENV", []file{{"ovf-env.xml", b.Bytes()}})
}
