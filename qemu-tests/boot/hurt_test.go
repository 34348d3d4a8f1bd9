package boottest

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// hurt does to a machine with a volatile disk whatever the lab can do to one machine
// but cut its power, and sees that it has felt it. The machine is ready before and after.
func hurt(t *testing.T, m *labtest.Machine) {
	t.Run("killed programs are counted", func(t *testing.T) {
		m := m.In(t)
		m.Succeed("sleep infinity > /dev/null 2>&1 & sleep infinity > /dev/null 2>&1 & true")
		for _, want := range []int{2, 0} {
			if killed, err := m.Lab().Kill(t.Context(), "sleep"); err != nil || killed != want {
				t.Errorf("killed %d, %v; want %d", killed, err, want)
			}
		}
		m.Kill("systemd-timesyncd")
		m.WaitForUnit("systemd-timesyncd.service")
	})
	t.Run("the guest sees its carrier go and come", func(t *testing.T) {
		m := m.In(t)
		carrier := func(want string) {
			t.Helper()
			m.WaitUntilSucceeds("grep --quiet " + want + " /sys/class/net/e*/carrier")
		}
		carrier("1")
		m.Unplug()
		m.Unplug()
		carrier("0")
		m.Plug(0)
		carrier("1")
	})
	t.Run("a full disk takes no byte more", func(t *testing.T) {
		m := m.In(t)
		m.FillDisk(notes)
		m.FillDisk(notes)
		m.MustFail("head -c 8192 /dev/zero > " + notes + "/more && sync " + notes + "/more")
		m.FreeDisk(notes)
		m.Succeed("head -c 8192 /dev/zero > " + notes + "/more && sync " + notes + "/more")
	})
	t.Run("a slow disk is slow", func(t *testing.T) {
		m := m.In(t)
		m.SlowDisk(100*time.Millisecond, 0)
		// Each of the ten is written by itself: the guest measures at least a second.
		m.Succeed("begin=$(date +%s%N); dd if=/dev/zero of=" + notes + "/over bs=4096 count=10 oflag=direct conv=notrunc; " +
			"test $(( $(date +%s%N) - begin )) -ge 1000000000")
		m.MendDisk()
	})
	t.Run("the clock jumps and is mended", func(t *testing.T) {
		m := m.In(t)
		ahead := func() time.Duration {
			t.Helper()
			seconds, err := strconv.ParseInt(strings.TrimSpace(m.Succeed("date +%s")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return time.Until(time.Unix(seconds, 0))
		}
		for _, by := range []time.Duration{48 * time.Hour, -96 * time.Hour} {
			before := ahead()
			m.StepClock(by)
			if jump := ahead() - before; (jump - by).Abs() > time.Hour {
				t.Errorf("the clock has jumped by %v, want %v", jump, by)
			}
		}
		m.MendClock()
		if wrong := ahead(); wrong.Abs() > time.Hour {
			t.Errorf("the clock is still wrong by %v", wrong)
		}
	})
	t.Run("a paused guest stands still", func(t *testing.T) {
		m := m.In(t)
		m.Pause()
		m.Pause()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := m.Lab().WaitForGuest(ctx); err == nil {
			t.Error("a guest without processors answers")
		}
		m.Resume()
		m.WaitForGuest()
	})
	t.Run("all is healed at once", func(t *testing.T) {
		m := m.In(t)
		m.FillDisk(notes)
		m.StepClock(-48 * time.Hour)
		m.Unplug()
		m.SlowDisk(time.Millisecond, 0)
		m.Pause()
		m.Heal()
		m.Succeed("test ! -e \"$(findmnt --noheadings --output TARGET --target " + notes + ")/.lab-ballast\"")
		m.WaitUntilSucceeds("grep --quiet 1 /sys/class/net/e*/carrier")
	})
	t.Run("a broken disk answers with errors, and a reset leaves it its cache", func(t *testing.T) {
		m := m.In(t)
		before := m.Succeed("cat /proc/sys/kernel/random/boot_id; head -c 1048576 /dev/zero | tr '\\0' r > /run/new; dd if=/run/new of=" + notes + "/over bs=1M oflag=direct conv=notrunc")
		m.BreakDisk()
		m.MustFail("dd if=/dev/zero of=" + notes + "/broken bs=4096 count=1 oflag=direct")
		m.MendDisk()
		m.Reset()
		m.WaitUntilSucceeds("! grep --quiet " + strings.Fields(before)[0] + " /proc/sys/kernel/random/boot_id")
		wants(m, "tr -d r < "+notes+"/over | wc --bytes", "0")
		waitUntilReady(m)
	})
}
