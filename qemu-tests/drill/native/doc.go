// Package native drills clusters where nothing is emulated: etcd, Patroni, PostgreSQL,
// HAProxy and keepalived as in the images, each node in namespaces of this machine, all on
// the lab's switch. What is built right loses nothing, and what is broken on purpose is
// seen to lose. It is all tests.
//
// The faults have the names, targets and lengths of package faults. They differ from those of machines in
// what a namespace is not: a power cut takes no disk's cache with it, no watchdog guards
// Patroni, and no agent looks after the node but for what cluster.observe does.
package native
