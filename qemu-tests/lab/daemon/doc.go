// Package daemon keeps a lab cluster running after the command that started it
// has ended, and lets later commands reach it.
//
// In goes a Lab, which is the machines with their network, and a Place, which is
// the directory with everything that belongs to it. Serve answers on a unix
// socket in that directory, which only its owner may enter: HTTP with JSON for
// what has an answer, and HTTP's Upgrade (RFC 9110, section 7.8) for what is a
// stream of bytes, that is a serial console or a connection into the cluster's
// network. Client is the other side.
//
// Whoever may open the socket may do everything with the machines, and nothing
// beyond: a daemon reads no file and runs no program that a request names.
//
// The process that serves holds a lock on the directory. The kernel lets go of
// it when the process ends, however it ends, and the machines end with it
// (package lab), so that a lock that can be taken means that nothing runs, no
// matter what the directory says.
package daemon
