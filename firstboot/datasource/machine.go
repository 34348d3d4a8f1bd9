package datasource

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Machine is the machine that this program runs on.
func Machine() Env {
	env := Env{Traces: func() string { return traces("/") }}.withDefaults()
	vendor, _ := env.DMI("sys_vendor")
	if tool, err := exec.LookPath("vmware-rpctool"); err == nil && strings.Contains(vendor, "VMware") {
		env.GuestInfo = rpcTool(tool)
	}
	return env
}

// rpcTool asks by open-vm-tools' vmware-rpctool.
func rpcTool(tool string) func(context.Context, string) (string, bool, error) {
	return func(ctx context.Context, key string) (string, bool, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		var stdout, stderr bytes.Buffer
		cmd := exec.CommandContext(ctx, tool, "info-get "+key)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case err == nil:
			return stdout.String(), true, nil
		case ctx.Err() != nil:
			return "", false, ctx.Err()
		case errors.As(err, &exit):
			// Its way to say that the key is not set: status 1, "No value found".
			return "", false, nil
		}
		return "", false, err
	}
}

func (e Env) withDefaults() Env {
	root := e.Root
	if root == "" {
		root = "/"
	}
	e.Root = root
	if e.Devices == nil {
		e.Devices = func() ([]Device, error) { return listDevices(root) }
	}
	if e.DMI == nil {
		e.DMI = func(field string) (string, error) {
			b, err := os.ReadFile(filepath.Join(root, "sys/class/dmi/id", field))
			return strings.TrimSpace(string(b)), err
		}
	}
	if e.HTTP == nil {
		// No proxy: a seed's server is on the node's own network, and the
		// environment of a boot has no say in where it comes from.
		e.HTTP = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
			ResponseHeaderTimeout: 10 * time.Second, DisableKeepAlives: true,
		}}
	}
	if e.Attempts == 0 {
		e.Attempts = 10
	}
	if e.Sleep == nil {
		e.Sleep = func(ctx context.Context, d time.Duration) error {
			t := time.NewTimer(d)
			defer t.Stop()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-t.C:
				return nil
			}
		}
	}
	if e.Now == nil {
		e.Now = time.Now
	}
	return e
}
