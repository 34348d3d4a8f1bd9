package lock_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/internal/fault"
)

// hashes hands out one digest after the other, and counts.
type hashes struct{ given int }

func (h *hashes) resolve(lock.Image) (string, error) {
	h.given++
	return fmt.Sprintf("%064x", h.given), nil
}

func never(lock.Image) bool  { return false }
func always(lock.Image) bool { return true }

func TestImagesKeepTheirDigestUntilTheyAreLookedForAgain(t *testing.T) {
	w := newWorld(t)
	w.want.Images = []lock.Image{
		{Name: "acme/portal:2", Source: "registry:registry.example/portal:2", Sets: []string{"web"}, File: "/some/where/profiles/web.yaml"},
		{Name: "acme/agent", Source: "layout:vendor/agent 1", Sets: []string{"web"}, File: "/some/where/profiles/web.yaml"},
	}
	l := w.resolve(w.publish(1, first...), nil)
	if err := l.Check(w.want); err == nil || !strings.Contains(err.Error(), "acme/portal:2") || fault.Of(err) != fault.Input {
		t.Errorf("without the images: %v", err)
	}
	h := &hashes{}
	pin := func(l, previous *lock.Lock, again func(lock.Image) bool) *lock.Lock {
		t.Helper()
		next := l.Clone()
		if err := next.PinImages(w.want.Images, previous, again, h.resolve); err != nil {
			t.Fatal(err)
		}
		return next
	}
	one := pin(l, nil, never)
	if err := one.Check(w.want); err != nil {
		t.Fatal(err)
	}
	read, err := lock.Parse("images.lock", one.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if string(read.Bytes()) != string(one.Bytes()) || len(read.Images) != 2 || read.Images[0].Name != "acme/agent" || read.Images[0].Source != "layout:vendor/agent 1" {
		t.Errorf("read back: %+v", read.Images)
	}
	if again := pin(read, read, never); h.given != 2 || again.Checksum() != one.Checksum() {
		t.Errorf("%d were looked for", h.given)
	}
	moved := pin(read, read, always)
	summary := lock.Diff(read, moved)
	if h.given != 4 || summary.Empty() || !strings.Contains(summary.String(), "image     acme/agent 000000000000 → 000000000000 (web)") {
		t.Errorf("%d were looked for; %s", h.given, summary)
	}
	w.want.Images[0].Source = "tarball:vendor/portal.tar"
	if err := read.Check(w.want); err == nil || !strings.Contains(err.Error(), "tarball:vendor/portal.tar") {
		t.Errorf("from elsewhere: %v", err)
	}
	if elsewhere := pin(read, read, never); h.given != 5 {
		t.Errorf("the image from elsewhere kept its digest: %+v", elsewhere.Images)
	}
	w.want.Images = w.want.Images[1:]
	if err := read.Check(w.want); err == nil || !strings.Contains(err.Error(), "no profile asks for") {
		t.Errorf("one that nobody wants: %v", err)
	}
}
