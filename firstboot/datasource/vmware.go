package datasource

import (
	"fmt"
	"strings"

	"github.com/slipwayhq/slipway/internal/fault"
)

// vmware reads guestinfo.metadata and guestinfo.userdata, and the OVF
// environment in guestinfo.ovfEnv.
func (s *search) vmware() (map[string][]*content, error) {
	found := map[string][]*content{}
	if s.env.GuestInfo == nil {
		s.nothing("VMware guestinfo (this is no VMware machine, or open-vm-tools are missing)")
		return found, nil
	}
	out := &content{source: VMware, location: "guestinfo", metaName: "guestinfo.metadata", networkName: "guestinfo.metadata, network"}
	any := false
	for _, f := range []struct {
		key string
		to  *[]byte
	}{{"metadata", &out.meta}, {"userdata", &out.user}, {"vendordata", &out.vendor}} {
		data, err := s.guestInfo("guestinfo." + f.key)
		if err != nil {
			return nil, err
		}
		*f.to = data
		any = any || data != nil
	}
	if any {
		found[VMware] = append(found[VMware], out)
	} else {
		s.nothing("VMware guestinfo (neither metadata nor userdata is set)")
	}
	text, ok, err := s.env.GuestInfo(s.ctx, "guestinfo.ovfEnv")
	switch {
	case err != nil:
		return nil, fmt.Errorf("asking VMware for guestinfo.ovfEnv: %w", err)
	case !ok || strings.TrimSpace(text) == "":
		s.nothing("guestinfo.ovfEnv (not set)")
		return found, nil
	}
	seed, err := ovfSeed("guestinfo.ovfEnv", "guestinfo.ovfEnv", []byte(text))
	if err != nil {
		return nil, err
	}
	if seed == nil {
		s.nothing("guestinfo.ovfEnv (all of its properties are empty)")
		return found, nil
	}
	found[OVF] = append(found[OVF], seed)
	return found, nil
}

// guestInfo reads a key with its encoding; nil if it is not set. cloud-init
// clears keys by setting them to "---".
func (s *search) guestInfo(key string) ([]byte, error) {
	text, ok, err := s.env.GuestInfo(s.ctx, key)
	if err != nil {
		return nil, fmt.Errorf("asking VMware for %s: %w", key, err)
	}
	if trimmed := strings.TrimSpace(text); !ok || trimmed == "" || trimmed == "---" {
		return nil, nil
	}
	if len(text) > MaxFile {
		return nil, tooLarge(key)
	}
	encoding, _, err := s.env.GuestInfo(s.ctx, key+".encoding")
	if err != nil {
		return nil, fmt.Errorf("asking VMware for %s.encoding: %w", key, err)
	}
	data, err := decode(encoding, text)
	if err != nil {
		return nil, fault.New(fault.Input, "%s: %s: %w", VMware, key, err).
			WithMend("Set %s again, and %s.encoding to base64 or gzip+base64 if it is encoded so.", key, key)
	}
	return data, nil
}
