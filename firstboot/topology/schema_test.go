package topology

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/firstboot/pki"
)

func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource("cluster.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := compiler.Compile("cluster.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON is a YAML text as an editor hands it to the schema.
func asJSON(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// authority is a certificate, PEM.
func authority(t *testing.T) string {
	t.Helper()
	a, err := pki.NewAuthority(pki.ClusterAuthority, "storage", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return pki.EncodeCertificate(a.Cert.Raw)
}

func TestTheSchemaTakesWhatIsRight(t *testing.T) {
	s := compiled(t)
	texts := map[string]string{"base": base, "an address that moves": stretched(t), "a site that is left empty": spoil(t, "a: {}", "a:"),
		"everything": spoil(t, "router_id: 51", "router_id: 51, network: lan, names: [db.example.internal], ports: {read_write: 6432, read_only: 6433}",
			"gateway: 192.0.2.1}", "gateway: 192.0.2.1, vlan: 7, mtu: 9000}",
			"name: lb1,", "name: lb1, vrrp_priority: 254, size: {cpus: 2, memory: 1GiB, disk: 30 GiB},",
			"a: {}", "a: {consensus: [db1, db2, lb1]}", "192.0.2.11}", "192.0.2.11, mac: 5254.0012.3456}",
			"max_connections: 100", "max_slot_wal_keep: 1GiB"),
		"desktops": withDesktops(t, "on: balancers", "on: balancers, ports: {http: 8080, https: 8443, gateway: 10444, tunnel: 1444}, certificate: {chain: vdi.pem, key: vdi.key}")}
	for _, fields := range []string{"repository: bak1", "repository: bak1, schedule: {full: never, diff: never}",
		"repository: bak1, schedule: {full: mon 23:59, diff: \"00:00\"}, retention: {full: 2, diff: 7}, archive_timeout: 300, wal_queue: 1GiB",
		"s3: {endpoint: s3.example.org, bucket: orders, region: eu-1}", "s3: {endpoint: \"192.0.2.99:9000\", bucket: orders, region: eu-1, path: /a/b, style: path}",
		"repository: bak1, from: {cluster: north}", "repository: bak1, from: {cluster: orders, s3: {endpoint: s3.example.org, bucket: orders, region: eu-1}}",
		"s3: {endpoint: s3.example.org, bucket: orders, region: eu-1, ca: " + strconv.Quote(authority(t)) + "}"} {
		texts["backups: "+fields] = backedUp(t, fields)
	}
	for _, file := range examples(t) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[file] = string(data)
	}
	for name, text := range texts {
		if err := s.Validate(asJSON(t, text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, mistakes := Parse(name, []byte(text)); len(mistakes) > 0 {
			t.Errorf("%s: %v", name, mistakes)
		}
	}
}

func TestTheSchemaRefusesWhatIsWrongAsTheParserDoes(t *testing.T) {
	s := compiled(t)
	for name, text := range map[string]string{
		"unknown key":       spoil(t, "domain:", "domian:"),
		"unknown key below": spoil(t, "[{network: lan, address: 192.0.2.12}]", "[{network: lan, adress: 192.0.2.12}]"),
		"another format":    spoil(t, "slipway: 1", "slipway: 2"),
		"no name":           without("name: orders"),
		"a number":          spoil(t, "name: orders", "name: 7"),
		"capital letters":   spoil(t, "name: db2", "name: DB2"),
		"no host name":      spoil(t, "name: db2", "name: db_2"),
		"unknown role":      spoil(t, "role: db-replica", "role: database"),
		"unknown place":     spoil(t, "on: balancers", "on: brokers"),
		"VRRP id 0":         spoil(t, "router_id: 51", "router_id: 0"),
		"VRRP id 256":       spoil(t, "router_id: 51", "router_id: 256"),
		"one site to move":  stretched(t, "sites: [a, b]", "sites: [a]"),
		"a site to move to": stretched(t, "sites: [a, b]", "sites: [a, a]"),
		"priority 255":      spoil(t, "name: lb1,", "name: lb1, vrrp_priority: 255,"),
		"a vote twice":      spoil(t, "a: {}", "a: {consensus: [db1, db1, db2]}"),
		"a text as list":    spoil(t, "[time.example.internal]", "time.example.internal"),
		"no keys":           spoil(t, "keys: [ssh", "keys: [] # [ssh"),
		"a private key":     spoil(t, "keys: [ssh-ed25519", "keys: [-----BEGIN OPENSSH PRIVATE KEY-----] # ["),
		"no truth":          spoil(t, "sudo: true", "sudo: maybe"),
		"no address":        spoil(t, "192.0.2.12}", "192.0.2.256}"),
		"a prefix length":   spoil(t, "192.0.2.12}", "192.0.2.12/24}"),
		"no network":        spoil(t, "clients: [192.0.2.0/24]", "clients: [192.0.2.7]"),
		"no MAC address":    spoil(t, "192.0.2.12}", "192.0.2.12, mac: \"52:54:00:12:34\"}"),
		"no unit":           spoil(t, "name: db2,", "name: db2, size: {memory: 4G},"),
		"short ttl":         spoil(t, "ttl: 30", "ttl: 7"),
		"few connections":   spoil(t, "max_connections: 100", "max_connections: 10"),
		"a database's name": spoil(t, "name: app", "name: App"),
		"PostgreSQL's role": spoil(t, "owner: clerk", "owner: pg_monitor"),
		"a setting's name":  spoil(t, "work_mem: 8MB", "Work Mem: 8MB"),
		"a setting's list":  spoil(t, "work_mem: 8MB", "work_mem: [8MB]"),
		"backups nowhere":   backedUp(t, "wal_queue: 4GiB"),
		"backups twice":     backedUp(t, "repository: bak1, s3: {endpoint: s3.example.org, bucket: orders, region: eu-1}"),
		"a backup's time":   backedUp(t, "repository: bak1, schedule: {diff: \"1:30\"}"),
		"a bucket's name":   backedUp(t, "s3: {endpoint: s3.example.org, bucket: Orders, region: eu-1}"),
		"who uses it":       spoil(t, "owner: clerk", "owner: clerk, used_by: [balancer]"),
		"a path's port":     spoil(t, "roles:\n", "roles:\n  dispatcher: {data_path_port: 443}\n"),
		"no truth of locks": spoil(t, "roles:\n", "roles:\n  dispatcher: {autolock: perhaps}\n"),
		"no source":         backedUp(t, "repository: bak1, from: {}"),
		"a source's name":   backedUp(t, "repository: bak1, from: {cluster: North}"),
		"no authority":      backedUp(t, "s3: {endpoint: s3.example.org, bucket: orders, region: eu-1, ca: none}"),
		"no nodes":          base[:strings.Index(base, "nodes:")],
		"an empty list":     base[:strings.Index(base, "nodes:")] + "nodes: []\n",
	} {
		if s.Validate(asJSON(t, text)) == nil {
			t.Errorf("%s: the schema takes it", name)
		}
		if _, mistakes := Parse(name, []byte(text)); mistakes.Err() == nil {
			t.Errorf("%s: the parser takes it", name)
		}
	}
}

// definition is what the test needs to know of a part of the schema.
type definition struct {
	Description string                `json:"description"`
	Type        any                   `json:"type"`
	Properties  map[string]definition `json:"properties"`
	Additional  any                   `json:"additionalProperties"`
	Ref         string                `json:"$ref"`
	Defs        map[string]definition `json:"$defs"`
}

func TestTheSchemaAndTheParserKnowTheSameFields(t *testing.T) {
	var root definition
	if err := json.Unmarshal(Schema(), &root); err != nil {
		t.Fatal(err)
	}
	kinds := maps.Clone(root.Defs)
	kinds["cluster"] = root
	for kind, known := range keys {
		got := slices.Sorted(maps.Keys(kinds[kind].Properties))
		if want := slices.Sorted(slices.Values(known)); !slices.Equal(got, want) {
			t.Errorf("%s: the schema has %v, the parser %v", kind, got, want)
		}
		if kinds[kind].Additional != false {
			t.Errorf("%s: the schema takes unknown fields", kind)
		}
	}
	for kind, d := range kinds {
		if d.Description == "" {
			t.Errorf("%s has no description", kind)
		}
		if _, known := keys[kind]; !known && len(d.Properties) > 0 {
			t.Errorf("%s: the schema has it, the parser does not", kind)
		}
		for name, field := range d.Properties {
			if field.Description == "" && root.Defs[strings.TrimPrefix(field.Ref, "#/$defs/")].Description == "" {
				t.Errorf("%s.%s has no description", kind, name)
			}
		}
	}
}

func TestTheSchemaListsTheRolesOfTheParser(t *testing.T) {
	for _, role := range roles {
		if !bytes.Contains(Schema(), []byte("\""+role+"\"")) {
			t.Errorf("the schema does not know the role %s", role)
		}
	}
}
