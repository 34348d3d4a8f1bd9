package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/internal/atomicfile"
)

// OpenForwards listens on 127.0.0.1 for each forward and carries connections
// into the cluster's network until ctx ends. A forward keeps its port from one
// start of the lab to the next, so that what a user has noted stays true, unless
// another program has taken the port in the meantime.
func OpenForwards(ctx context.Context, place Place, wanted []Forward, dial func(context.Context, string) (net.Conn, error), log logrus.FieldLogger) ([]Forward, error) {
	before := rememberedPorts(place)
	remember := map[string]string{}
	var open []Forward
	for _, f := range wanted {
		listener, err := listenAgain(before[f.Guest])
		if err != nil {
			return nil, fmt.Errorf("a port of this computer for %s: %w", f.Guest, err)
		}
		f.Host = listener.Addr().String()
		remember[f.Guest] = f.Host
		open = append(open, f)
		context.AfterFunc(ctx, func() { listener.Close() })
		go forward(ctx, listener, f, dial, log)
	}
	data, err := json.MarshalIndent(remember, "", "  ")
	if err != nil {
		return nil, err
	}
	return open, atomicfile.WriteBytes(place.path(portsName), 0o600, append(data, '\n'))
}

// rememberedPorts reads where forwards were before; a file that is missing or
// broken only costs the old numbers.
func rememberedPorts(place Place) map[string]string {
	ports := map[string]string{}
	if data, err := os.ReadFile(place.path(portsName)); err == nil {
		json.Unmarshal(data, &ports)
	}
	return ports
}

// listenAgain listens at an address of 127.0.0.1 if it is free, else at a new one.
func listenAgain(before string) (net.Listener, error) {
	if host, _, err := net.SplitHostPort(before); err == nil && host == "127.0.0.1" {
		if l, err := net.Listen("tcp", before); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

func forward(ctx context.Context, listener net.Listener, f Forward, dial func(context.Context, string) (net.Conn, error), log logrus.FieldLogger) {
	for {
		outer, err := listener.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				log.Warnf("forward of %s: %v", f.Guest, err)
			}
			return
		}
		go func() {
			defer outer.Close()
			bounded, cancel := context.WithTimeout(ctx, dialTime)
			inner, err := dial(bounded, f.Guest)
			cancel()
			if err != nil {
				log.Infof("forward of %s: %v", f.Guest, err)
				return
			}
			defer inner.Close()
			stop := context.AfterFunc(ctx, func() { outer.Close(); inner.Close() })
			defer stop()
			copyBoth(outer, inner)
		}()
	}
}
