// Package mirror is where a node's packages and container images come from, and on
// the node that is the cluster's mirror, the service and the media.
//
// In: the plan's mirror (package plan), the archives that the image is made from (the
// role marker), the node's certificate. Out, on every node: deb822 sources with the
// site's key inside (sources.list(5), "DEB822-STYLE FORMAT"; "Signed-By"), apt's
// options (apt-transport-https(1)), and what Docker's daemon and containerd read
// (dockerd(8), "Daemon configuration file"; certs.d). On the mirror: the certificate and key
// of slipway-mirror.service, and the action that takes attached media in.
//
// What the plan has no more is taken back: the node is then as it was before.
package mirror

const (
	// Unit serves the mirror; ImportUnit takes in what is mounted below mediaDir.
	Unit       = "slipway-mirror.service"
	ImportUnit = "slipway-mirror-import.service"

	user = "mirror" // whom both run as
	dir  = "/etc/slipway/mirror"

	// caPath is for everybody to read: apt fetches as a user of its own.
	caPath = dir + "/ca.pem"
)
