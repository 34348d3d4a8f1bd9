package topology

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/internal/fault"
)

const four = `# The shop's cluster.
slipway: 1
name: shop
networks: {lan: {subnet: 192.0.2.0/24}}

nodes:
  # databases
  - {name: a-db1, role: db-master, nics: [{network: lan, address: 192.0.2.11}]}   # the first
  - name: a-db2
    role: db-replica  # in the second rack
    # with a comment of its own

    nics:
      - network: lan
        address: 192.0.2.12

  # the third one has a large disk
  - {name: a-db3, role: db-replica,
     nics: [{network: lan, address: 192.0.2.13}]}

  - {name: a-lb1, role: balancer, nics: [{network: lan, address: 192.0.2.21}]}

# What clients may come from.
clients: [192.0.2.0/24]
`

func TestANodeIsTakenOutOfTheFileAndNothingElseIsTouched(t *testing.T) {
	for name, lines := range map[string]string{
		"a-db2": "  - name: a-db2\n    role: db-replica  # in the second rack\n    # with a comment of its own\n\n    nics:\n      - network: lan\n        address: 192.0.2.12\n",
		"a-db3": "  - {name: a-db3, role: db-replica,\n     nics: [{network: lan, address: 192.0.2.13}]}\n",
		"a-lb1": "  - {name: a-lb1, role: balancer, nics: [{network: lan, address: 192.0.2.21}]}\n",
	} {
		text, after, err := Without("cluster.yaml", []byte(four), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := strings.Replace(four, lines, "", 1); string(text) != want || !strings.Contains(four, lines) {
			t.Errorf("without %s:\n%s", name, text)
		}
		if _, there := after.Node(name); there || len(after.Nodes) != 3 {
			t.Errorf("without %s there are %+v", name, after.Nodes)
		}
	}
}

func TestANodeWithoutWhichThereIsNoClusterStays(t *testing.T) {
	_, _, err := Without("cluster.yaml", []byte(four), "a-db1")
	if fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "no db-master") {
		t.Errorf("without the db-master: %v", err)
	}
	if _, _, err := Without("cluster.yaml", []byte(four), "a-db9"); fault.Of(err) != fault.Usage {
		t.Errorf("a node that is not there: %v", err)
	}
}

func TestAFileThatCannotBeCutIsForItsAuthor(t *testing.T) {
	flow := "slipway: 1\nname: shop\nnetworks: {lan: {subnet: 192.0.2.0/24}}\nnodes: [{name: a-db1, role: db-master, nics: [{network: lan, address: 192.0.2.11}]}, {name: a-lb1, role: balancer, nics: [{network: lan, address: 192.0.2.12}]}]\n"
	dashes := "slipway: 1\nname: shop\nnetworks: {lan: {subnet: 192.0.2.0/24}}\nnodes:\n  - {name: a-db1, role: db-master, nics: [{network: lan, address: 192.0.2.11}]}\n  -\n    name: a-lb1\n    role: balancer\n    nics: [{network: lan, address: 192.0.2.12}]\n"
	for _, text := range []string{flow, dashes} {
		_, _, err := Without("cluster.yaml", []byte(text), "a-lb1")
		if fault.Of(err) != fault.Input || !strings.Contains(fault.Mend(err), "by hand") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Whatever the examples look like: a node is cut, or the file is refused.
func TestNodesOfTheExamplesAreTakenOut(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/cluster.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no examples")
	}
	cutOut := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		whole, mistakes := Parse(file, data)
		if mistakes.Err() != nil {
			t.Fatal(mistakes.Err())
		}
		for _, n := range whole.Nodes {
			text, after, err := Without(file, data, n.Name)
			if err != nil {
				if !strings.Contains(err.Error(), "would not be a cluster") {
					t.Errorf("%s: %s: %v", file, n.Name, err)
				}
				continue
			}
			cutOut++
			if len(after.Nodes) != len(whole.Nodes)-1 || strings.Count(string(text), "#") > strings.Count(string(data), "#") {
				t.Errorf("%s without %s:\n%s", file, n.Name, text)
			}
		}
	}
	if cutOut == 0 {
		t.Error("nothing was taken out of any example")
	}
}
