package profile

import (
	"path/filepath"
	"testing"
)

// BenchmarkKey measures what an unchanged project costs: the key of the largest
// role's config layer, without the agent.
func BenchmarkKey(b *testing.B) {
	set, err := Load(filepath.Join(repository, "profiles"))
	if err != nil {
		b.Fatal(err)
	}
	role, err := set.Role("db-master")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := set.Key(role, Input{Overlays: filepath.Join(repository, "overlays"), Date: date}); err != nil {
			b.Fatal(err)
		}
	}
}
