package datasource

import (
	"bytes"
	"encoding/json"

	"github.com/slipwayhq/slipway/internal/fault"
)

// vendorJSON reads vendor_data.json: nothing, a string, or an object whose key
// cloud-init holds what is meant for a node.
func vendorJSON(file string, data []byte) ([]byte, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, jsonError(file, data, err)
	}
	if object, ok := v.(map[string]any); ok {
		v = object["cloud-init"]
	}
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []byte(v), nil
	}
	return nil, fault.New(fault.Input, "%s: the vendor data must be a string", file).
		WithMend("Have the platform give vendor data as one string of cloud-config.")
}
