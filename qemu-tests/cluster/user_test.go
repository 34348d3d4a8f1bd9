package clustertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// nobody is the uid and gid of a user with no privilege.
const nobody = 65534

// user runs the command as an ordinary user, in a directory of its own: as
// nobody where the test itself runs as root.
type user struct {
	*testing.T
	dir     string
	program string
}

func newUser(t *testing.T) *user {
	t.Helper()
	// The parent of t.TempDir is for its owner alone.
	dir, err := os.MkdirTemp("", "slipway-lab-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	u := &user{T: t, dir: dir}
	u.program = u.path("bin", "slipway")
	build := exec.Command("go", "build", "-o", u.program, "github.com/slipwayhq/slipway/cmd/slipway")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	u.own(u.dir)
	return u
}

// part is a part of the story, as a test of its own.
func (u *user) part(name string, tell func(u *user)) {
	u.Run(name, func(t *testing.T) { tell(&user{T: t, dir: u.dir, program: u.program}) })
}

func (u *user) path(name ...string) string {
	return filepath.Join(append([]string{u.dir}, name...)...)
}

// own gives a file to the user.
func (u *user) own(path string) {
	u.Helper()
	if os.Getuid() != 0 {
		return
	}
	if err := os.Chown(path, nobody, nobody); err != nil {
		u.Fatal(err)
	}
}

func (u *user) write(name, content string) {
	u.Helper()
	if err := os.WriteFile(u.path(name), []byte(content), 0o644); err != nil {
		u.Fatal(err)
	}
}

func (u *user) mkdir(name string) {
	u.Helper()
	if err := os.Mkdir(u.path(name), 0o755); err != nil {
		u.Fatal(err)
	}
	u.own(u.path(name))
}

// shareImages gives the user the images beside one: the directory that they are in may be
// for root alone.
func (u *user) shareImages(one string) {
	u.Helper()
	u.mkdir("images")
	all, err := filepath.Glob(filepath.Join(filepath.Dir(one), "*.qcow2"))
	if err != nil {
		u.Fatal(err)
	}
	for _, image := range all {
		if err := linkOrCopy(image, u.path("images", filepath.Base(image))); err != nil {
			u.Fatal(err)
		}
	}
}

func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// key makes the user's SSH key and returns its public half.
func (u *user) key() string {
	u.Helper()
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", u.path("key")).CombinedOutput(); err != nil {
		u.Fatalf("%v; apt-get install openssh-client\n%s", err, out)
	}
	u.own(u.path("key"))
	public, err := os.ReadFile(u.path("key.pub"))
	if err != nil {
		u.Fatal(err)
	}
	return strings.TrimSpace(string(public))
}

func (u *user) place() daemon.Place {
	u.Helper()
	found, err := filepath.Glob(u.path("state", "slipway", "lab", "*"))
	if err != nil || len(found) != 1 {
		u.Fatalf("labs: %v, %v", found, err)
	}
	return daemon.Place(found[0])
}

// command is slipway with arguments, as the user.
func (u *user) command(args ...string) *exec.Cmd {
	cmd := exec.Command(u.program, append([]string{"--progress", "lines"}, args...)...)
	cmd.Dir = u.dir
	cmd.Env = append(os.Environ(), "HOME="+u.dir, "XDG_STATE_HOME="+u.path("state"), "XDG_CACHE_HOME="+u.path("cache"))
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return cmd
}

// call runs the command and returns its exit status and what it printed.
func (u *user) call(args ...string) (code int, stdout, stderr string) {
	u.Helper()
	var out, errs bytes.Buffer
	cmd := u.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		u.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// runs is a command that must succeed. It returns its output.
func (u *user) runs(args ...string) string {
	u.Helper()
	code, stdout, stderr := u.call(args...)
	if code != 0 {
		u.Fatalf("slipway %s: exit status %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// fails is a command that must end with an exit status. It returns its messages.
func (u *user) fails(want int, args ...string) string {
	u.Helper()
	code, stdout, stderr := u.call(args...)
	if code != want {
		u.Fatalf("slipway %s: exit status %d, want %d\n%s%s", strings.Join(args, " "), code, want, stdout, stderr)
	}
	return stderr
}

// ssh runs a command on a node that must succeed.
func (u *user) ssh(node, command string) string {
	u.Helper()
	return u.runs("ssh", "cluster.yaml", node, "--", command)
}

// order asks the daemon for what has no command.
func (u *user) order(action daemon.Action, node string) {
	u.Helper()
	if _, err := daemon.NewClient(u.place()).Order(u.Context(), daemon.Order{Action: action, Nodes: []string{node}}); err != nil {
		u.Fatal(err)
	}
}

func (u *user) says(text, want string) {
	u.Helper()
	if !strings.Contains(text, want) {
		u.Errorf("nothing says %q:\n%s", want, text)
	}
}

// stopTime bounds the end of a lab that a failed test leaves behind.
const stopTime = 20 * time.Second

// endLabs ends the lab with the test, and keeps its logs if the test has failed.
func (u *user) endLabs() {
	u.Cleanup(func() {
		if u.Failed() {
			u.keep()
		}
		ctx, cancel := context.WithTimeout(context.Background(), stopTime)
		defer cancel()
		found, _ := filepath.Glob(u.path("state", "slipway", "lab", "*"))
		for _, place := range found {
			if err := daemon.NewClient(daemon.Place(place)).Quit(ctx); err != nil && !errors.Is(err, daemon.ErrNotRunning) {
				u.Errorf("ending the lab: %v", err)
			}
		}
	})
}

func (u *user) keep() {
	out := labtest.OutDir(u)
	err := filepath.WalkDir(u.path("state"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".log" {
			return err
		}
		name := strings.ReplaceAll(strings.TrimPrefix(path, u.path("state")+"/"), "/", "_")
		if err := os.MkdirAll(out, 0o755); err != nil {
			return err
		}
		u.Logf("kept %s", filepath.Join(out, name))
		return linkOrCopy(path, filepath.Join(out, name))
	})
	if err != nil {
		u.Logf("keeping the logs: %v", err)
	}
}
