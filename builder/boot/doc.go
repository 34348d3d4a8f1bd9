// Package boot makes what stands between the firmware and systemd: which
// kernel modules an appliance keeps, the initramfs that carries the init, and
// GRUB with its configuration and its environment block.
//
// In go the base layer's file tree, the init's binary and the tools' tree; out
// come the initramfs, the BIOS boot code and the files of the boot partition:
//
//	/EFI/BOOT/BOOTX64.EFI            shim, signed by Microsoft
//	/EFI/BOOT/{grubx64,mmx64}.efi    GRUB and MokManager, signed by Debian
//	/EFI/debian/grub.cfg             where the signed GRUB looks; leads to:
//	/grub/grub.cfg                   the menu and the boot counting
//	/grub/grubenv                    which version is good, which on trial
//	/images/<version>/boot.cfg       title and kernel arguments of a version
//	/images/<version>/{vmlinuz,initrd,manifest.json}
//	/layers/<sha256>.sqfs            the root file system's layers, shared
//
// The menu finds the versions by itself, so an upgrade adds files and never
// edits what boots today. Formats: newc of cpio(5) and Linux
// Documentation/driver-api/early-userspace/buffer-format.rst for the
// initramfs; GRUB manual, "Environment block", for grubenv.
package boot
