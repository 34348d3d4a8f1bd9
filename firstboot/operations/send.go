package operations

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/slipwayhq/slipway/builder/inspect"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/versions"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	// sendPatience is how long an upgrade goes on trying to send while nothing arrives.
	sendPatience = 3 * time.Minute
	sendPause    = 3 * time.Second
	sayEvery     = 10 * time.Second
)

// install puts a version beside the others of a node: it offers the image, sends what the
// node lacks, and goes on where it stopped when the connection is lost. rate bounds the bytes a second; 0
// is as fast as it goes.
func (c *Cluster) install(ctx context.Context, node string, r *Release, rate int64, say func(string)) error {
	until := time.Now().Add(sendPatience)
	for {
		moved, err := c.installOnce(ctx, node, r, rate, say)
		if err == nil || ctx.Err() != nil {
			return err
		}
		// A node that is cut off, or still at work on what a lost connection has left behind, may be
		// there again soon; whatever else it says is its last word.
		if moved {
			until = time.Now().Add(sendPatience)
		}
		var busy = fault.Of(err) == fault.Failed
		if (fault.Of(err) != fault.Network && !busy) || time.Now().After(until) {
			return err
		}
		say(fmt.Sprintf("%s; trying again", err))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(sendPause):
		}
	}
}

// installOnce is one try; moved says whether anything arrived.
func (c *Cluster) installOnce(ctx context.Context, node string, r *Release, rate int64, say func(string)) (moved bool, err error) {
	var offer versions.Offer
	for {
		if err := c.Act(ctx, node, versions.InstallAction, r.Image, &offer, say); err != nil {
			return moved, err
		}
		for _, v := range offer.Removed {
			say(fmt.Sprintf("%s: took version %s away", node, v))
		}
		if offer.Installed {
			return moved, nil
		}
		if len(offer.Missing) == 0 {
			return moved, errors.New(node + " neither has the version nor lacks anything")
		}
		var total int64
		for _, b := range offer.Missing {
			total += b.Size - b.Have
		}
		say(fmt.Sprintf("sending %s to %s, in %d parts", inspect.Bytes(total), node, len(offer.Missing)))
		for _, b := range offer.Missing {
			if err := c.send(ctx, node, r, b, rate, say); err != nil {
				return moved, err
			}
			moved = true
		}
	}
}

// send sends the rest of a blob.
func (c *Cluster) send(ctx context.Context, node string, r *Release, b versions.Missing, rate int64, say func(string)) error {
	if b.Have < 0 || b.Have >= b.Size {
		return fmt.Errorf("%s has %d of %d bytes of %s", node, b.Have, b.Size, b.Name())
	}
	content, err := r.blob(b.SHA256)
	if err != nil {
		return err
	}
	remote, err := c.remote(node, pki.AdminWrite)
	if err != nil {
		return err
	}
	body := &paced{ctx: ctx, r: io.NewSectionReader(content, b.Have, b.Size-b.Have), rate: rate, begun: time.Now(), said: time.Now(), say: func(n int64) {
		say(fmt.Sprintf("%s: %s of %s", r.what(b.SHA256), inspect.Bytes(b.Have+n), inspect.Bytes(b.Size)))
	}}
	have, err := remote.Send(ctx, b.SHA256, b.Have, body)
	if err == nil && have != b.Size {
		err = fault.New(fault.Network, "%s has %d of %d bytes of %s", node, have, b.Size, b.Name())
	}
	return err
}

// paced reads no faster than asked, and says now and then how far it is.
type paced struct {
	ctx   context.Context
	r     io.Reader
	rate  int64
	begun time.Time
	said  time.Time
	n     int64
	say   func(n int64)
}

func (p *paced) Read(b []byte) (int, error) {
	if p.rate > 0 {
		b = b[:min(int64(len(b)), max(p.rate/4, 1))]
		due := p.begun.Add(time.Duration(float64(p.n) / float64(p.rate) * float64(time.Second)))
		select {
		case <-p.ctx.Done():
			return 0, p.ctx.Err()
		case <-time.After(time.Until(due)):
		}
	}
	n, err := p.r.Read(b)
	if p.n += int64(n); time.Since(p.said) > sayEvery {
		p.said = time.Now()
		p.say(p.n)
	}
	return n, err
}
