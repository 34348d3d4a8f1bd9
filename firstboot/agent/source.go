package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/datasource"
	"github.com/slipwayhq/slipway/firstboot/netconf"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/atomicfile"
)

// SeedPath is where the agent keeps the metadata it used last. People detach
// the CD after the first boot, and the next version of the image still needs
// what it said. It may hold passwords, so root alone reads it.
const SeedPath = "/var/lib/slipway/seed/seed.json"

const (
	// firstLook is how long a first boot waits for a CD drive that is slow.
	firstLook = 4 * time.Second
	// laterLook is the same where metadata is kept already.
	laterLook = time.Second
	interval  = 250 * time.Millisecond
)

// source finds metadata: on the machine, or else what was kept.
type source struct {
	env          datasource.Env
	node         *node.Node
	refuses      func(block string) error // tells why a cluster's block is not for this machine
	needsNetwork bool                     // the metadata is behind a URL and the network is not up
	looked       bool
	settled      <-chan struct{} // closed once udev knows all devices of the boot
	current      string          // fingerprint of what is in use
	trouble      string          // what was wrong with the metadata, if anything
	live         bool            // what is in use was found on the machine, whole and sound
	traces       string          // of devices, as they were at the last look
	unlooked     int             // calls of look since then
	refused      string          // fingerprint of metadata that are not for this machine
}

// find looks for metadata and keeps what it finds.
func (s *source) find(ctx context.Context) (*node.Seed, error) {
	kept, keptErr := s.kept()
	patience := laterLook
	if kept == nil {
		patience = firstLook
	}
	if s.looked {
		patience = 0
	}
	s.looked = true
	md, err := s.search(ctx, kept, patience)
	s.needsNetwork, s.live, s.trouble, s.refused = false, false, "", ""
	var needs *datasource.NeedsNetworkError
	switch {
	case errors.As(err, &needs):
		s.needsNetwork = true
		err = nil
	case datasource.IsNone(err):
		err = nil
	case err != nil:
		s.trouble = err.Error()
	default:
		seed, seedErr := seedOf(md)
		if seedErr != nil {
			return nil, seedErr
		}
		if err = s.refuses(seed.Slipway); err != nil {
			// Nor is anything else in it: it has another node's name and addresses.
			s.trouble, s.refused = err.Error(), seed.Fingerprint
			break
		}
		if md.NetworkError != nil {
			withoutNetwork(seed, md.NetworkError, kept)
		}
		// A seed that is put right, or another CD, must be taken up at once.
		s.live, s.current = md.NetworkError == nil, seed.Fingerprint
		return seed, s.keep(seed)
	}
	if kept != nil {
		kept.Source += ", kept from an earlier boot"
		s.current = kept.Fingerprint
		if err != nil {
			// What was used before still is; what is wrong now must be seen.
			kept.Warnings = append(kept.Warnings, node.Warning{Where: "metadata", Message: "cannot be used, so the former one is: " + err.Error(), Serious: true})
		}
		return kept, nil
	}
	return nil, errors.Join(err, keptErr)
}

// search looks for metadata until there is some, or until all devices of the
// boot are known and patience has passed. What is found is taken at once if it
// is what the node had before; else all devices must be known first, since
// another one may come first.
func (s *source) search(ctx context.Context, kept *node.Seed, patience time.Duration) (*datasource.Metadata, error) {
	select {
	case <-s.settled:
	default:
		md, err := datasource.Find(ctx, s.env)
		if err == nil && kept != nil && md.Fingerprint == kept.Fingerprint {
			return md, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.settled:
		}
	}
	return datasource.FindWithin(ctx, s.env, patience, interval)
}

// wholeLook is after how many calls of look everything is read although no
// device has changed: nothing tells when VMware's guestinfo is set, nor of a
// medium in a drive that the kernel does not ask.
const wholeLook = 10

// unchanged reports whether there is no sign of a seed that was not there at
// the last look.
func (s *source) unchanged() bool {
	if s.env.Traces == nil {
		return false
	}
	before := s.traces
	s.traces = s.env.Traces()
	s.unlooked++
	if s.traces == before && s.unlooked < wholeLook {
		return true
	}
	s.unlooked = 0
	return false
}

// look reports whether the machine has metadata other than what is in use.
func (s *source) look(ctx context.Context) bool {
	if s.live {
		return false // it is read again at the next boot
	}
	if s.unchanged() {
		return false
	}
	env := s.env
	env.Attempts = 1
	md, err := datasource.Find(ctx, env)
	if err != nil {
		var needs *datasource.NeedsNetworkError
		return !datasource.IsNone(err) && !errors.As(err, &needs) && ctx.Err() == nil && err.Error() != s.trouble
	}
	if md.Fingerprint == s.current {
		return s.trouble != "" // what was wrong in between is so no more
	}
	return md.Fingerprint != s.refused
}

func seedOf(md *datasource.Metadata) (*node.Seed, error) {
	seed := &node.Seed{
		Source: md.String(), Hostname: md.FQDN, PublicKeys: md.PublicKeys, Password: md.Password,
		Network: md.Network, Fingerprint: md.Fingerprint,
	}
	if seed.Hostname == "" {
		seed.Hostname = md.Hostname
	}
	for _, text := range md.Warnings {
		seed.Warnings = append(seed.Warnings, node.Warning{Where: "metadata", Message: text})
	}
	// The user's word comes last, so that it counts.
	if len(md.VendorData) > 0 {
		seed.Documents = append(seed.Documents, cloudconfig.Document{Name: "vendor-data", Content: md.VendorData})
	}
	if len(md.UserData) > 0 {
		seed.Documents = append(seed.Documents, cloudconfig.Document{Name: "user-data", Content: md.UserData})
	}
	if md.Slipway != nil {
		block, err := yaml.Marshal(md.Slipway)
		if err != nil {
			return nil, fmt.Errorf("the block slipway in the meta-data: %w", err)
		}
		seed.Slipway = string(block)
	}
	return seed, nil
}

// withoutNetwork makes do where the network configuration cannot be used: the
// node keeps the network that it had, or has DHCP on every card, and says so.
func withoutNetwork(seed *node.Seed, why error, kept *node.Seed) {
	var mistakes netconf.Mistakes
	if errors.As(why, &mistakes) {
		for _, m := range mistakes {
			seed.Warnings = append(seed.Warnings, node.Warning{Where: fmt.Sprintf("%s:%d", m.File, m.Line), Message: m.Text, Serious: true})
		}
	} else {
		seed.Warnings = append(seed.Warnings, node.Warning{Where: "metadata", Message: why.Error(), Serious: true})
	}
	instead := "every network card uses DHCP"
	if kept != nil && kept.Network != nil {
		seed.Network, instead = kept.Network, "the network stays as it was"
	}
	seed.Warnings = append(seed.Warnings, node.Warning{Where: "metadata", Message: "the network configuration cannot be used: " + instead})
}

func (s *source) keep(seed *node.Seed) error {
	path := s.node.Path(SeedPath)
	data, err := json.Marshal(seed)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteBytes(path, 0o600, data)
}

// kept reads what was kept; nil if nothing was.
func (s *source) kept() (*node.Seed, error) {
	data, err := os.ReadFile(s.node.Path(SeedPath))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var seed node.Seed
	if err := json.Unmarshal(data, &seed); err != nil {
		return nil, fmt.Errorf("the metadata kept from an earlier boot is damaged: %w", err)
	}
	return &seed, nil
}
