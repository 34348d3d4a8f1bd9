// Package boottest holds the claims about an appliance that only a booted
// machine can prove. It boots the images that `slipway build` made, with the
// lab, and looks at them from inside (guest agent) and from outside (the lab's
// network, serial line, screen).
//
// A boot takes 40 to 60 s under TCG, so independent claims share a machine, and
// each of the six roles is booted under another combination of firmware, disk
// format, hardware and datasource. Two tests run side by side on two cores.
//
//	test                      boots  machine
//	TestNode                      2  gateway: qcow2, BIOS, NoCloud ISO, network v2 with a VLAN on the lab's switch; second boot on a grown disk
//	TestRoles/balancer            1  qcow2, UEFI, NoCloud vfat, network v1
//	TestRoles/db-master           1  qcow2, Secure Boot, ConfigDrive ISO
//	TestRoles/db-replica          1  qcow2, BIOS, NoCloud by DMI and HTTP
//	TestRoles/broker              1  the OVA's disk, PVSCSI and VMXNET3 as VMware gives, BIOS, NoCloud ISO
//	TestRoles/dispatcher          1  raw, SATA and e1000 as VirtualBox gives, BIOS, NoCloud ISO
//	TestWithoutMetadata           1  gateway: DHCP, console screen, seed inserted while it runs
//	TestPowerCut                  5  gateway, a disk with a write cache: cut in mkfs, cut in the agent, recovery, cut when ready, other faults of a machine (hurt_test.go), reset, power-off
//	TestBrokenVersionFallsBack    2  gateway: a version on trial that lacks a layer
//
// Of the 14 boots three are short.
package boottest
