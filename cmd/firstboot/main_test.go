package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestTheCommandLineIsExplained(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"version"}, 0, "firstboot"},
		{[]string{"status", "--help"}, 0, "3  degraded"},
		{[]string{"status", "--jsn"}, 2, "flag provided but not defined: -jsn"},
		{[]string{"status", "now"}, 2, "status takes no argument"},
		{[]string{"status"}, 1, "no agent answers"},
	} {
		var out, errs bytes.Buffer
		if code := run(append([]string{"firstboot"}, c.args...), &out, &errs); code != c.code || !strings.Contains(out.String()+errs.String(), c.says) {
			t.Errorf("firstboot %s: exit status %d, says %q %q", strings.Join(c.args, " "), code, out.String(), errs.String())
		}
	}
}
