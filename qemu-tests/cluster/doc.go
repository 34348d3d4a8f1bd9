// Package clustertest boots whole clusters in the lab, from the images that a
// build has made, and tells stories with them: what an ordinary user sees of the
// lab's network and commands, and what a cluster does when it is powered on, cut
// apart and put together again.
//
// Its tests run under make test, after those that need no machine.
package clustertest
