package ether

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestBlockHoldsInOneDirection(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b, c := join(t, s, "a/0", 1, access1), join(t, s, "b/0", 2, access1), join(t, s, "c/0", 3, access1)
		s.Block("a", "b")
		a.say(everyone, "1")
		b.say(everyone, "2")
		expect(t, a, "[2]")
		expect(t, b, "[]")
		expect(t, c, "[1 2]")
		s.Unblock("a", "b")
		a.say(b.mac, "3")
		expect(t, b, "[3]")
		if st := s.Stats()["b/0"]; st.Lost != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAFaultOfAMachineIsOneOfAllItsPorts(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a := join(t, s, "a/0", 1, access1)
		b0, b1 := join(t, s, "b/0", 2, access1), join(t, s, "b/1", 3, access1)
		bb := join(t, s, "bb/0", 4, access1)
		s.Block(Any, "b")
		a.say(everyone, "1")
		expect(t, b0, "[]")
		expect(t, b1, "[]")
		expect(t, bb, "[1]")
		s.Unblock(Any, "b")
		s.Block("a/0", "b/1")
		a.say(everyone, "2")
		expect(t, b0, "[2]")
		expect(t, b1, "[]")
	})
}

func TestACutCablePassesNothingUntilItIsRestored(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b, c := join(t, s, "a/0", 1, access1), join(t, s, "b/0", 2, access1), join(t, s, "c/0", 3, access1)
		s.Cut("a")
		a.say(everyone, "out")
		b.say(everyone, "in")
		expect(t, a, "[]")
		expect(t, b, "[]")
		expect(t, c, "[in]")
		a.Close()
		a = join(t, s, "a/0", 1, access1)
		b.say(everyone, "after a power cycle")
		expect(t, a, "[]")
		s.Restore("a")
		b.say(everyone, "again")
		expect(t, a, "[again]")
	})
}

func TestDelayedFramesComeInTimeAndInOrder(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1)
		s.Impair("a", "b", Path{Delay: 100 * time.Millisecond, Jitter: 50 * time.Millisecond})
		for i := range 20 {
			a.say(b.mac, fmt.Sprint(i))
		}
		time.Sleep(99 * time.Millisecond)
		expect(t, b, "[]")
		time.Sleep(51 * time.Millisecond)
		expect(t, b, "[0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19]")
		b.say(a.mac, "back")
		expect(t, a, "[back]")
	})
}

func TestAShorterDelayDoesNotOvertake(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b, c := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1), join(t, s, "c", 3, access1)
		s.Impair("a", "b", Path{Delay: time.Second})
		a.say(b.mac, "first")
		s.Impair("a", "b", Path{})
		a.say(b.mac, "second")
		c.say(b.mac, "of another path")
		expect(t, b, "[of another path]")
		time.Sleep(time.Second)
		expect(t, b, "[first second]")
		a.say(b.mac, "third")
		expect(t, b, "[third]")
	})
}

func TestDelaysOfSeveralFaultsAddUp(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1)
		s.Impair("a", Any, Path{Delay: time.Second})
		s.Impair(Any, "b", Path{Delay: time.Second})
		a.say(b.mac, "x")
		time.Sleep(1999 * time.Millisecond)
		expect(t, b, "[]")
		time.Sleep(time.Millisecond)
		expect(t, b, "[x]")
	})
}

func TestDelayedFramesAreBounded(t *testing.T) {
	bubble(t, Options{Queue: 1000}, func(t *testing.T, s *Switch) {
		a, b := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1)
		s.Impair("a", "b", Path{Delay: time.Second})
		for range 15 {
			a.say(b.mac, string(make([]byte, 100-headerSize-lengthSize))) // ten fit
		}
		if st := s.Stats()["b"]; st.Overflow != 5 {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		a.say(b.mac, "there is room again")
		time.Sleep(time.Second)
		synctest.Wait()
		if st := s.Stats()["b"]; st.Overflow != 5 || st.FramesOut != 11 || b.later.bytes != 0 {
			t.Errorf("%+v, %d bytes held", st, b.later.bytes)
		}
	})
}

func TestWhatIsUnderWayIsLostWithTheCable(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1)
		s.Impair("a", "b", Path{Delay: time.Second})
		a.say(b.mac, "x")
		s.Cut("b")
		time.Sleep(2 * time.Second)
		s.Restore("b")
		expect(t, b, "[]")
		a.say(b.mac, "y")
		b.Close()
		b = join(t, s, "b", 2, access1)
		time.Sleep(2 * time.Second)
		expect(t, b, "[]")
	})
}

// losses are which of 200 frames from a to b are lost.
func losses(t *testing.T, seed uint64, noise bool) (lost string) {
	bubble(t, Options{Seed: seed}, func(t *testing.T, s *Switch) {
		a, b, c := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1), join(t, s, "c", 3, access1)
		s.Impair(Any, Any, Path{Loss: 0.3})
		for i := range 200 {
			if noise {
				c.say(b.mac, "noise")
				b.payloads()
			}
			a.say(b.mac, fmt.Sprint(i))
			if b.payloads() == "[]" {
				lost += fmt.Sprint(i, " ")
			}
		}
		if n := s.Stats()["b"].Lost; !noise && (n < 35 || n > 85) {
			t.Errorf("%d of 200 frames are lost at 30 %%", n)
		}
	})
	return lost
}

func TestLossIsTheSameForTheSameSeedWhateverElseIsSent(t *testing.T) {
	first := losses(t, 1, false)
	if again := losses(t, 1, true); again != first {
		t.Errorf("lost %s, then %s", first, again)
	}
	if other := losses(t, 2, false); other == first {
		t.Error("another seed loses the same frames")
	}
}

func TestHealEndsAllFaults(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1)
		s.Cut("a")
		s.Block(Any, "b")
		s.Impair("a", "b", Path{Delay: time.Hour, Loss: 1})
		s.Heal()
		a.say(b.mac, "x")
		expect(t, b, "[x]")
	})
}
