package drill

import (
	"context"
	"io"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"
)

// tunnels lead to services on the nodes themselves by way of their SSH servers:
// where there are balancers, clients do not get past them.
type tunnels struct {
	dial func(ctx context.Context, address string) (net.Conn, error)
	key  ssh.Signer

	mu   sync.Mutex
	open map[string]*ssh.Client // by the address of the SSH server
}

// sshUser is the user that a node has for the keys of a lab (seeding.Options).
const sshUser = "slipway"

// connect opens an address as the node with that SSH server sees it.
func (t *tunnels) connect(ctx context.Context, server, address string) (net.Conn, error) {
	client, err := t.client(ctx, server)
	if err != nil {
		return nil, err
	}
	channel, err := client.DialContext(ctx, "tcp", address)
	if err != nil {
		t.forget(server, client)
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

func (t *tunnels) client(ctx context.Context, server string) (*ssh.Client, error) {
	t.mu.Lock()
	client := t.open[server]
	t.mu.Unlock()
	if client != nil {
		return client, nil
	}
	conn, err := t.dial(ctx, server)
	if err != nil {
		return nil, err
	}
	// NewClientConn heeds no context.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	c, channels, requests, err := ssh.NewClientConn(conn, server, &ssh.ClientConfig{
		User: sshUser, Auth: []ssh.AuthMethod{ssh.PublicKeys(t.key)},
		// Who answers is proven by the TLS inside: the database's certificate.
		HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	client = ssh.NewClient(c, channels, requests)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[string]*ssh.Client{}
	}
	if other := t.open[server]; other != nil {
		client.Close()
		return other, nil
	}
	t.open[server] = client
	return client, nil
}

// forget ends a connection that does not lead anywhere any more.
func (t *tunnels) forget(server string, client *ssh.Client) {
	client.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[server] == client {
		delete(t.open, server)
	}
}

func (t *tunnels) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, client := range t.open {
		client.Close()
	}
	t.open = nil
}
