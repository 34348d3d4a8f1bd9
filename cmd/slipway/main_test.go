package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/internal/fault"
)

// asSlipway has the test's own program be slipway, for commands that go on until they are told to end.
const asSlipway = "SLIPWAY_TEST_RUN"

func TestMain(m *testing.M) {
	sandbox.Init()
	if os.Getenv(asSlipway) != "" {
		os.Exit(run(os.Args))
	}
	os.Exit(m.Run())
}

func TestFlagsMayStandAfterArguments(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"slipway build db-master --format ova", "slipway build --format ova db-master"},
		{"slipway build --all --json", "slipway build --all --json"},
		{"slipway build a --all=false b -o dir", "slipway build --all=false -o dir a b"},
		{"slipway --cache c cache gc --dry-run", "slipway --cache c cache gc --dry-run"},
		{"slipway inspect x.ova --packages --verify", "slipway inspect --packages --verify x.ova"},
		{"slipway build -- --all", "slipway build -- --all"},
		{"slipway drill cluster.yaml --restore --help", "slipway drill --restore --help"},
		{"slipway ssh db1 -- ls --help", "slipway ssh db1 -- ls --help"},
		{"slipway diff lock cache --json", "slipway diff --json lock cache"},
		{"slipway lock --upgrade openssl curl --dry-run", "slipway lock --upgrade --dry-run openssl curl"},
		{"slipway", "slipway"},
	} {
		if got := strings.Join(flagsFirst(newApp(), strings.Fields(c.in)), " "); got != c.want {
			t.Errorf("%q becomes %q, want %q", c.in, got, c.want)
		}
	}
}

func TestEveryCommandExplainsItselfWithExamples(t *testing.T) {
	for _, c := range newApp().Commands {
		texts := []string{c.Description}
		for _, sub := range c.Subcommands {
			texts = append(texts, sub.Description)
		}
		if c.Usage == "" || !strings.Contains(strings.Join(texts, ""), "slipway "+c.Name) {
			t.Errorf("slipway %s --help has no usage line or no example", c.Name)
		}
	}
}

func TestEveryOperationShowsItsPlanAsksAndSaysHowItEnds(t *testing.T) {
	count := 0
	var each func(path string, commands []*cli.Command)
	each = func(path string, commands []*cli.Command) {
		for _, c := range commands {
			name := path + " " + c.Name
			each(name, c.Subcommands)
			flags := map[string]bool{}
			for _, f := range c.Flags {
				flags[f.Names()[0]] = true
			}
			if !flags["confirm"] {
				continue
			}
			count++
			for _, flag := range []string{"dry-run", "yes", "json", "store", "direct"} {
				if !flags[flag] {
					t.Errorf("%s has no --%s", name, flag)
				}
			}
			for _, want := range []string{"Exit status: 0 ", "After an interruption", "Examples:\n  " + name} {
				if !strings.Contains(c.Description, want) {
					t.Errorf("%s --help does not say %q", name, want)
				}
			}
		}
	}
	each("slipway", newApp().Commands)
	if count < 12 {
		t.Errorf("only %d operations were found", count)
	}
}

// call runs the command in this process and returns its exit status and output.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	read := func(name string) func() string {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		old := os.Stdout
		if name == "stderr" {
			old, os.Stderr = os.Stderr, f
		} else {
			os.Stdout = f
		}
		return func() string {
			if name == "stderr" {
				os.Stderr = old
			} else {
				os.Stdout = old
			}
			f.Close()
			data, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			return string(data)
		}
	}
	out, errs := read("stdout"), read("stderr")
	code = run(append([]string{"slipway"}, args...))
	stderr, stdout = errs(), out()
	return code, stdout, stderr
}

func TestExitStatusTellsWhatWentWrong(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("SLIPWAY_CACHE", t.TempDir())
	for _, c := range []struct {
		args string
		code int
		says []string
	}{
		{"frobnicate", 2, []string{"frobnicate"}},
		{"build", 2, []string{"--all"}},
		{"build balancer --all", 2, []string{"--all"}},
		{"build balancer --nonsense", 2, []string{"nonsense"}},
		{"build balancer", 2, []string{"profiles/", "--project"}},
		{"--project /nonexistent build balancer", 2, []string{"/nonexistent"}},
		{"push", 2, []string{"repository", "--all"}},
		{"push localhost:5000/layers", 2, []string{"roles", "--all"}},
		{"push localhost:5000/layers balancer --all", 2, []string{"--all"}},
		{"push layers --all", 2, []string{"HOST"}},
		{"inspect", 2, []string{"one image"}},
		{"inspect nowhere.ova", 3, []string{"nowhere.ova"}},
		{"diff one", 2, []string{"two files"}},
		{"completion powershell", 2, []string{"powershell", "bash"}},
		{"lock openssl", 2, []string{"--upgrade"}},
	} {
		code, _, stderr := call(t, strings.Fields(c.args)...)
		if code != c.code {
			t.Errorf("slipway %s: exit status %d, want %d\n%s", c.args, code, c.code, stderr)
		}
		for _, w := range c.says {
			if !strings.Contains(stderr, w) {
				t.Errorf("slipway %s does not say %q:\n%s", c.args, w, stderr)
			}
		}
	}
}

func TestErrorsAreJSONWhenAskedFor(t *testing.T) {
	t.Chdir(t.TempDir())
	code, _, stderr := call(t, "build", "balancer", "--json")
	var got struct {
		Error struct{ Class, Message, Mend string }
	}
	if err := json.Unmarshal([]byte(stderr), &got); err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	if code != 2 || got.Error.Class != "usage" || got.Error.Message == "" || got.Error.Mend == "" {
		t.Errorf("exit status %d, %+v", code, got)
	}
}

func TestReportPrintsOneErrorAndItsMend(t *testing.T) {
	var b bytes.Buffer
	report(&b, fmt.Errorf("building: %w", fault.New(fault.Input, "profiles/x.yaml:3: no").WithMend("write yes")), false)
	if got, want := b.String(), "slipway: building: profiles/x.yaml:3: no\n         write yes\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	b.Reset()
	report(&b, errors.New("plain"), false)
	if got, want := b.String(), "slipway: plain\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for mend, want := range map[string]string{"": "run the same command again to go on", "to go on: slipway rollback a --to v1": "to go on: slipway rollback a --to v1"} {
		b.Reset()
		report(&b, fault.New(fault.Failed, "%w", context.Canceled).WithMend("%s", mend), false)
		if got, want := b.String(), "slipway: interrupted; nothing half-written is left; "+want+"\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	b.Reset()
	report(&b, fmt.Errorf("drill: %w", context.Canceled), true)
	if got, want := b.String(), `{"error":{"class":"interrupted","mend":"","message":"drill: context canceled"}}`+"\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestCompletionIsThereForEveryShell(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		code, stdout, _ := call(t, "completion", shell)
		if code != 0 || !strings.Contains(stdout, "slipway") {
			t.Errorf("completion %s: exit status %d, %q", shell, code, stdout)
		}
	}
	for _, command := range []string{"inspect", "diff", "sbom"} { // they leave file names to the shell
		if code, stdout, stderr := call(t, command, "--generate-bash-completion"); code != 0 || stdout+stderr != "" {
			t.Errorf("completing %s: exit status %d, %q", command, code, stdout+stderr)
		}
	}
	_, stdout, _ := call(t, "build", "--generate-bash-completion")
	if roles := strings.Fields(stdout); !slices.Contains(roles, "db-master") {
		t.Errorf("roles are not completed: %q", stdout)
	}
}

func TestTheArchitectureHasALineForEveryPackage(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, top := range []string{"builder", "cmd", "firstboot", "internal", "qemu-tests"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			if d.Name() == "testdata" {
				return filepath.SkipDir
			}
			sources, err := filepath.Glob(filepath.Join(path, "*.go"))
			if err != nil || len(sources) == 0 {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			if name := filepath.ToSlash(rel); !strings.Contains(string(text), "`"+name+"`") {
				t.Errorf("docs/architecture.md has no line for %s", name)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
