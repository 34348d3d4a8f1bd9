// Package datasource finds the metadata that a platform or an administrator
// gave to this node, and reads it into one form.
//
// Where it looks, first hit wins:
//
//  1. NoCloud on a disk or CD labelled cidata (cloud-init documentation,
//     "NoCloud"; meta-data, user-data, network-config, vendor-data);
//  2. NoCloud by the kernel's command line, ds=nocloud;s=URL;h=HOST;i=ID;
//  3. NoCloud by the serial number in DMI, in the same words;
//  4. ConfigDrive on a disk or CD labelled config-2 (OpenStack Nova
//     documentation, "Metadata", openstack/latest);
//  5. VMware's guestinfo.metadata and guestinfo.userdata;
//  6. the OVF environment (DMTF DSP0243, section 11) on a CD with ovf-env.xml,
//     then in VMware's guestinfo.ovfEnv.
//
// guestinfo comes before the OVF environment, because an imported OVA always
// has the latter, if only with its defaults, and the former only when somebody
// set it.
//
// Every source is looked at even after the first hit, as long as that costs
// no waiting: a second seed that says something else is a warning, so that
// nobody wonders why it has no effect.
//
// Bytes from outside are limited to MaxFile per file, and what is wrong in
// them is an error of class fault.Input with source, file and line.
package datasource

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/firstboot/datasource/volume"
	"github.com/slipwayhq/slipway/firstboot/netconf"
	"github.com/slipwayhq/slipway/internal/fault"
)

// MaxFile is the largest file that is read from a seed, unpacked or not.
const MaxFile = volume.MaxFile

// Names of the sources, as they stand in Metadata.Source and NoneError.
const (
	NoCloud     = "NoCloud"
	ConfigDrive = "ConfigDrive"
	VMware      = "VMware guestinfo"
	OVF         = "OVF environment"
)

// Metadata is what the node was told.
type Metadata struct {
	Source     string // one of the names above
	Location   string // device, URL or guestinfo key
	InstanceID string // of little use: see the package firstboot's state
	Hostname   string // first label
	FQDN       string // whole name, if it has a domain
	PublicKeys []string
	Password   string // of the default user; only the OVF environment gives one

	Raw     *yaml.Node // meta-data as a whole, nil if there is none
	Slipway *yaml.Node // its block slipway:, nil if there is none

	UserData   []byte // as given; the transport's base64 and gzip are undone
	VendorData []byte
	Network    *netconf.Config // nil: nothing was said, or nothing that can be used
	// NetworkError is what is wrong with the network configuration. The rest of
	// the seed counts all the same: without its users and keys, nobody could get
	// in to see what is wrong.
	NetworkError error

	Warnings    []string
	Fingerprint string // changes whenever anything in the seed does
}

// String is the source for people.
func (m *Metadata) String() string { return m.Source + " (" + m.Location + ")" }

// Env is the machine as this package sees it. Machine gives the real one.
type Env struct {
	// Root is where /sys, /proc and file: URLs are looked for; "" is the
	// machine's own root.
	Root string
	// Devices lists the block devices; nil lists those of Root/sys/class/block.
	Devices func() ([]Device, error)
	// Traces changes whenever a device or a medium comes or goes, and costs next
	// to nothing, so that one can look for seeds that appear without reading
	// every device each time. nil: nobody knows, and every look is a whole one.
	Traces func() string
	// DMI reads a field such as product_serial; nil reads Root/sys/class/dmi/id.
	DMI func(field string) (string, error)
	// GuestInfo asks VMware for a key such as guestinfo.ovfEnv. ok is false if
	// the key is not set. nil: this is no VMware machine.
	GuestInfo func(ctx context.Context, key string) (value string, ok bool, err error)
	// NetworkUp says that URLs can be fetched. Before that, a source that
	// needs the network gives a NeedsNetworkError.
	NetworkUp bool
	// HTTP fetches URLs; nil is a client with timeouts and no proxy.
	HTTP *http.Client
	// Attempts is how often a URL is tried before its failure counts; 0 is 10.
	Attempts int
	// Sleep waits between attempts; nil really waits.
	Sleep func(ctx context.Context, d time.Duration) error
	// Now is the clock that FindWithin's patience is measured with; nil is the
	// machine's.
	Now func() time.Time
}

// Device is a block device that may hold a seed.
type Device struct {
	Path string // /dev/sr0
	Open func() (Medium, error)
}

// Medium is an open device.
type Medium interface {
	io.ReaderAt
	io.Closer
}

// NoneError says that the node was told nothing, and where that was found.
type NoneError struct{ Looked []string }

func (e *NoneError) Error() string {
	return "no metadata was found; looked at: " + strings.Join(e.Looked, "; ")
}

// NeedsNetworkError says that the seed is behind a URL. Bring the network up,
// set Env.NetworkUp and call Find again.
type NeedsNetworkError struct {
	Source string // where the URL was found: kernel command line, or DMI serial number
	URL    string
}

func (e *NeedsNetworkError) Error() string {
	return fmt.Sprintf("the %s names the seed %s, which needs the network", e.Source, e.URL)
}

// IsNone says whether err is a NoneError.
func IsNone(err error) bool {
	var none *NoneError
	return errors.As(err, &none)
}

// Find looks once at every source and reads the first that has something.
//
// Its error is a *NoneError, a *NeedsNetworkError, or says what is wrong with
// the seed. A seed that is there and broken is an error even if another one is
// sound: a node that silently took the second would be configured by accident.
// A network configuration that is broken by itself is Metadata.NetworkError.
func Find(ctx context.Context, env Env) (*Metadata, error) {
	s := search{ctx: ctx, env: env.withDefaults()}
	found, err := s.all()
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, &NoneError{Looked: s.looked}
	}
	md, err := found[0].read()
	if err != nil {
		return nil, err
	}
	for _, other := range found[1:] {
		if !other.sameAs(found[0]) {
			md.Warnings = append(md.Warnings, fmt.Sprintf("%s (%s) also has metadata, which differs; %s came first and is used", other.source, other.location, md))
		}
	}
	md.Warnings = append(md.Warnings, s.warnings...)
	return md, nil
}

// FindWithin is Find for devices that appear late, as CD drives do: while
// there is nothing, it looks again every interval until patience has passed.
func FindWithin(ctx context.Context, env Env, patience, interval time.Duration) (*Metadata, error) {
	env = env.withDefaults()
	end := env.Now().Add(patience)
	for {
		md, err := Find(ctx, env)
		if !IsNone(err) || !env.Now().Before(end) {
			return md, err
		}
		if serr := env.Sleep(ctx, interval); serr != nil {
			return nil, serr
		}
	}
}

// content is what a source holds, not parsed yet.
type content struct {
	source, location string
	// names of the files, for messages
	metaName, networkName string
	meta, user, vendor    []byte
	network               []byte
	networkErr            error // the network could not even be unpacked
	openStack             bool  // meta and network are OpenStack's JSON

	// What the source says outside of meta-data.
	instanceID, hostname, password, keys string
	warnings                             []string
}

func (s *content) sameAs(o *content) bool { return s.fingerprint() == o.fingerprint() }

func (s *content) fingerprint() string {
	h := sha256.New()
	for _, part := range []string{string(s.meta), string(s.user), string(s.vendor), string(s.network), s.instanceID, s.hostname, s.password, s.keys} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (s *content) file(name string) string {
	return fmt.Sprintf("%s (%s): %s", s.source, s.location, name)
}

// read turns the seed into metadata.
func (s *content) read() (*Metadata, error) {
	md := &Metadata{
		Source: s.source, Location: s.location, InstanceID: s.instanceID, Password: s.password,
		UserData: s.user, VendorData: s.vendor, Warnings: s.warnings, Fingerprint: s.fingerprint(),
	}
	md.addKeys(s.keys)
	var inline []byte // network configuration that stands inside meta-data
	var err error
	if s.openStack {
		inline, err = md.readOpenStack(s.file(s.metaName), s.meta)
	} else {
		inline, err = md.readMeta(s.file(s.metaName), s.meta)
	}
	if err != nil {
		return nil, err
	}
	if s.hostname != "" {
		md.setHostname(s.hostname)
	}
	md.readNetwork(s, inline)
	return md, nil
}

// readNetwork reads the network configuration: the seed's file, or else what
// stands inside its meta-data.
func (m *Metadata) readNetwork(s *content, inline []byte) {
	network, name, parse := s.network, s.networkName, netconf.Parse
	switch {
	case s.networkErr != nil:
		m.NetworkError = s.networkErr
		return
	case s.openStack && inline != nil: // says more than the file beside it
		network, name = inline, s.metaName+", meta.network-config"
	case s.openStack:
		parse = netconf.ParseOpenStack
	case network != nil: // wins over what stands inside meta-data, right or wrong
	case m.NetworkError != nil:
		return
	case inline != nil:
		network, name = inline, s.metaName+", network"
	}
	cfg, warnings, err := parse(s.file(name), network)
	m.Network, m.NetworkError = cfg, err
	for _, w := range warnings {
		m.Warnings = append(m.Warnings, w.String())
	}
}

func (m *Metadata) warn(format string, args ...any) {
	m.Warnings = append(m.Warnings, fmt.Sprintf(format, args...))
}

func tooLarge(what string) error {
	return fault.New(fault.Input, "%s is larger than the limit of %d MiB", what, MaxFile>>20).
		WithMend("Put large content on a server and fetch it in runcmd.")
}
