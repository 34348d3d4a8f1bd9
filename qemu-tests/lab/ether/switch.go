package ether

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	// MaxMTU is the largest payload that the switch carries.
	MaxMTU = 9000
	// MaxFrame is the largest frame: header, one VLAN tag, payload. Frames come
	// without their check sequence.
	MaxFrame = headerSize + tagSize + MaxMTU
)

// Options of a switch; the zero value is good.
type Options struct {
	// Ageing is how long an address is remembered; default 300 s (IEEE 802.1Q-2018, table 8-6).
	Ageing time.Duration
	// Queue bounds what waits for a port, in bytes; default 1 MiB.
	Queue int
	// Seed is where the chance of faults begins.
	Seed uint64
}

// Addresses kept at most. Beyond, frames for addresses not known are flooded.
const maxStations = 8192

// Switch carries frames between its ports.
type Switch struct {
	opts Options

	mu        sync.Mutex
	closed    bool
	ports     map[string]*Port
	stations  map[station]sighting
	origins   map[netip.Addr]string // ports from which an address has sent, routers left out
	faults    faults
	captures  []*capture
	witnesses []*witness
}

// station is an address in a network.
type station struct {
	vlan uint16
	mac  mac
}

// sighting is where and when a station last sent.
type sighting struct {
	port *Port
	at   time.Time
}

// New makes a switch with no ports.
func New(opts Options) *Switch {
	if opts.Ageing == 0 {
		opts.Ageing = 300 * time.Second
	}
	if opts.Queue == 0 {
		opts.Queue = 1 << 20
	}
	return &Switch{
		opts:     opts,
		ports:    map[string]*Port{},
		stations: map[station]sighting{},
		origins:  map[netip.Addr]string{},
		faults:   newFaults(opts.Seed),
	}
}

// Close closes all ports and ends all captures.
func (s *Switch) Close() {
	s.mu.Lock()
	s.closed = true
	var ports []*Port
	for _, p := range s.ports {
		ports = append(ports, p)
	}
	captures := slices.Clone(s.captures)
	s.mu.Unlock()
	for _, p := range ports {
		p.Close()
	}
	for _, c := range captures {
		c.end()
	}
}

// plug makes a port known.
func (s *Switch) plug(p *Port) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fault.New(fault.Failed, "port %s: the switch is closed", p.name)
	}
	if s.ports[p.name] != nil {
		return fault.New(fault.Usage, "port %s is in use already", p.name)
	}
	s.ports[p.name] = p
	return nil
}

// unplug forgets a port and what was learnt from it.
func (s *Switch) unplug(p *Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports[p.name] == p {
		delete(s.ports, p.name)
	}
	for st, seen := range s.stations {
		if seen.port == p {
			delete(s.stations, st)
		}
	}
}

// forward takes one frame from a port and hands it to those that should see it.
func (s *Switch) forward(from *Port, raw []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports[from.name] != from {
		return // it was unplugged
	}
	if s.faults.cut(from.name) {
		from.stats.Cut++
		return
	}
	f, verdict := from.cfg.classify(raw)
	if verdict != accepted {
		from.refused(verdict)
		return
	}
	from.stats.FramesIn++
	from.stats.BytesIn += uint64(len(raw))
	now := time.Now()
	for _, c := range s.captures {
		c.arrived(now, from, f)
	}
	if f.dst.linkLocalGroup() {
		return
	}
	s.witness(now, from, f)
	s.learn(from, f, now)
	s.trace(from, f)
	if to := s.find(f, now); to != nil {
		if to != from {
			s.pass(from, to, f, now)
		}
		return
	}
	for _, to := range s.ports {
		if to != from && to.cfg.member(f.vlan) {
			s.pass(from, to, f, now)
		}
	}
}

func (s *Switch) learn(from *Port, f frame, now time.Time) {
	st := station{f.vlan, f.src}
	if _, known := s.stations[st]; !known && len(s.stations) >= maxStations {
		for old, seen := range s.stations {
			if now.Sub(seen.at) >= s.opts.Ageing {
				delete(s.stations, old)
			}
		}
		if len(s.stations) >= maxStations {
			return
		}
	}
	s.stations[st] = sighting{from, now}
}

// find says where a frame's destination was seen last; nil if it must be flooded.
func (s *Switch) find(f frame, now time.Time) *Port {
	if f.dst.group() {
		return nil
	}
	st := station{f.vlan, f.dst}
	seen, ok := s.stations[st]
	if !ok {
		return nil
	}
	if now.Sub(seen.at) >= s.opts.Ageing {
		delete(s.stations, st)
		return nil
	}
	return seen.port
}

// pass brings a frame to a port, past the faults on the way.
func (s *Switch) pass(from, to *Port, f frame, now time.Time) {
	if s.faults.cut(to.name) {
		to.stats.Cut++
		return
	}
	lost, wait := s.faults.meet(from.name, s.origin(from, f), to.name, now)
	if lost {
		to.stats.Lost++
		return
	}
	if wait > 0 {
		if !to.later.hold(f, now.Add(wait)) {
			to.stats.Overflow++
		}
		return
	}
	s.deliver(to, f, now)
}

// deliver puts a frame into a port's queue.
func (s *Switch) deliver(to *Port, f frame, now time.Time) {
	tagged := to.cfg.tagged(f.vlan)
	if !to.out.add(f, tagged) {
		to.stats.Overflow++
		return
	}
	to.stats.FramesOut++
	to.stats.BytesOut += uint64(f.size(tagged))
	for _, c := range s.captures {
		c.left(now, to, f, tagged)
	}
}

// Stats counts for every port that is plugged in, by name.
func (s *Switch) Stats() map[string]Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]Stats, len(s.ports))
	for name, p := range s.ports {
		all[name] = p.stats
	}
	return all
}
