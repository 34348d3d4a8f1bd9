// Package squashfs writes a tree.Tree as a squashfs image and reads images back
// as trees. Layers of an appliance are such images; the kernel mounts them.
//
// The format is squashfs 4.0, as the kernel's fs/squashfs reads it and
// squashfs-tools writes it (Documentation/filesystems/squashfs.rst, "Squashfs
// Filesystem Design"). An image is, in this order:
//
//	superblock
//	data       files of a block or more as blocks, smaller ones packed into
//	           fragment blocks; equal files once
//	inodes     8 KiB metadata blocks, compressed
//	directories
//	fragments  where each fragment block is
//	export     where each inode is, so that overlayfs has file handles
//	ids        owners and groups
//	xattrs     each different set of extended attributes once
//
// # Writing
//
// One goroutine reads files in the order of the tree and cuts them into blocks,
// as many as there are workers compress them, and one writes them in the order
// in which they were cut. So the bytes do not depend on the number of workers,
// and memory is a fixed number of blocks.
//
// Level and block size were chosen by measurement, against mksquashfs 4.5.1
// with -comp zstd -Xcompression-level 3, on a Debian 13 tree of 707 MB in 18,751
// files, on two cores:
//
//	                  block    size     time   memory
//	mksquashfs -3     128 KiB  249.9 MB 2.7 s  786 MB
//	mksquashfs -3     256 KiB  240.8 MB 3.0 s  820 MB
//	Write, level 1    256 KiB  260.5 MB 2.1 s   31 MB
//	Write, level 3    128 KiB  252.9 MB 3.2 s   32 MB
//	Write, level 3    256 KiB  246.8 MB 2.6 s   36 MB  (the default)
//	Write, level 3      1 MiB  237.3 MB 2.4 s   56 MB
//	Write, level 7    256 KiB  243.2 MB 3.3 s   46 MB
//
// A larger block makes a smaller image, but a reader of one page must unpack all
// of it, which is felt at boot; 256 KiB is where the image is no larger than
// what mksquashfs makes by default.
//
// # Reading
//
// go-diskfs has a squashfs reader too. It lists 18,751 files in 0.2 s, as fast
// as this one, but it drops what layers cannot do without: the set-user-id,
// set-group-id and sticky bits, the numbers of devices (a whiteout of overlayfs
// is device 0:0), and the name space of extended attributes; and it misreads
// more than two attributes of a file. So reading is done here.
package squashfs
