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

	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// triesAtOnce is how many tries may be under way: each of them costs the guests, which
// share the host's processors.
const triesAtOnce = 3

// keepTrying begins a try every other second, since one that hangs must not keep the
// next from trying, until one of them succeeds. It ends the others, and returns the last
// error if ctx ends first.
func keepTrying(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, triesAtOnce) // none is kept from ending
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
			if underWay < triesAtOnce {
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
		err := keepTrying(ctx, func(context.Context) error {
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
		err := keepTrying(t.Context(), func(context.Context) error {
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
