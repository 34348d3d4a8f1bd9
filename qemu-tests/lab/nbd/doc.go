// Package nbd is a disk of the lab with a volatile write cache, as real disks
// have one: what was written and not flushed is gone when the power is.
//
// In go a file, which is what the disk keeps without power, and a stream socket
// on which QEMU (or any other client) speaks the NBD protocol
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md): the
// fixed newstyle handshake, simple replies, the commands READ, WRITE, FLUSH,
// TRIM, WRITE_ZEROES and DISC, the flag FUA. Out come the answers, the file as
// the power cut left it, and counts of what was written, flushed and lost.
//
//   - cache.go holds what is not flushed yet, and loses it;
//   - disk.go is the disk: its life, its speed, its refusals, its counts;
//   - handshake.go and transmission.go are the two phases of the protocol.
//
// A power cut takes the whole cache, or, with a seed, each sector of it by
// chance: a disk writes its cache in any order, and no more than a sector of 512
// bytes as a whole. A client that says DISC has switched off in good order, and
// the cache is written. The cache is otherwise written when the client flushes,
// and when it is full, which a disk may do at any time.
//
// The Go libraries for NBD servers that there are (pojntfx/go-nbd, Merovius/nbd,
// abligh/gonbdserver) have no FLUSH, or no FUA, or are no longer kept; a cache
// that knows what was not flushed needs both.
package nbd
