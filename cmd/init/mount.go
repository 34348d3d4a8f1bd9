package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mountAt mounts at a directory that it makes if need be.
func mountAt(source, dir, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(source, dir, kind, flags, data); err != nil {
		return fmt.Errorf("mounting %s (%s) at %s: %w", source, kind, dir, err)
	}
	return nil
}

func bind(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s to %s: %w", from, to, err)
	}
	return nil
}

// mountLayer mounts a squashfs file, which must be as large as the manifest
// says, through a loop device that goes away once the mount does.
func mountLayer(path string, size int64, dir string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	if st.Size() != size {
		return fmt.Errorf("%s has %d bytes, the manifest says %d: the copy of this version is incomplete", path, st.Size(), size)
	}
	loop, err := freeLoop()
	if err != nil {
		return err
	}
	// Until the mount is there, this descriptor is all that keeps the device.
	defer loop.Close()
	config := unix.LoopConfig{Fd: uint32(file.Fd())}
	config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
	copy(config.Info.File_name[:len(config.Info.File_name)-1], path)
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), &config); err != nil {
		return fmt.Errorf("attaching %s to %s: %w", path, loop.Name(), err)
	}
	return mountAt(loop.Name(), dir, "squashfs", unix.MS_RDONLY|unix.MS_NODEV, "")
}

// freeLoop opens a loop device that nobody uses; nobody else is there to take
// it in between.
func freeLoop() (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("getting a loop device: %w", err)
	}
	return os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
}
