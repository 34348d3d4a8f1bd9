package main

import (
	"strings"
	"testing"
)

func TestOperationsOnSitesNeedASite(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, args := range [][]string{{"promote-site"}, {"demote-site"}, {"promote-site", "a", "b"}, {"demote-site", "cluster.yaml"}} {
		if code, _, stderr := call(t, args...); code != 2 || !strings.Contains(stderr, "takes the name of a site") {
			t.Errorf("%q: exit status %d, %s", args, code, stderr)
		}
	}
}
