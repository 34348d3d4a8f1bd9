package topology

// postgresPort is PostgreSQL's on a database node, as the profiles' firewall has it.
const postgresPort = 5432

// Load reads and checks a file. Its error is of class Input and lists every
// mistake; what are warnings only stand in the Topology.
func Load(path string) (*Topology, error) {
	t, mistakes := Parse(path, nil)
	return t, mistakes.Err()
}

// Parse reads and checks the text of a file, which messages call by the name
// given. The Topology is nil unless all mistakes are warnings.
func Parse(file string, data []byte) (*Topology, Mistakes) {
	return nil, Mistakes{{File: file, Line: 1, Text: "reading is not there yet"}}
}

// Schema is the format as JSON Schema, draft 2020-12.
func Schema() []byte { return nil }
