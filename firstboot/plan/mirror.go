package plan

// MirrorRole is the role of a node that gives packages and images to the others.
const MirrorRole = "mirror"

// Mirror is where nodes get packages and container images from, in place of the
// world's archives and registries.
type Mirror struct {
	// Node is the node that serves it, "" where a machine outside of the cluster does.
	Node string `json:"node,omitempty"`
	// URL is below which the archives stand by their usual names (URL/debian), http or
	// https, without a slash at its end.
	URL string `json:"url"`
	// Registry is the OCI registry, as in https://mirror.example.org:8443; "" is none.
	// Over http, images come as whoever is on the way likes them.
	Registry string `json:"registry,omitempty"`
	// Key are the OpenPGP keys that sign its archives, ASCII armour.
	Key string `json:"key"`
	// CA are the certificates of the authority for https, PEM; "" is the cluster's own
	// for a node of it, and else any that Debian trusts.
	CA string `json:"ca,omitempty"`
}

// Mirrors reports whether a node serves the cluster's mirror.
func (p *Plan) Mirrors(name string) bool {
	return p.Mirror != nil && p.Mirror.Node != "" && p.Mirror.Node == name
}
