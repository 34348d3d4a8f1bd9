package peers

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	headerLimit = 5 * time.Second // also of the handshake
	answerLimit = 15 * time.Second
	idleLimit   = time.Minute
	lostLimit   = 20 * time.Second // without any word from the other side's kernel
	maxConns    = 256
	maxFromOne  = 16 // connections from one address
)

// serve answers until ctx ends.
func (s *Service) serve(ctx context.Context) error {
	listener, err := s.Listen()
	if err != nil {
		return fmt.Errorf("answering other agents: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		self := s.current()
		if self == nil {
			return nil, errNobody
		}
		return &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{self.cert}, NextProtos: []string{"http/1.1"},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pki.Pool(self.member.CA), Time: s.Now,
			// A connection is judged anew each time, by the member of the moment.
			SessionTicketsDisabled: true,
		}, nil
	}}
	server := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: headerLimit, ReadTimeout: s.limit, WriteTimeout: s.limit, IdleTimeout: idleLimit,
		MaxHeaderBytes: maxHeader, ErrorLog: log.New(io.Discard, "", 0),
	}
	context.AfterFunc(ctx, func() { server.Close() })
	go server.Serve(tls.NewListener(&limited{Listener: listener, from: map[netip.Addr]int{}}, config))
	return nil
}

// handler answers requests whose certificates the authority has signed.
func (s *Service) handler() http.Handler {
	mux := http.NewServeMux()
	// Each question says who may put it: nodes or not, administrators of which right.
	on := func(pattern string, nodes bool, right string, do func(http.ResponseWriter, *http.Request, *identity, caller)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			by := r.Context().Value(callerKey{}).(caller)
			if by.Node != "" && !nodes || by.Node == "" && by.Right != right {
				refuse(w, http.StatusForbidden, forbidden(by, r, right))
				return
			}
			do(w, r, by.self, by)
		})
	}
	on("GET /v1/hello", true, pki.AdminRead, func(w http.ResponseWriter, _ *http.Request, self *identity, _ caller) {
		answer(w, Hello{
			Format: helloFormat, Node: self.member.Self.Name, Machine: self.machine, Boot: self.boot,
			Generation: self.latest, State: s.Report().State, Expires: self.member.Expires,
		})
	})
	on("GET /v1/status", true, pki.AdminRead, func(w http.ResponseWriter, _ *http.Request, _ *identity, _ caller) { answer(w, s.Report()) })
	on("GET /v1/plan", true, pki.AdminRead, func(w http.ResponseWriter, _ *http.Request, self *identity, _ caller) { answer(w, self.newest) })
	on("PUT /v1/plan", true, pki.AdminWrite, func(w http.ResponseWriter, r *http.Request, _ *identity, by caller) {
		signed, err := readPlan(http.MaxBytesReader(w, r.Body, maxPlan))
		if err == nil {
			_, err = s.offer(signed, by.Caller)
		}
		switch fault.Of(err) {
		case fault.Input, fault.Integrity:
			refuse(w, http.StatusBadRequest, refusal{Error: err.Error(), Mend: fault.Mend(err), Class: fault.Of(err).String()})
			return
		}
		if err != nil {
			refuse(w, http.StatusInternalServerError, refusal{Error: err.Error(), Mend: fault.Mend(err), Class: fault.Of(err).String()})
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	on("POST /v1/actions/{name}", false, pki.AdminWrite, func(w http.ResponseWriter, r *http.Request, self *identity, by caller) {
		s.Actions.Act(w, r, r.PathValue("name"), self.node, by.Caller)
	})
	on("POST /v1/looks/{name}", false, pki.AdminRead, func(w http.ResponseWriter, r *http.Request, self *identity, by caller) {
		s.Actions.Look(w, r, r.PathValue("name"), self.node, by.Caller)
	})
	on("PUT /v1/blobs/{sha256}", false, pki.AdminWrite, func(w http.ResponseWriter, r *http.Request, _ *identity, _ caller) { s.receive(w, r) })
	on("GET /v1/offers/{name}", true, "", s.hand)
	on("GET /v1/audit", false, pki.AdminRead, func(w http.ResponseWriter, r *http.Request, _ *identity, _ caller) { s.Actions.Audit(w, r) })
	return s.authorized(mux)
}

// caller is whose certificate a request came with, and who this node was then.
type caller struct {
	pki.Peer
	actions.Caller
	self *identity
}

type callerKey struct{}

// authorized lets those in whose certificates name a node or an administrator of
// this cluster.
func (s *Service) authorized(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		self := s.current()
		if self == nil {
			refuse(w, http.StatusServiceUnavailable, refusal{Error: errNobody.Error()})
			return
		}
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			refuse(w, http.StatusForbidden, refusal{Error: "no certificate of this cluster"})
			return
		}
		cert := r.TLS.VerifiedChains[0][0]
		who, err := pki.PeerOf(cert)
		if err != nil || who.ID != self.member.Plan.ID {
			refuse(w, http.StatusForbidden, refusal{Error: "the certificate names no node and no administrator of this cluster"})
			return
		}
		by := caller{who, actions.Caller{Name: cert.Subject.CommonName, Serial: fmt.Sprintf("%x", cert.SerialNumber), From: r.RemoteAddr}, self}
		if who.Node != "" {
			by.Name = "node " + who.Node
			if !s.counts(cert) {
				// It may learn why, from the plan that its authority has signed, and nothing else.
				if r.Method != http.MethodGet || r.URL.Path != "/v1/hello" && r.URL.Path != "/v1/plan" {
					refuse(w, http.StatusForbidden, refusal{Error: who.Node + ": " + errReplaced.Error()})
					return
				}
			} else if taken := s.claim(who.Node, r.Header.Get(machineHeader)); taken != "" {
				refuse(w, http.StatusConflict, refusal{Error: who.Node + " runs on another machine", Machine: taken})
				return
			}
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, by)))
	})
}

// forbidden says which right is lacking.
func forbidden(by caller, r *http.Request, right string) refusal {
	has := "is that of node " + by.Node + ", which has no right to this"
	if by.Node == "" {
		has = fmt.Sprintf("gives the right %q", by.Right)
	}
	return refusal{
		Error: fmt.Sprintf("%s %s takes the right %q of an administrator; the certificate %s", r.Method, r.URL.Path, right, has),
		Class: fault.Failed.String(),
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, code int, why refusal) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(why)
}

// readPlan reads a signed plan as it travels.
func readPlan(r io.Reader) (plan.Signed, error) {
	var signed plan.Signed
	data, err := io.ReadAll(io.LimitReader(r, maxPlan+1))
	var large *http.MaxBytesError
	if errors.As(err, &large) || len(data) > maxPlan {
		return signed, fault.New(fault.Input, "the plan has more than %d bytes", maxPlan)
	}
	if err != nil {
		return signed, err
	}
	if err := json.Unmarshal(data, &signed); err != nil {
		return signed, fault.New(fault.Input, "the plan is not JSON")
	}
	return signed, nil
}

// limited is a listener that closes connections beyond what it allows at once.
type limited struct {
	net.Listener
	mu    sync.Mutex
	total int
	from  map[netip.Addr]int
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		remote, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
		address := remote.Addr().Unmap()
		if l.count(address, 1) {
			unreachable(conn)
			return &counted{Conn: conn, end: sync.OnceFunc(func() { l.count(address, -1) })}, nil
		}
		conn.Close()
	}
}

// count adds to an address's connections if that is allowed.
func (l *limited) count(address netip.Addr, more int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if more > 0 && (l.total >= maxConns || l.from[address] >= maxFromOne) {
		return false
	}
	l.total += more
	if l.from[address] += more; l.from[address] == 0 {
		delete(l.from, address)
	}
	return true
}

type counted struct {
	net.Conn
	end func()
}

func (c *counted) Close() error {
	c.end()
	return c.Conn.Close()
}
