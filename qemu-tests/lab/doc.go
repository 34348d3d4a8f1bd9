// Package lab runs appliances as virtual machines on one Linux computer,
// without root, and speaks of them in the vocabulary of a story: start, wait
// for a unit, run a command, cut the power, look at the screen.
//
// In goes a VM, which names an image file and the machine around it; out comes
// a Machine. The image itself is never written: each machine has a qcow2
// overlay in its own directory, beside its serial log and its UEFI variables.
//
// A Cluster is the machines of a whole topology, one for each node, on a switch
// (package ether) that cuts and impairs what a story wants cut, with a gateway
// (package gateway) that is their router, DNS and clock, and the way in from
// outside. Package daemon keeps one running for a person at a terminal. What can go
// wrong with machines and the network between them, and how that is undone again,
// is in faults.go and the files named after it.
//
// How a machine is reached:
//
//   - QMP (QEMU Machine Protocol, docs/interop/qmp-spec) over a socket pair:
//     power, media changes, screenshots, keys;
//   - the guest agent (docs/interop/qemu-ga-ref) over a virtio-serial channel
//     named org.qemu.guest_agent.0: commands and files inside the guest;
//   - the first serial port: everything it says goes to serial.log, and
//     serial.sock lets a person talk to it;
//   - the network, for a guest whose NIC is on a switch (package ether): from the lab's
//     gateway (package gateway), as its neighbours reach it.
//
// Acceleration: /dev/kvm opens on machines where a kernel then hangs in it, so
// KVM is used only after a kernel was seen to boot in it (accel.go). Otherwise
// TCG, with cmpxchg16b hidden from guests that can do without, since QEMU 7.2
// corrupts the guest's memory with it (Accel.args).
//
// Every wait has a deadline, which is the VM's Patience, and an error that says
// what was missing and shows the end of the serial log. Nothing sleeps for a
// fixed time in the hope that something has happened by then.
//
// What a power cut means here: Crash kills QEMU. The guest's page cache is gone.
// If the VM is volatile, its system disk has a write cache of its own (package
// nbd), and all that the guest wrote there and did not flush is gone as well, or a
// part of it by chance: what is there afterwards is what the guest was promised.
// If it is not, only those unflushed writes are gone that needed a new cluster of
// the overlay, because QEMU keeps that part of its tables in memory until a flush;
// a write over an existing cluster survives, since the host's page cache outlives
// QEMU. A guest that powers off or is reset loses nothing: as in a real machine,
// the disk keeps its power until the guest is done with it.
package lab
