// Package native drills clusters of real etcd, Patroni and PostgreSQL in namespaces
// of this machine, without virtual machines: that what is built right loses
// nothing, and that one which is broken on purpose is seen to lose. It is all tests.
package native
