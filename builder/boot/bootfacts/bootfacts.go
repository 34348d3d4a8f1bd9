// Package bootfacts is the record that the init leaves for the agent: how this
// boot went up to the point where systemd took over.
package bootfacts

import (
	"encoding/json"
	"fmt"
)

const (
	// Path is where the record stands.
	Path = "/run/slipway/boot.json"
	// ESPDir is where the boot partition is mounted, read-only.
	ESPDir = "/run/slipway/esp"
	// StateDir is where the state file system is mounted.
	StateDir = "/run/slipway/state"
	// FailurePath is what the init leaves of a start that went no further.
	FailurePath = StateDir + "/failure.json"
	// ResetPath asks the init for a factory reset.
	ResetPath = StateDir + "/factory-reset.json"
)

// Failure is why a version could not be started.
type Failure struct {
	Version string `json:"version"`
	Why     string `json:"why"`
}

// Reset asks for a factory reset at the next start.
type Reset struct {
	Format int  `json:"format"` // 1
	Data   bool `json:"data"`   // the state directories too, not only what versions wrote beside them
}

// Kept lists what a reset leaves of the state directories: who the node is, the seed that makes it
// that again, the record of what administrators did to it, and the note that it is in maintenance, which
// tells whoever asked for the reset that it is done.
func Kept() []string {
	return []string{"/var/lib/slipway/cluster", "/var/lib/slipway/seed", "/var/lib/slipway/audit.jsonl", "/var/lib/slipway/audit.jsonl.1", "/var/lib/slipway/maintenance.json"}
}

// Facts is the record.
type Facts struct {
	Format  int      `json:"format"` // 1
	Version string   `json:"version"`
	Role    string   `json:"role"`
	Good    string   `json:"good"`   // by GRUB's environment block
	Try     string   `json:"try"`    // the version on trial, or ""
	Tries   int      `json:"tries"`  // starts that the trial has left
	Trial   bool     `json:"trial"`  // this version is the one on trial
	Layers  []string `json:"layers"` // files on the boot partition, bottom first
	ESP     string   `json:"esp"`    // device of the boot partition
	State   State    `json:"state"`
	Millis  int64    `json:"millis"` // what the init took, in milliseconds
}

// State says what was done to the state partition.
type State struct {
	Device  string   `json:"device"`
	Size    int64    `json:"size"`            // bytes of the partition
	Created bool     `json:"created"`         // the file system was made at this boot
	Resumed bool     `json:"resumed"`         // an earlier boot was cut while making it
	Adopted bool     `json:"adopted"`         // the disk was written anew over an older state, which was kept
	Grown   bool     `json:"grown"`           // partition or file system were grown
	Mended  string   `json:"mended"`          // why the partition table was written again, or ""
	Reset   string   `json:"reset,omitempty"` // a factory reset was done at this boot: "system" or "data"
	Check   string   `json:"check"`           // of the file system: "new", "clean" or "repaired"
	Dirs    []string `json:"dirs"`            // directories that outlive the version
}

// Parse reads a record; fields that it does not know are ignored.
func Parse(data []byte) (*Facts, error) {
	var f Facts
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("boot record: %w", err)
	}
	if f.Format != 1 {
		return nil, fmt.Errorf("boot record: format %d is not known, this agent reads format 1", f.Format)
	}
	return &f, nil
}
