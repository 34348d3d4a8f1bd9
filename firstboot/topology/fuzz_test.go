package topology

import (
	"strings"
	"testing"
)

// FuzzParse: whatever a file says, it is a topology that can be planned, or there
// is a mistake with a line of the file and a mend.
func FuzzParse(f *testing.F) {
	f.Add([]byte(base))
	for _, s := range []string{
		"", "slipway: 1\nname: x\nnetworks: {lan: {subnet: 192.0.2.0/24}}\nnodes: [{name: a, role: db-master, nics: [{network: lan, address: 192.0.2.2}]}]",
		"a: &a [*a]", "a: &a {b: *a}", "nodes: [{nics: [{}]}, [], 7, null]", "? [a]\n: b", "<<: {slipway: 1}", "sites: {a: {standby_of: b}, b: {standby_of: a}}",
		"networks: {\"\": {subnet: 0.0.0.0/0}}", "slipway: 1\n---\n", "\xff\xfe", "users: [{keys: [\"ssh-rsa AAAA\"]}]", "slipway: 0x1\nname: \"\"\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, mistakes := Parse("cluster.yaml", data)
		if (got == nil) != (mistakes.Err() != nil) {
			t.Fatalf("%v, %v", got, mistakes)
		}
		lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") + 1 + strings.Count(string(data), "\u0085") +
			strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029")
		for _, m := range mistakes {
			if m.Line < 1 || m.Line > lines+1 || m.Text == "" || m.Mend == "" || strings.ContainsAny(m.String(), "\n\r\x00\x1b") {
				t.Fatalf("%d lines, %+v", lines, m)
			}
		}
		if got == nil {
			return
		}
		for _, s := range got.Plan().Sites {
			if n := len(s.Consensus); n > 0 && n%2 == 0 {
				t.Fatalf("an even number votes: %+v", s)
			}
		}
	})
}

func TestAHugeFileIsRefused(t *testing.T) {
	if _, mistakes := Parse("cluster.yaml", []byte(base+strings.Repeat("#\n", maxFile/2))); len(mistakes) != 1 || !strings.Contains(mistakes[0].Text, "larger than") {
		t.Errorf("%v", mistakes)
	}
}

func TestLongListsKeysAndTextsAreRefusedInShortWords(t *testing.T) {
	for name, text := range map[string]string{
		"a list":       spoil(t, "clients: [192.0.2.0/24]", "clients: ["+strings.Repeat("192.0.2.0/24,", maxItems+1)+"]"),
		"a key":        base + strings.Repeat("k", maxFile/2) + ": 1\n",
		"a text":       spoil(t, "name: orders", "name: "+strings.Repeat("n", maxFile/2)),
		"many nothing": strings.Repeat("[", 1000),
	} {
		_, mistakes := Parse("cluster.yaml", []byte(text))
		if len(mistakes.Errors()) == 0 || len(mistakes.Error()) > 4000 {
			t.Errorf("%s: %d mistakes in %d bytes", name, len(mistakes), len(mistakes.Error()))
		}
	}
}
