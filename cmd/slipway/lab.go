package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/crypto/ssh"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

// labSession is what commands on a lab need: its topology, its place, and the
// way to its daemon.
type labSession struct {
	*session
	file     string // of the topology, as it was named
	topology *topology.Topology
	place    daemon.Place
	client   *daemon.Client
	names    []string // nodes that were named
}

// beginLab reads the arguments of a lab command: a topology file, which is
// cluster.yaml if there are none, and names of its nodes.
func beginLab(c *cli.Context) (*labSession, error) {
	return beginLabOf(c, cmp.Or(c.Args().First(), topologyFile), c.Args().Tail())
}

// beginLabOf is beginLab for a file and names that were read already.
func beginLabOf(c *cli.Context, file string, names []string) (*labSession, error) {
	s, err := begin(c)
	if err != nil {
		return nil, err
	}
	l := &labSession{session: s, file: file}
	if l.topology, err = topology.Load(l.file); err != nil {
		return nil, err
	}
	for _, name := range names {
		if name == "--" {
			break
		}
		if _, ok := l.topology.Node(name); !ok {
			return nil, fault.New(fault.Usage, "%s has no node %q", l.file, name).WithMend("its nodes are %s", strings.Join(nodeNames(l.topology), ", "))
		}
		l.names = append(l.names, name)
	}
	if l.place, err = daemon.PlaceOf(l.topology.Name, l.file); err != nil {
		return nil, err
	}
	l.client = daemon.NewClient(l.place)
	return l, nil
}

// beginNode is beginLab for commands that work on one node of a lab.
func beginNode(c *cli.Context) (*labSession, string, error) {
	l, err := beginLab(c)
	if err != nil {
		return nil, "", err
	}
	if len(l.names) != 1 {
		return nil, "", fault.New(fault.Usage, "name one node").
			WithMend("run: slipway %s %s NODE; its nodes are %s", c.Command.Name, l.file, strings.Join(nodeNames(l.topology), ", "))
	}
	return l, l.names[0], nil
}

func nodeNames(t *topology.Topology) []string {
	var names []string
	for _, n := range t.Nodes {
		names = append(names, n.Name)
	}
	return names
}

// completeNodes offers the names of a topology's nodes behind the file's name,
// which the shell itself completes.
func completeNodes(c *cli.Context) {
	if c.NArg() == 0 || strings.HasPrefix(c.Args().Get(c.NArg()-1), "-") {
		completeFiles(c)
		return
	}
	t, err := topology.Load(c.Args().First())
	if err != nil {
		return
	}
	for _, name := range nodeNames(t) {
		fmt.Fprintln(c.App.Writer, name)
	}
}

// labDaemonCommand is what "slipway up" leaves running.
func labDaemonCommand() *cli.Command {
	return &cli.Command{
		Name: "lab-daemon", Hidden: true, Usage: "own the machines of a lab", ArgsUsage: "DIR",
		Description: "What \"slipway up\" starts in the background: slipway lab-daemon DIR",
		Action: func(c *cli.Context) error {
			s, err := begin(c)
			if err != nil {
				return err
			}
			if c.NArg() != 1 {
				return fault.New(fault.Usage, "name the directory of the lab")
			}
			return daemon.Run(c.Context, daemon.Place(c.Args().First()), s.log)
		},
	}
}

// labDialCommand is ssh's way into a lab's network (ssh_config(5), ProxyCommand).
func labDialCommand() *cli.Command {
	return &cli.Command{
		Name: "lab-dial", Hidden: true, Usage: "connect standard input and output to an address in a lab", ArgsUsage: "DIR ADDRESS:PORT",
		Description: "What \"slipway ssh\" has ssh connect with: slipway lab-dial DIR ADDRESS:PORT",
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return fault.New(fault.Usage, "name the directory of the lab, and an address with a port")
			}
			client := daemon.NewClient(daemon.Place(c.Args().First()))
			conn, err := dialPatiently(c.Context, client.Dial, c.Args().Get(1))
			if err != nil {
				return err
			}
			return joinStandard(conn, os.Stdin, os.Stdout)
		},
	}
}

// Times of the wait for a node that has power and does not listen yet.
const (
	dialPatience = 20 * time.Second
	dialPause    = 250 * time.Millisecond
)

// dialPatiently tries again while the node does not take the connection: one that
// has just got power is not up yet.
func dialPatiently(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error), address string) (net.Conn, error) {
	until := time.Now().Add(dialPatience)
	for {
		conn, err := dial(ctx, "tcp", address)
		if err == nil || errors.Is(err, daemon.ErrNotRunning) || fault.Of(err) != fault.Failed || time.Now().After(until) {
			return conn, err
		}
		select {
		case <-time.After(dialPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// joinStandard copies until the other side has said all. What this side has to
// say may end before.
func joinStandard(conn net.Conn, in io.Reader, out io.Writer) error {
	defer conn.Close()
	go func() {
		if _, err := io.Copy(conn, in); err == nil {
			if half, ok := conn.(interface{ CloseWrite() error }); ok {
				half.CloseWrite()
			}
		}
	}()
	_, err := io.Copy(out, conn)
	return err
}

// labKey returns the public half of the key that opens the lab's nodes, as a line
// of authorized_keys, and makes the key if there is none. It belongs to this lab
// alone and ends with it.
func labKey(place daemon.Place, cluster string) (string, error) {
	text, err := os.ReadFile(place.Key())
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = newKey(cluster); err == nil {
			err = atomicfile.WriteBytes(place.Key(), 0o600, text)
		}
	}
	if err != nil {
		return "", err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return "", fault.New(fault.Input, "%s: %w", place.Key(), err).WithMend("remove it; the next slipway up makes a new one")
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))) + " lab-of-" + cluster, nil
}

func newKey(comment string) ([]byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(block), nil
}
