package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	"github.com/slipwayhq/slipway/internal/fault"
)

// dial connects the client to an address in the cluster's network.
func (s *Server) dial(w http.ResponseWriter, r *http.Request) {
	to := r.URL.Query().Get("to")
	if _, err := netip.ParseAddrPort(to); err != nil {
		refuse(w, fault.New(fault.Usage, "dial: %w", err))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), dialTime)
	defer cancel()
	inner, err := s.lab.Dial(ctx, to)
	if err != nil {
		refuse(w, fault.New(fault.Failed, "%w", err))
		return
	}
	s.join(w, r, inner, "")
}

// console connects the client to a serial port. QEMU serves one at a time and
// lets others wait without a word, so that a second one is refused here.
func (s *Server) console(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("node")
	if err := s.known(name); err != nil {
		refuse(w, err)
		return
	}
	s.mu.Lock()
	taken := s.consoles[name]
	s.consoles[name] = true
	s.mu.Unlock()
	if taken {
		refuse(w, fault.New(fault.Failed, "somebody else is at the console of %s", name))
		return
	}
	defer func() {
		s.mu.Lock()
		delete(s.consoles, name)
		s.mu.Unlock()
	}()
	past, err := s.lab.ConsoleLog(name)
	if err != nil {
		refuse(w, err)
		return
	}
	port, err := s.lab.Console(name)
	if err != nil {
		refuse(w, err)
		return
	}
	s.join(w, r, port, lastLines(past, consoleRecall))
}

// lastLines is at most limit bytes of the end of a text, from the begin of a line.
func lastLines(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	text = text[len(text)-limit:]
	if _, rest, ok := strings.Cut(text, "\n"); ok {
		return rest
	}
	return text
}

// join upgrades the request's connection and copies bytes until both sides have
// ended or the daemon does.
func (s *Server) join(w http.ResponseWriter, r *http.Request, inner net.Conn, first string) {
	defer inner.Close()
	if r.Header.Get("Upgrade") != streamProtocol {
		refuse(w, fault.New(fault.Usage, "%s is a stream: ask for an upgrade to %s", r.URL.Path, streamProtocol))
		return
	}
	outer, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, err)
		return
	}
	defer outer.Close()
	if _, err := fmt.Fprintf(outer, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n%s", streamProtocol, first); err != nil {
		return
	}
	stop := context.AfterFunc(s.ctx, func() { outer.Close(); inner.Close() })
	defer stop()
	copyBoth(bufferedConn{outer, buffered}, inner)
}

// bufferedConn reads first what was read of the connection already.
type bufferedConn struct {
	net.Conn
	in io.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.in.Read(p) }

// CloseWrite tells the other side that nothing follows.
func (c bufferedConn) CloseWrite() error { return closeWrite(c.Conn) }

// copyBoth copies each side to the other until both have said all.
func copyBoth(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, err := io.Copy(way[0], way[1])
			if err == nil {
				err = closeWrite(way[0])
			}
			if err != nil { // the other direction cannot go on
				a.Close()
				b.Close()
			}
		})
	}
	wg.Wait()
}

// closeWrite ends one direction, or both if the connection knows no halves.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
