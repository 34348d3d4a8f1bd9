package datasource

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/datasource/volume"
	"github.com/slipwayhq/slipway/internal/fault"
)

// The namespaces of OVF environments, versions 1 and 2 (DSP8027).
const (
	ovfEnv1 = "http://schemas.dmtf.org/ovf/environment/1"
	ovfEnv2 = "http://schemas.dmtf.org/ovf/environment/2"
)

// property is one property of an OVF environment.
type property struct{ key, value string }

// parseOVF reads the properties of this machine out of an OVF environment.
func parseOVF(file string, data []byte) ([]property, error) {
	dec := xml.NewDecoder(bytes.NewReader(data))
	wrong := func(format string, args ...any) error {
		line, _ := dec.InputPos()
		return fault.New(fault.Input, "%s:%d: %s", file, line, fmt.Sprintf(format, args...)).
			WithMend("Give the properties again where the appliance was deployed.")
	}
	var props []property
	var path []string
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, wrong("not valid XML: %v", err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if len(path) == 0 && (t.Name.Local != "Environment" || t.Name.Space != ovfEnv1 && t.Name.Space != ovfEnv2) {
				return nil, wrong("not an OVF environment but <%s xmlns=%q>", t.Name.Local, t.Name.Space)
			}
			path = append(path, t.Name.Local)
			// Entity sections hold the properties of the vApp's other machines.
			if strings.Join(path, "/") == "Environment/PropertySection/Property" {
				var p property
				for _, a := range t.Attr {
					switch a.Name.Local {
					case "key":
						p.key = a.Value
					case "value":
						p.value = a.Value
					}
				}
				props = append(props, p)
			}
		case xml.EndElement:
			path = path[:len(path)-1]
		}
	}
	if props == nil && dec.InputOffset() == 0 {
		return nil, wrong("empty")
	}
	return props, nil
}

// ovfSeed turns an OVF environment into a seed; nil if it says nothing.
func ovfSeed(location, name string, data []byte) (*content, error) {
	out := &content{source: OVF, location: location, metaName: "property meta-data", networkName: "property network-config"}
	props, err := parseOVF(out.file(name), data)
	if err != nil {
		return nil, err
	}
	some := false
	for _, p := range props {
		value := strings.TrimSpace(p.value)
		var to *[]byte
		switch p.key {
		case "instance-id":
			out.instanceID = value
			continue // a constant default in every OVA: no sign that somebody gave anything
		case "hostname":
			out.hostname = value
		case "public-keys":
			out.keys = value
		case "password":
			out.password = p.value
		case "meta-data":
			to = &out.meta
		case "user-data":
			to = &out.user
		case "network-config":
			to = &out.network
		case "vendor-data":
			to = &out.vendor
		default:
			if value != "" {
				out.warnings = append(out.warnings, fmt.Sprintf("%s (%s): property %q is not known here and has no effect", OVF, location, p.key))
			}
			continue
		}
		if value == "" {
			continue
		}
		some = true
		if to == nil {
			continue
		}
		if *to, err = decodeMaybe(p.value); err != nil {
			err := fault.New(fault.Input, "%s: property %s: %w", out.file(name), p.key, err).
				WithMend("Give the file's content as base64, plain or packed by gzip before.")
			if to != &out.network {
				return nil, err
			}
			out.networkErr = err
		}
	}
	if !some {
		return nil, nil
	}
	return out, nil
}

// ovfVolume reads ovf-env.xml of a CD; nil if there is none or it says nothing.
// The CD may be anything, so that one which cannot be read is only noted.
func (s *search) ovfVolume(path string, v *volume.Volume) (*content, error) {
	data, err := v.ReadFile("ovf-env.xml")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		s.warnings = append(s.warnings, fmt.Sprintf("%s cannot be read: %v", path, err))
		return nil, nil
	}
	return ovfSeed(path, "ovf-env.xml", data)
}
