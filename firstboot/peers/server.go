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

	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	headerLimit = 5 * time.Second // also of the handshake
	answerLimit = 15 * time.Second
	idleLimit   = time.Minute
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
		Handler: s.handler(), ReadHeaderTimeout: headerLimit, ReadTimeout: answerLimit, WriteTimeout: answerLimit, IdleTimeout: idleLimit,
		MaxHeaderBytes: maxHeader, ErrorLog: log.New(io.Discard, "", 0),
	}
	context.AfterFunc(ctx, func() { server.Close() })
	go server.Serve(tls.NewListener(&limited{Listener: listener, from: map[netip.Addr]int{}}, config))
	return nil
}

// handler answers requests whose certificates the authority has signed.
func (s *Service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/hello", func(w http.ResponseWriter, _ *http.Request) {
		self := s.current()
		if self == nil {
			refuse(w, http.StatusServiceUnavailable, refusal{Error: errNobody.Error()})
			return
		}
		answer(w, Hello{
			Format: helloFormat, Node: self.member.Self.Name, Machine: self.machine, Boot: self.boot,
			Generation: self.latest, State: s.Report().State, Expires: self.member.Expires,
		})
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.Report()) })
	mux.HandleFunc("GET /v1/plan", func(w http.ResponseWriter, _ *http.Request) {
		if self := s.current(); self != nil {
			answer(w, self.newest)
		}
	})
	mux.HandleFunc("PUT /v1/plan", func(w http.ResponseWriter, r *http.Request) {
		signed, err := readPlan(http.MaxBytesReader(w, r.Body, maxPlan))
		if err == nil {
			_, err = s.offer(signed)
		}
		switch fault.Of(err) {
		case fault.Input, fault.Integrity:
			refuse(w, http.StatusBadRequest, refusal{Error: err.Error()})
			return
		}
		if err != nil {
			refuse(w, http.StatusInternalServerError, refusal{Error: err.Error()})
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return s.authorized(mux)
}

// authorized lets nodes do everything and administrators read.
func (s *Service) authorized(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		self := s.current()
		if self == nil || r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			refuse(w, http.StatusForbidden, refusal{Error: "no certificate of this cluster"})
			return
		}
		who, err := pki.PeerOf(r.TLS.VerifiedChains[0][0])
		switch {
		case err != nil || who.ID != self.member.Plan.ID:
			refuse(w, http.StatusForbidden, refusal{Error: "the certificate names no node and no administrator of this cluster"})
		case who.Node != "":
			if taken := s.claim(who.Node, r.Header.Get(machineHeader)); taken != "" {
				refuse(w, http.StatusConflict, refusal{Error: who.Node + " runs on another machine", Machine: taken})
				return
			}
			next.ServeHTTP(w, r)
		case who.Right == pki.AdminRead && r.Method == http.MethodGet:
			next.ServeHTTP(w, r)
		default:
			refuse(w, http.StatusForbidden, refusal{Error: "the certificate gives no right to this"})
		}
	})
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
