// Package apt reads Debian-format package archives as their signers meant them:
// which archives a distribution has, where their mirrors are, what the signed
// Release files say, and which packages the indices list.
//
// In: a distribution (a YAML file), mirrors (from options or from the machine's
// own apt sources), and what the mirrors serve. Out: an Archive, whose every
// package is covered by the chain key → InRelease → index → package. Nothing
// that a mirror serves is believed without that chain.
//
// The formats are those of deb-control(5), sources.list(5) and the Debian wiki's
// "DebianRepository/Format"; relations between packages are those of Debian
// Policy, chapter 7.
package apt
