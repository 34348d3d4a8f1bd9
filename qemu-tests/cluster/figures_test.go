//go:build long

package clustertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// triesAtOnce is how many tries may be under way, since one that hangs must not keep the
// next from trying. Each costs the guests, which share the host's processors.
const triesAtOnce = 3

// keepTrying begins a try every other second, as long as fewer than most are under way,
// until one of them succeeds. It ends the others, and returns the last error if ctx ends
// first.
func keepTrying(ctx context.Context, most int, try func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, most) // none is kept from ending
	again := time.NewTicker(askAgain)
	defer again.Stop()
	begin := func() { go func() { ended <- try(ctx) }() }
	begin()
	var last error
	for underWay := 1; ; {
		select {
		case err := <-ended:
			if err == nil {
				return nil
			}
			underWay, last = underWay-1, err
		case <-again.C:
			if underWay < most {
				underWay++
				begin()
			}
		case <-ctx.Done():
			return fmt.Errorf("%w; the last try: %w", ctx.Err(), last)
		}
	}
}

func TestAtMostThreeTriesAreUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		defer close(hang)
		begun, began := make(chan int, 10), time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := keepTrying(ctx, triesAtOnce, func(context.Context) error {
			begun <- int(time.Since(began) / askAgain)
			<-hang
			return nil
		})
		if !errors.Is(err, context.DeadlineExceeded) || len(begun) != triesAtOnce {
			t.Errorf("%d tries were begun: %v", len(begun), err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		n, began := 0, time.Now()
		err := keepTrying(t.Context(), 1, func(context.Context) error {
			if n++; n < 5 {
				return errors.New("not yet")
			}
			return nil
		})
		if took := time.Since(began); err != nil || took != 4*askAgain {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

// choice is a node that is found by how the cluster is.
type choice struct {
	name string // as people say it
	node func(overview.Overview) string
}

var (
	thePrimary = choice{"the primary", primary}
	theHolder  = choice{"the holder of the address", holder}
)

// on is a node, however the cluster is.
func on(name string) choice { return choice{name, func(overview.Overview) string { return name }} }

// agentProgram is what the agent of a node is among its processes.
const agentProgram = "firstboot"

// keepFigures writes what a story has measured down where its test's results are kept.
func keepFigures(t testing.TB, name string, figures any) {
	t.Helper()
	data, err := json.MarshalIndent(figures, "", "  ")
	if err == nil {
		err = os.MkdirAll(labtest.OutDir(t), 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(labtest.OutDir(t), name+".json"), data, 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}
