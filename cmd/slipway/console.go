package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

// escapeKey is Ctrl-], as in telnet(1) and virsh(1).
const escapeKey = 0x1d

// resizeTime bounds the telling of the terminal's size to a guest that may hang.
const resizeTime = 10 * time.Second

func consoleCommand() *cli.Command {
	return &cli.Command{
		Name:      "console",
		Usage:     "sit down at the serial console of a node of the lab",
		ArgsUsage: "CLUSTER.YAML NODE",
		Description: `Connects this terminal to the node's serial port, beginning with the last lines
that it has said. Ctrl-] leaves. Ctrl-C and everything else goes to the node. The
node learns the size of the terminal, as far as its guest agent runs.

Appliances have no password: the console shows how the node is, "slipway ssh" is
the way in.

Examples:
  slipway console cluster.yaml a-db1
  slipway console cluster.yaml a-db1 < /dev/null    # only the last lines`,
		BashComplete: completeNodes,
		Action: func(c *cli.Context) error {
			l, name, err := beginNode(c)
			if err != nil {
				return err
			}
			conn, err := l.client.Console(c.Context, name)
			if err != nil {
				return err
			}
			defer conn.Close()
			if term.IsTerminal(int(os.Stdin.Fd())) {
				fmt.Fprintf(c.App.ErrWriter, "console of %s; Ctrl-] leaves\n", name)
				restore, err := ownTerminal(c.Context, l.client, name)
				if err != nil {
					return err
				}
				defer restore()
			}
			return attach(c.Context, conn, os.Stdin, os.Stdout)
		},
	}
}

// ownTerminal hands every key to us as it is pressed, and keeps the guest told of
// the terminal's size. restore gives the terminal back.
func ownTerminal(ctx context.Context, client *daemon.Client, node string) (restore func(), err error) {
	fd := int(os.Stdin.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	resized <- syscall.SIGWINCH
	go func() {
		for {
			select {
			case <-resized:
				if columns, rows, err := term.GetSize(fd); err == nil {
					bounded, done := context.WithTimeout(ctx, resizeTime)
					client.Resize(bounded, node, daemon.Size{Rows: rows, Columns: columns}) // a guest without agent keeps its size
					done()
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		signal.Stop(resized)
		term.Restore(fd, before)
		fmt.Println()
	}, nil
}

// attach carries keys to the console and its text back, until the escape key or
// the end of the console. Where keys come from a file, their end is told to the
// console, which then ends too.
func attach(ctx context.Context, conn net.Conn, keys io.Reader, out io.Writer) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	said, sent := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(out, conn)
		said <- err
	}()
	go func() { sent <- sendKeys(conn, keys) }()
	ended := fault.New(fault.Failed, "the machine was powered off")
	select {
	case err := <-sent:
		if errors.Is(err, errLeft) {
			return nil
		}
		if err != nil {
			return err
		}
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
		return errors.Join(<-said, ctx.Err())
	case err := <-said:
		if err == nil {
			err = ended
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
}

var errLeft = errors.New("the escape key was pressed")

// sendKeys ends with errLeft at the escape key and with nil where there are no
// more keys.
func sendKeys(conn io.Writer, keys io.Reader) error {
	buf := make([]byte, 4096)
	for {
		n, err := keys.Read(buf)
		text, _, left := bytes.Cut(buf[:n], []byte{escapeKey})
		if _, err := conn.Write(text); err != nil {
			return err
		}
		switch {
		case left:
			return errLeft
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
