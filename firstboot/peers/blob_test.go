package peers

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/internal/fault"
)

// taker takes blobs into memory.
type taker struct {
	mu      sync.Mutex
	content []byte
}

func (k *taker) have() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.content
}

func (k *taker) receive(_ context.Context, sha256 string, offset int64, body io.Reader) (int64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if sha256 != "known" || offset != int64(len(k.content)) {
		return int64(len(k.content)), fault.New(fault.Input, "no such blob").WithMend("offer it")
	}
	b, err := io.ReadAll(body)
	k.content = append(k.content, b...)
	return int64(len(k.content)), err
}

func TestABlobIsSentFromWhereItStoppedByThoseWhoMayChangeThings(t *testing.T) {
	s, k := setStage(t), &taker{}
	s.agent.Service.Receive = k.receive
	admin := s.admin(t, pki.AdminWrite)
	whole := bytes.Repeat([]byte("layer "), 100_000)

	// The connection is lost in the middle; what arrived counts.
	lost := errors.New("no more")
	if _, err := admin.Send(t.Context(), "known", 0, io.MultiReader(bytes.NewReader(whole[:200_000]), failing{lost})); err == nil {
		t.Fatal("half a blob is sent, and nobody minds")
	}
	for deadline := time.Now().Add(time.Minute); len(k.have()) == 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond) // the node has yet to notice
	}
	begun := len(k.have())
	have, err := admin.Send(t.Context(), "known", int64(begun), bytes.NewReader(whole[begun:]))
	if err != nil || begun == 0 || have != int64(len(whole)) || !bytes.Equal(k.have(), whole) {
		t.Errorf("%d of %d, %v", have, len(whole), err)
	}
	if _, err := admin.Send(t.Context(), "unknown", 0, strings.NewReader("x")); fault.Of(err) != fault.Input || fault.Mend(err) != "offer it" {
		t.Errorf("%v", err)
	}
	if _, err := s.admin(t, pki.AdminRead).Send(t.Context(), "known", 0, strings.NewReader("x")); err == nil || fault.Of(err) == fault.Network && !strings.Contains(err.Error(), "403") {
		t.Errorf("whoever may look sends: %v", err)
	}
	if len(k.have()) != len(whole) {
		t.Errorf("%d bytes", len(k.have()))
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
