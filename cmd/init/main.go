// Command init is /init of an appliance's initramfs: it finds the boot
// partition, stacks the layers of the version that GRUB chose, prepares the
// state partition, and hands the machine to systemd.
//
// In: the kernel's command line (slipway.version, slipway.esp) and, on the
// boot partition, /images/<version>/manifest.json and /layers. Out: a root
// file system, the state partition at /run/slipway/state, the boot partition
// at /run/slipway/esp, and /run/slipway/boot.json.
//
// If a step fails, its message stands on all consoles for half a minute; then
// the machine starts again, so that GRUB's counting can fall back to the
// version that worked.
//
// A copy of the program ends the machine too: see package halt.
package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/cmd/init/internal/halt"
	"github.com/slipwayhq/slipway/cmd/init/internal/report"
	"github.com/slipwayhq/slipway/cmd/init/internal/state"
)

const (
	espWait  = 60 * time.Second
	failWait = 30 * time.Second
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this is /init of an appliance's initramfs; the kernel starts it")
		os.Exit(2)
	}
	if os.Args[0] == halt.Program && len(os.Args) > 1 {
		report.New("/sys", "/dev").Alarm(fmt.Sprint(halt.Finish(os.Args[1])))
		select {}
	}
	started := time.Now()
	// All allocations are short-lived and few; collecting them costs more time
	// than the memory is worth.
	debug.SetGCPercent(-1)
	b := &bootRun{started: started, out: report.New("/sys", "/dev")}
	err := b.run()
	b.out.Alarm(fmt.Sprintf("This machine cannot start version %s:\n%v", b.args.version, err))
	if b.stateMounted {
		if noted := state.NoteFailure(bootfacts.FailurePath, b.args.version, err); noted != nil {
			b.out.Say("%v", noted)
		}
	}
	if b.args.debug {
		b.shell()
	}
	b.out.Alarm(fmt.Sprintf("Starting again in %d seconds.", int(failWait.Seconds())))
	time.Sleep(failWait)
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		b.out.Alarm(err.Error())
	}
	select {}
}

// run goes through the steps; it returns only if one failed.
func (b *bootRun) run() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("defect in the init: %v\n%s", p, debug.Stack())
		}
	}()
	if err := mountKernelFilesystems(); err != nil {
		return err
	}
	b.out = report.New("/sys", "/dev") // only now can it see which consoles there are
	steps := []func() error{
		b.readArguments,
		b.findBootPartition,
		b.mountBootPartition,
		b.mountLayers,
		b.prepareState,
		b.mountRoot,
		b.bindStateDirs,
		b.writeFacts,
		b.switchRoot,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
