// Package images gives tests the built images of all roles, so that no test
// package builds them a second time.
package images

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Env names the environment variable with the directory of the images, named
// <role>.<format>. Main sets it for a test process that was started without.
const Env = "SLIPWAY_IMAGES"

// Main is the body of a TestMain: it builds the images unless Env says where
// they are, and runs the tests.
func Main(m *testing.M) int {
	if os.Getenv(Env) != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "slipway-images-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := build(dir); err != nil {
		fmt.Fprintf(os.Stderr, "building the images: %v\n%s\n", err, fault.Mend(err))
		return 1
	}
	if err := os.Setenv(Env, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build runs the command as a user would, so that what is tested is what it makes.
func build(dir string) error {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return fault.New(fault.Missing, "go env GOMOD: %w", err).WithMend("install Go")
	}
	cmd := exec.Command("go", "run", "./cmd/slipway", "build", "--all", "--format", "qcow2,ova,vmdk,raw", "--output", dir)
	cmd.Dir = filepath.Dir(string(mod))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

// Path is the image of a role in a format, such as "qcow2".
func Path(t testing.TB, role, format string) string {
	t.Helper()
	path := filepath.Join(os.Getenv(Env), role+"."+format)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no image: %v\nrun: slipway build --all --format qcow2,ova,vmdk,raw --output $%s", err, Env)
	}
	return path
}

// Roles are the nine roles, each with its appliance.
func Roles() []string {
	return []string{"balancer", "broker", "db-master", "db-replica", "desktop", "dispatcher", "gateway", "mirror", "repository"}
}
