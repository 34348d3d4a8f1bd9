package drill

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// tunnels lead to services on the nodes themselves by way of their SSH servers:
// where there are balancers, clients do not get past them.
type tunnels struct {
	dial func(ctx context.Context, address string) (net.Conn, error)
	key  ssh.Signer

	mu   sync.Mutex
	ways map[string]*way // by the address of the SSH server
}

// way is a connection to an SSH server, once ready is closed, or why there is none.
type way struct {
	ready  chan struct{}
	client *ssh.Client
	err    error
}

// A login takes an emulated machine that has other work for a minute. It is not broken off
// for a client that cannot wait any longer, or none would ever succeed, and after one that
// failed there is a pause: the drill must not be what keeps a machine from its recovery.
const (
	dialTime   = 10 * time.Second
	loginTime  = 90 * time.Second
	loginPause = 5 * time.Second
)

// sshUser is the user that a node has for the keys of a lab (seeding.Options).
const sshUser = "slipway"

// connect opens an address as the node with that SSH server sees it.
func (t *tunnels) connect(ctx context.Context, server, address string) (net.Conn, error) {
	w, err := t.way(ctx, server)
	if err != nil {
		return nil, err
	}
	channel, err := w.client.DialContext(ctx, "tcp", address)
	if err != nil {
		// A service that is not there is no fault of the way to it.
		if refused := (*ssh.OpenChannelError)(nil); !errors.As(err, &refused) {
			t.forget(server, w)
		}
		return nil, err
	}
	// A channel of SSH knows no deadlines, a pipe does.
	ours, theirs := net.Pipe()
	both := func(to io.WriteCloser, from io.Reader) {
		io.Copy(to, from)
		channel.Close()
		theirs.Close()
	}
	go both(channel, theirs)
	go both(theirs, channel)
	return ours, nil
}

// way is the way to an SSH server; whoever comes while another is logging in waits for that.
func (t *tunnels) way(ctx context.Context, server string) (*way, error) {
	t.mu.Lock()
	w := t.ways[server]
	if w == nil {
		w = &way{ready: make(chan struct{})}
		if t.ways == nil {
			t.ways = map[string]*way{}
		}
		t.ways[server] = w
		go func() {
			w.client, w.err = t.login(context.WithoutCancel(ctx), server)
			close(w.ready)
			if w.err != nil {
				time.Sleep(loginPause)
				t.forget(server, w)
			}
		}()
	}
	t.mu.Unlock()
	select {
	case <-w.ready:
		return w, w.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (t *tunnels) login(ctx context.Context, server string) (*ssh.Client, error) {
	bounded, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := t.dial(bounded, server)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(loginTime))
	c, channels, requests, err := ssh.NewClientConn(conn, server, &ssh.ClientConfig{
		User: sshUser, Auth: []ssh.AuthMethod{ssh.PublicKeys(t.key)},
		// Who answers is proven by the TLS inside: the database's certificate.
		HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	return ssh.NewClient(c, channels, requests), nil
}

// forget ends a way that does not lead anywhere any more.
func (t *tunnels) forget(server string, w *way) {
	if w.client != nil {
		w.client.Close()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ways[server] == w {
		delete(t.ways, server)
	}
}

// close ends all ways. A login that is under way ends with its machine.
func (t *tunnels) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for server, w := range t.ways {
		delete(t.ways, server)
		go func() {
			if <-w.ready; w.client != nil {
				w.client.Close()
			}
		}()
	}
}
