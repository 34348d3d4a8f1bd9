// Package formatstest shows the built images to judges that nobody of slipway
// wrote: QEMU's and dosfstools' checkers, gdisk, libxml, VMware's importer into
// its vCenter simulator, virt-v2v. Each judge sees every role.
//
// virt-v2v is asked for its reading of the OVA (--print-source): it checks the
// package's manifest and hashes, and names the machine it would make. A whole
// conversion is not possible by design of both: it begins with an inspection of
// the guest's root file system, and an appliance that was never started has
// none, only layers on its boot partition. Nor is one needed, since the
// appliance brings the drivers that virt-v2v would install.
package formatstest
