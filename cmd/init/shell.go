package main

import (
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// shell gives whoever sits at the console the layers' own shell, if the layers
// got as far as being mounted. Only "slipway.debug" on the kernel's command
// line asks for it, which takes the console and GRUB's menu.
func (b *bootRun) shell() {
	if _, err := os.Stat(lowerDir + "/usr/bin/sh"); err != nil {
		b.out.Say("no shell: the layers are not mounted")
		return
	}
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err != nil {
		b.out.Say("no shell: %v", err)
		return
	}
	defer console.Close()
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := bind(dir, lowerDir+dir); err != nil {
			b.out.Say("%v", err)
		}
	}
	b.out.Say("a shell in the layers; leave it to start again")
	cmd := exec.Command("/usr/bin/sh", "-i")
	cmd.Path, cmd.Err = "/usr/bin/sh", nil
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "TERM=linux", "HOME=/"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = console, console, console
	cmd.SysProcAttr = &unix.SysProcAttr{Chroot: lowerDir, Setsid: true, Setctty: true}
	if err := cmd.Run(); err != nil {
		b.out.Say("the shell ended: %v", err)
	}
}
