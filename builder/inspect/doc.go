// Package inspect looks into an appliance's image file: which versions it holds,
// of which layers, files and packages, and how two images or locks differ.
//
// In: the path of a qcow2, raw, VMDK or OVA file, recognised by what it begins
// with. Nothing is unpacked or mounted: the file is read as a disk, the disk's
// GUID partition table (UEFI specification 2.10, section 5.3) leads to the EFI
// system partition, its FAT32 ("FAT32 File System Specification" 1.03) to the
// manifests and layers, and those are read where they stand.
//
// An image comes from outside. Every size in it is checked before memory is taken
// for it, every chain is bounded, and bytes that are missing are an error of class
// fault.Integrity, never zeros.
package inspect
