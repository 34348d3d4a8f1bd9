// Package cmdline reads what GRUB told the init on the kernel's command line.
package cmdline

import (
	"fmt"
	"strings"

	"github.com/slipwayhq/slipway/cmd/init/internal/gpt"
)

// Args are the init's arguments.
type Args struct {
	Version string   // slipway.version=: the version to start
	ESP     gpt.GUID // slipway.esp=: the boot partition's GUID
	Debug   bool     // slipway.debug: a shell if the boot fails
}

// Parse reads the line. What is not slipway's is left to the kernel and to
// systemd.
func Parse(line string) (Args, error) {
	var a Args
	var esp string
	for _, word := range strings.Fields(line) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "slipway.version":
			a.Version = value
		case "slipway.esp":
			esp = value
		case "slipway.debug":
			a.Debug = value != "0"
		}
	}
	if a.Version == "" || strings.ContainsAny(a.Version, "/:,\\") || strings.HasPrefix(a.Version, ".") {
		return a, fmt.Errorf("the kernel's command line has slipway.version=%q, want the name of a directory in /images of the boot partition", a.Version)
	}
	var err error
	if a.ESP, err = gpt.ParseGUID(esp); err != nil {
		return a, fmt.Errorf("the kernel's command line has slipway.esp=%q, want the GUID of the boot partition: %w", esp, err)
	}
	return a, nil
}
