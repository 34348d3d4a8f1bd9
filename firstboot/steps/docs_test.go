package steps

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/status"
)

func documentation(t *testing.T) string {
	text, err := os.ReadFile("../../docs/metadata.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestCloudInitAndTheNodeAcceptEveryExampleOfTheDocumentation(t *testing.T) {
	n := nodetest.Start(t)
	examples := regexp.MustCompile("(?s)```yaml\n(#cloud-config\n.*?)```").FindAllStringSubmatch(documentation(t), -1)
	if len(examples) < 2 {
		t.Fatalf("only %d examples", len(examples))
	}
	for _, example := range append(examples, []string{"", strings.Replace(everything, `"web: [ada]"`, "{web: [ada]}", 1)}) {
		n.Put(t, "/tmp/user-data", example[1])
		n.Output(t, "cloud-init", "schema", "-c", "/tmp/user-data")
		for _, finding := range cloudconfig.Parse(cloudconfig.Document{Name: "user-data", Content: []byte(example[1])}).Findings {
			t.Errorf("%s\n%s", finding, example[1])
		}
	}
}

func TestTheDocumentedReportIsTheReport(t *testing.T) {
	example := regexp.MustCompile("(?s)```json\n(.*?)```").FindStringSubmatch(documentation(t))
	if example == nil {
		t.Fatal("no example")
	}
	in := json.NewDecoder(strings.NewReader(example[1]))
	in.DisallowUnknownFields()
	var r status.Report
	if err := in.Decode(&r); err != nil {
		t.Fatal(err)
	}
}

func TestEveryKeyOfCloudInitsSchemaIsKnown(t *testing.T) {
	n := nodetest.Start(t)
	files, err := filepath.Glob(n.Path("/usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("cloud-init's schema: %v, %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Properties map[string]any `json:"properties"`
		Defs       map[string]struct {
			Properties map[string]any `json:"properties"`
		} `json:"$defs"`
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	if len(schema.Properties) < 80 || len(schema.Defs["users_groups.user"].Properties) < 20 {
		t.Fatalf("the schema looks different: %d keys", len(schema.Properties))
	}
	unknown := func(document string) bool {
		for _, f := range cloudconfig.Parse(cloudconfig.Document{Name: "u", Content: []byte("#cloud-config\n" + document)}).Findings {
			if f.Kind == cloudconfig.Unknown {
				return true
			}
		}
		return false
	}
	for key := range schema.Properties {
		if unknown(key + ": x\n") {
			t.Errorf("%s is a key of cloud-init that the node takes for a misspelling", key)
		}
	}
	for key := range schema.Defs["users_groups.user"].Properties {
		if unknown("users: [{name: a, " + key + ": x}]\n") {
			t.Errorf("users[].%s is a key of cloud-init that the node takes for a misspelling", key)
		}
	}
}
