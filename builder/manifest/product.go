package manifest

// ImagesDir is where an appliance has the OCI images of its product: an OCI image
// layout ("OCI Image Format Specification", image-layout.md), in the root file
// system.
const ImagesDir = "usr/lib/slipway/images"

// Product is what the agent must know of the product that a role runs, so that
// another product takes other data and no other agent. Its zero value is a role
// whose units look after themselves.
type Product struct {
	// User runs the product, and alone may read what the agent tells it in
	// /etc/slipway/product; "" is root.
	User string `json:"user,omitempty" yaml:"user"`
	// Units are held back until the product is set up and its shared files are there.
	Units []string `json:"units,omitempty" yaml:"units"`
	// Setup is done once in the cluster, on one node of the role.
	Setup Setup `json:"setup,omitzero" yaml:"setup"`
	// Shared are files that all nodes of the role have alike.
	Shared []SharedFile `json:"shared,omitempty" yaml:"shared"`
	// Health says how the product is asked whether it serves.
	Health Health `json:"health,omitzero" yaml:"health"`
	// Stack is a Compose file in the root file system, absolute: what the site's
	// dispatchers run on their swarm. "" is nothing.
	Stack string `json:"stack,omitempty" yaml:"stack"`
}

// Setup is a command that sets the product up.
type Setup struct {
	Command []string `json:"command,omitempty" yaml:"command"`
	// Timeout is in seconds; 0 is ten minutes.
	Timeout int `json:"timeout,omitempty" yaml:"timeout"`
}

// SharedFile is a file that one node makes and the others of its role take from it.
type SharedFile struct {
	Path string `json:"path" yaml:"path"` // absolute, below a state directory
	// User owns the file; "" is the product's.
	User string `json:"user,omitempty" yaml:"user"`
	// Mode is in octal; "" is 0640. The group is that of the user.
	Mode string `json:"mode,omitempty" yaml:"mode"`
	// Restart are units to restart when the file has changed.
	Restart []string `json:"restart,omitempty" yaml:"restart"`
}

// Health is a question over HTTP to the node itself; any answer of 200 to 399 is a
// good one.
type Health struct {
	// URL has the host localhost; over https the certificate does not count, since
	// nobody but the node itself can answer there.
	URL string `json:"url,omitempty" yaml:"url"`
}
