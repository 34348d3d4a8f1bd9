package ether

import (
	"container/heap"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"time"
)

// Any stands for every port in a fault.
const Any = "*"

// Path is what happens to frames on their way from one port to another. Several
// that fit the same frame add up.
type Path struct {
	Blocked bool
	Delay   time.Duration
	Jitter  time.Duration // added to Delay, between 0 and this
	Loss    float64       // of 1: how likely a frame is lost
}

// Cut takes the cable out of a port, or out of all ports of a machine. The
// other side is not told: it keeps its carrier.
func (s *Switch) Cut(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.cables[name] = true
}

// Restore puts the cable back.
func (s *Switch) Restore(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.faults.cables, name)
}

// Block keeps frames of one port, or machine, from another; not the other way.
// With delays, what is under way already still arrives.
func (s *Switch) Block(from, to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rule := s.faults.rules[[2]string{from, to}]
	rule.Blocked = true
	s.faults.rules[[2]string{from, to}] = rule
}

// Unblock ends Block.
func (s *Switch) Unblock(from, to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rule := s.faults.rules[[2]string{from, to}]
	rule.Blocked = false
	s.faults.set(from, to, rule)
}

// Impair sets what happens on the way from one port, or machine, to another, in
// place of what was set for these two names; the zero Path mends it.
func (s *Switch) Impair(from, to string, p Path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.set(from, to, p)
}

// Heal ends all faults.
func (s *Switch) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = newFaults(s.opts.Seed)
}

type faults struct {
	seed   uint64
	cables map[string]bool
	rules  map[[2]string]Path
	chance map[[2]string]*rand.Rand
	last   map[[2]string]time.Time // when the last delayed frame of a path is due
}

func newFaults(seed uint64) faults {
	return faults{
		seed:   seed,
		cables: map[string]bool{},
		rules:  map[[2]string]Path{},
		chance: map[[2]string]*rand.Rand{},
		last:   map[[2]string]time.Time{},
	}
}

func (f *faults) set(from, to string, p Path) {
	if p == (Path{}) {
		delete(f.rules, [2]string{from, to})
		return
	}
	f.rules[[2]string{from, to}] = p
}

// fits says whether a fault's name means a port.
func fits(name, port string) bool {
	if name == Any || name == port {
		return true
	}
	machine, _, ok := strings.Cut(port, "/")
	return ok && name == machine
}

func (f *faults) cut(port string) bool {
	for name := range f.cables {
		if fits(name, port) {
			return true
		}
	}
	return false
}

// meet decides the fate of one frame. If a router sends it, origin is the port
// that the packet came from before; a fault between two names counts for both
// legs of its way as one, and one with Any for each leg by itself.
func (f *faults) meet(from, origin, to string, now time.Time) (lost bool, wait time.Duration) {
	if len(f.rules) == 0 && len(f.last) == 0 {
		return false, 0
	}
	var sum Path
	arrives := 1.0
	for names, p := range f.rules {
		routed := origin != "" && names[0] != Any && names[1] != Any && fits(names[0], origin)
		if !routed && !fits(names[0], from) || !fits(names[1], to) {
			continue
		}
		sum.Blocked = sum.Blocked || p.Blocked
		sum.Delay += p.Delay
		sum.Jitter += p.Jitter
		arrives *= 1 - p.Loss
	}
	path := [2]string{from, to}
	if sum.Blocked || arrives < 1 && f.random(path).Float64() >= arrives {
		return true, 0
	}
	wait = sum.Delay
	if sum.Jitter > 0 {
		wait += time.Duration(f.random(path).Int64N(int64(sum.Jitter) + 1))
	}
	// A cable does not reorder: a frame is not due before the one ahead of it.
	due, last := now.Add(wait), f.last[path]
	switch {
	case due.Before(last):
		due = last
	case wait == 0:
		delete(f.last, path)
		return false, 0
	}
	f.last[path] = due
	return false, due.Sub(now)
}

// random is the path's own sequence.
func (f *faults) random(path [2]string) *rand.Rand {
	r := f.chance[path]
	if r == nil {
		h := fnv.New64a()
		h.Write([]byte(path[0] + "\x00" + path[1]))
		r = rand.New(rand.NewPCG(f.seed, h.Sum64()))
		f.chance[path] = r
	}
	return r
}

// delayLine keeps frames for a port until they are due. All of it is guarded by
// the switch's lock.
type delayLine struct {
	p      *Port
	limit  int
	bytes  int
	number uint64
	frames delayed
	timer  *time.Timer
}

type delayedFrame struct {
	frame
	due    time.Time
	number uint64 // those due at the same moment keep their order
}

func (d *delayLine) hold(f frame, due time.Time) bool {
	size := lengthSize + f.size(false) // what it takes in the queue
	if d.bytes+size > d.limit {
		return false
	}
	d.bytes += size
	d.number++
	heap.Push(&d.frames, delayedFrame{f.clone(), due, d.number})
	if d.frames[0].number == d.number {
		d.wake(due)
	}
	return true
}

func (d *delayLine) wake(due time.Time) {
	if d.timer == nil {
		d.timer = time.AfterFunc(time.Until(due), d.release)
		return
	}
	d.timer.Reset(time.Until(due))
}

// release hands over what is due.
func (d *delayLine) release() {
	s := d.p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports[d.p.name] != d.p {
		d.frames = nil
		return
	}
	now := time.Now()
	for len(d.frames) > 0 {
		if d.frames[0].due.After(now) {
			d.wake(d.frames[0].due)
			return
		}
		f := heap.Pop(&d.frames).(delayedFrame)
		d.bytes -= lengthSize + f.size(false)
		if s.faults.cut(d.p.name) {
			d.p.stats.Cut++
			continue
		}
		s.deliver(d.p, f.frame, now)
	}
}

// delayed is a heap, the frame due first on top.
type delayed []delayedFrame

func (h delayed) Len() int      { return len(h) }
func (h delayed) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h delayed) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].number < h[j].number
	}
	return h[i].due.Before(h[j].due)
}
func (h *delayed) Push(x any) { *h = append(*h, x.(delayedFrame)) }
func (h *delayed) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = delayedFrame{}
	*h = old[:len(old)-1]
	return last
}
