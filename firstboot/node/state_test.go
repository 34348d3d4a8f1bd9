package node

import (
	"os"
	"testing"
)

func TestADamagedStateIsSetAsideAndBegunAnew(t *testing.T) {
	n := &Node{Root: t.TempDir()}
	s, err := OpenState(n, KeptPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Done("x", nil, "input"); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenState(n, KeptPath); err != nil || !s.Is("x", "input") || s.Is("x", "other") {
		t.Fatalf("what was kept is forgotten: %+v, %v", s, err)
	}
	for _, damage := range []string{"", "{", `{"format": 1}`, `{"format": 9, "applied": {}}`} {
		if err := os.WriteFile(n.Path(KeptPath), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err = OpenState(n, KeptPath); err != nil || s.Is("x", "input") {
			t.Errorf("%q: %+v, %v", damage, s, err)
		}
		if err := s.Done("y", nil); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(n.Path(KeptPath + ".damaged")); err != nil {
		t.Error(err)
	}
}
