// Package ether is the lab's Ethernet switch: it carries frames between virtual
// machines inside one process, without root and without touching the host's
// network.
//
// In go ports: a stream socket that speaks QEMU's framing (-netdev stream: each
// frame is preceded by its length, four bytes, most significant first), or a
// function of this process. Out come the frames that a port should see.
//
// A network of the lab is a VLAN of the one switch (IEEE 802.1Q-2018). A port
// is in one VLAN untagged, in several tagged, or both, so that one trunk NIC
// may carry several networks. The switch learns where addresses are and forgets
// them (7.8, 8.7, 8.8), floods what it cannot place, and keeps the link-local
// group addresses to the port they come from (8.6.3). It has no spanning tree:
// the lab wires no loops.
//
// Nobody waits for a slow port: each has a bounded queue, and what does not fit
// is dropped and counted.
//
// Faults are part of the switch, since nothing else sees all frames: a port's
// cable is cut, one direction between two ports is blocked, delayed, or loses
// frames (faults.go), also on the way through a router (origin.go). They are set by name and so outlive a machine's power
// cycle. Chance is drawn from a seed, one sequence for each ordered pair of
// ports: the n-th frame of a path meets the same fate in every run.
package ether
