package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
)

// Lab is what a daemon serves: lab.Cluster, and something smaller in tests.
type Lab interface {
	// Nodes are all nodes, in their order.
	Nodes() []lab.NodeState
	// Start powers on those nodes that are off; they end with ctx.
	Start(ctx context.Context, names ...string) (started []string, err error)
	// Shutdown has the guests power off, and cuts the power of those that have not when ctx ends.
	Shutdown(ctx context.Context, names ...string) (stopped, forced []string, err error)
	Crash(names ...string) (stopped []string, err error)
	// Inject makes a fault on nodes, and says whether it lasts until Heal.
	Inject(ctx context.Context, fault string, nodes []string) (lasts bool, err error)
	// Heal undoes a fault that lasts. A machine that gets power by it ends with ctx.
	Heal(ctx context.Context, fault string, nodes []string) error
	// Dial connects to an address in the cluster's network, from outside of it.
	Dial(ctx context.Context, address string) (net.Conn, error)
	// Console connects to a node's serial port.
	Console(name string) (net.Conn, error)
	// ConsoleLog is what the serial port has said.
	ConsoleLog(name string) (string, error)
	// ConsoleSize tells the guest how large its console is.
	ConsoleSize(ctx context.Context, name string, rows, columns int) error
	// Report is a node's own account of itself.
	Report(ctx context.Context, name string) (*status.Report, error)
	// Screenshot is a PNG file.
	Screenshot(ctx context.Context, name string) ([]byte, error)
	// Adopt takes over a topology with other nodes.
	Adopt(ctx context.Context, t *topology.Topology) error
	// Close ends the machines and the network.
	Close()
}

// About is what a lab is, beside its machines.
type About struct {
	Cluster  string
	Topology string
	Digest   string
}

// Server serves a lab.
type Server struct {
	lab      Lab
	log      logrus.FieldLogger
	since    time.Time
	forwards []Forward
	quit     context.CancelFunc

	ctx context.Context // of the machines

	mu       sync.Mutex
	about    About
	consoles map[string]bool // nodes whose console has a viewer
	faults   []Fault         // that last
}

// Serve answers on the place's socket until ctx ends or somebody says quit, and
// then ends the lab. ready is called once commands can connect. The caller has
// the place's lock, see Hold.
func Serve(ctx context.Context, place Place, about About, machines Lab, forwards []Forward, log logrus.FieldLogger, ready func()) error {
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	defer machines.Close()
	listener, err := place.listen()
	if err != nil {
		return err
	}
	s := &Server{about: about, lab: machines, log: log, since: time.Now(), forwards: forwards, quit: quit,
		ctx: ctx, consoles: map[string]bool{}}
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: headerTime, MaxHeaderBytes: maxBody,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	ready()
	select {
	case <-ctx.Done():
	case err = <-done:
	}
	// Requests under way, such as the one that said quit, get their answer; streams end.
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	server.Shutdown(closing)
	os.Remove(place.path(socketName))
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// Hold takes the place for this process, for as long as it runs or until
// release is called.
func Hold(place Place) (release func(), err error) {
	f, err := place.lock()
	if errors.Is(err, errTaken) {
		return nil, fault.New(fault.Failed, "%s: %w", place, err).WithMend("see slipway status, or end it with slipway down")
	}
	if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/lab", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.state()) })
	mux.HandleFunc("GET /v1/reports", s.reports)
	mux.HandleFunc("POST /v1/power", s.power)
	mux.HandleFunc("POST /v1/faults", s.inject)
	mux.HandleFunc("DELETE /v1/faults", s.heal)
	mux.HandleFunc("POST /v1/adopt", s.adopt)
	mux.HandleFunc("POST /v1/quit", func(w http.ResponseWriter, _ *http.Request) {
		s.log.Info("told to end")
		answer(w, struct{}{})
		s.quit()
	})
	mux.HandleFunc("GET /v1/nodes/{node}/screenshot", s.screenshot)
	mux.HandleFunc("POST /v1/nodes/{node}/size", s.size)
	mux.HandleFunc("GET /v1/nodes/{node}/console", s.console)
	mux.HandleFunc("GET /v1/dial", s.dial)
	return mux
}

func (s *Server) state() State {
	s.mu.Lock()
	about, faults := s.about, append([]Fault{}, s.faults...)
	s.mu.Unlock()
	return State{Faults: faults, Cluster: about.Cluster, Topology: about.Topology, Digest: about.Digest,
		PID: os.Getpid(), Since: s.since, Nodes: s.lab.Nodes(), Forwards: append([]Forward{}, s.forwards...)}
}

// known refuses names that are no node's.
func (s *Server) known(names ...string) error {
	state := s.state()
	for _, name := range names {
		if _, ok := state.Node(name); !ok {
			return fault.New(fault.Usage, "cluster %s has no node %q", state.Cluster, name).WithMend("see slipway status %s", state.Topology)
		}
	}
	return nil
}

// adopt reads the topology's file again: other nodes may stand in it.
func (s *Server) adopt(w http.ResponseWriter, _ *http.Request) {
	path := s.state().Topology
	digest, err := Digest(path)
	var next *topology.Topology
	if err == nil {
		next, err = topology.Load(path)
	}
	if err == nil {
		err = s.lab.Adopt(s.ctx, next)
	}
	if err != nil {
		s.log.Warnf("taking over %s: %v", path, err)
		refuse(w, err)
		return
	}
	s.mu.Lock()
	s.about.Digest = digest
	s.mu.Unlock()
	s.log.Infof("took over %s", path)
	answer(w, s.state())
}

func (s *Server) power(w http.ResponseWriter, r *http.Request) {
	var order Order
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&order); err != nil {
		refuse(w, fault.New(fault.Usage, "order: %w", err))
		return
	}
	err := s.known(order.Nodes...)
	var out Outcome
	if err == nil {
		s.log.Infof("%s %v", order.Action, order.Nodes)
		out, err = s.carryOut(r.Context(), order)
	}
	if err != nil {
		s.log.Warnf("%s %v: %v", order.Action, order.Nodes, err)
		refuse(w, err)
		return
	}
	answer(w, out)
}

func (s *Server) carryOut(ctx context.Context, order Order) (out Outcome, err error) {
	switch order.Action {
	case Start:
		out.Changed, err = s.lab.Start(s.ctx, order.Nodes...)
	case Shutdown:
		// Who gives the order may go away; it is carried out all the same.
		bounded, cancel := context.WithTimeout(s.ctx, order.Limit)
		defer cancel()
		out.Changed, out.Forced, err = s.lab.Shutdown(bounded, order.Nodes...)
	case Crash:
		out.Changed, err = s.lab.Crash(order.Nodes...)
	default:
		err = fault.New(fault.Usage, "there is no action %q", order.Action)
	}
	return out, err
}

func (s *Server) inject(w http.ResponseWriter, r *http.Request) {
	var f Fault
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&f)
	if err != nil {
		err = fault.New(fault.Usage, "fault: %w", err)
	} else if len(f.Nodes) == 0 {
		err = fault.New(fault.Usage, "%s: name the nodes that it hits", f.Name)
	} else {
		err = s.known(f.Nodes...)
	}
	if err == nil {
		s.log.Infof("fault %s of %v", f.Name, f.Nodes)
		f.Since = time.Now()
		// Who asked may go away; a fault is made whole.
		f.Lasts, err = s.lab.Inject(s.ctx, f.Name, f.Nodes)
	}
	// One that was made on some of the nodes has to be healed too.
	if f.Lasts {
		s.mu.Lock()
		s.faults = append(s.faults, f)
		s.mu.Unlock()
	}
	if err != nil {
		s.log.Warnf("fault %s of %v: %v", f.Name, f.Nodes, err)
		refuse(w, err)
		return
	}
	answer(w, f)
}

// heal undoes all faults, the last one first. Those that cannot be undone yet stay.
func (s *Server) heal(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	faults := s.faults
	s.faults = nil
	s.mu.Unlock()
	var left []Fault
	var errs []error
	healed := []Fault{}
	for _, f := range slices.Backward(faults) {
		s.log.Infof("healing %s of %v", f.Name, f.Nodes)
		if err := s.lab.Heal(s.ctx, f.Name, f.Nodes); err != nil {
			left, errs = append([]Fault{f}, left...), append(errs, fmt.Errorf("%s of %s: %w", f.Name, strings.Join(f.Nodes, ", "), err))
			continue
		}
		healed = append(healed, f)
	}
	if err := errors.Join(errs...); err != nil {
		s.mu.Lock()
		s.faults = append(left, s.faults...)
		s.mu.Unlock()
		s.log.Warnf("healing: %v", err)
		refuse(w, err)
		return
	}
	answer(w, healed)
}

// reports asks all nodes that have power, at the same time. A guest that still
// boots says nothing: the question says how long it is worth to wait for that.
func (s *Server) reports(w http.ResponseWriter, r *http.Request) {
	limit, err := time.ParseDuration(r.URL.Query().Get("limit"))
	if err != nil || limit <= 0 || limit > maxReportTime {
		refuse(w, fault.New(fault.Usage, "reports: want a limit of at most %v", maxReportTime))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	all := map[string]NodeReport{}
	for _, n := range s.lab.Nodes() {
		if !n.On {
			continue
		}
		wg.Go(func() {
			report, err := s.lab.Report(ctx, n.Name)
			answer := NodeReport{Report: report}
			if err != nil {
				answer.Problem = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			all[n.Name] = answer
		})
	}
	wg.Wait()
	answer(w, all)
}

func (s *Server) screenshot(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("node")
	err := s.known(name)
	var picture []byte
	if err == nil {
		picture, err = s.lab.Screenshot(r.Context(), name)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "image/png")
	w.Write(picture)
}

// maxSide bounds a terminal's rows and columns.
const maxSide = 1000

func (s *Server) size(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("node")
	var size Size
	err := s.known(name)
	if err == nil {
		err = json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&size)
	}
	if err == nil && (size.Rows < 1 || size.Columns < 1 || size.Rows > maxSide || size.Columns > maxSide) {
		err = fault.New(fault.Usage, "a terminal of %d rows and %d columns", size.Rows, size.Columns)
	}
	if err == nil {
		err = s.lab.ConsoleSize(r.Context(), name, size.Rows, size.Columns)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, struct{}{})
}
