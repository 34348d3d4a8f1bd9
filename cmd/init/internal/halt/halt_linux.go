// Package halt ends the machine cleanly. systemd cannot unmount the root file
// system that it runs from, nor what that lies on; so at the very end it turns
// back to a copy of the init outside of it (systemd-shutdown(8), "/run/initramfs/shutdown"),
// which unmounts the rest. systemd alone leaves the state read-only and sound
// too, but every shutdown ends in lines about file systems and loop devices
// that it could not free, among which a real failure would not be seen.
package halt

import (
	"fmt"
	"os"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// Dir becomes the root of the copy, and Program is its path there.
	Dir     = "/run/initramfs"
	Program = "/shutdown"

	rounds = 8 // a mount may keep another one busy
)

// Install puts a copy of the running program where systemd looks for it.
func Install(self string) error {
	program, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(Dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(Dir+Program, program, 0o700)
}

// Finish unmounts what is left and does what verb says: "poweroff", "reboot",
// "halt" or "kexec". It returns only if the kernel refuses.
func Finish(verb string) error {
	for range rounds {
		progress := false
		for _, dir := range mounts() {
			progress = unix.Unmount(dir, 0) == nil || progress
		}
		if !progress {
			break
		}
	}
	// The rest goes in one piece: the root holds the layers, these lie in files
	// of the boot partition, and that is mounted below the root's /run.
	for _, dir := range mounts() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	unix.Sync()
	command, ok := map[string]int{
		"poweroff": unix.LINUX_REBOOT_CMD_POWER_OFF,
		"halt":     unix.LINUX_REBOOT_CMD_HALT,
		"kexec":    unix.LINUX_REBOOT_CMD_KEXEC,
	}[verb]
	if !ok {
		command = unix.LINUX_REBOOT_CMD_RESTART
	}
	if err := unix.Reboot(command); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	return nil
}

// mounts lists what can go, deepest first: not the kernel's own file systems,
// which hold nothing back.
func mounts() []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	return unmountable(string(text))
}

// unmountable reads mountinfo (proc_pid_mountinfo(5)).
func unmountable(mountinfo string) []string {
	var out []string
	for _, line := range strings.Split(mountinfo, "\n") {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		dir := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])
		if strings.HasPrefix(dir+"/", "/oldroot/") || strings.HasPrefix(dir, "/run/slipway/") {
			out = append(out, dir)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return strings.Count(out[i], "/") > strings.Count(out[j], "/") })
	return out
}
