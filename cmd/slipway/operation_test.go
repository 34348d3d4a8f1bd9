package main

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/internal/fault"
)

func TestOperationsSayWhatTheyLackAndWhoIsMissing(t *testing.T) {
	inSmallCluster(t)
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"switchover", 3, "slipway seed"}, // there is no store
		{"maintenance", 2, "slipway maintenance on a-db1"},
		{"maintenance up db1", 2, "takes on or off"},
		{"maintenance on db1 db2", 2, "takes on or off"},
		{"maintenance on cluster.yaml", 2, "takes on or off"},
		{"switchover db2", 2, "--to db2"},
		{"switchover nowhere.yaml", 3, "nowhere.yaml"},
		{"audit --number 0", 2, "--number"},
		{"share db1", 2, "absolute path"},
		{"share db1 settings.py", 2, "absolute path"},
	} {
		code, _, stderr := call(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stderr, c.says) {
			t.Errorf("slipway %s: exit status %d, want %d and %q\n%s", c.args, code, c.code, c.says, stderr)
		}
	}
	succeed(t, "seed", "cluster.yaml", "-o", "out")
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"maintenance on db7", 2, `no node "db7"`},
		{"maintenance off cluster.yaml db7", 2, "db1, db2, lb1"},
		{"switchover --to db7 --direct", 2, `no node "db7"`},
		{"audit db7", 2, `no node "db7"`},
		{"share db7 /etc/settings.py", 2, `no node "db7"`},
		{"share cluster.yaml db7 /var/lib/cluster.yaml", 2, `no node "db7"`},
	} {
		code, _, stderr := call(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stderr, c.says) {
			t.Errorf("slipway %s: exit status %d, want %d and %q\n%s", c.args, code, c.code, c.says, stderr)
		}
	}
}

// agreed is whether a command agrees without a terminal, given its flags.
func agreed(t *testing.T, word string, flags ...string) error {
	t.Helper()
	var got error
	app := &cli.App{Commands: []*cli.Command{{Name: "op", Flags: operationFlags(), Action: func(c *cli.Context) error {
		got = agree(context.Background(), c, word)
		return nil
	}}}}
	if err := app.Run(append([]string{"slipway", "op"}, flags...)); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestWithoutATerminalOnlyFlagsAgree(t *testing.T) {
	for _, c := range []struct {
		word  string
		flags []string
		mend  string // "" where it agrees
	}{
		{"", nil, "--yes"},
		{"", []string{"--yes"}, ""},
		{"", []string{"-y"}, ""},
		{"b", nil, "--confirm b"},
		{"b", []string{"--yes"}, "--confirm b"}, // a yes is not enough
		{"b", []string{"--confirm", "a"}, "b"},
		{"b", []string{"--confirm", "b"}, ""},
	} {
		err := agreed(t, c.word, c.flags...)
		if (err == nil) != (c.mend == "") || err != nil && (fault.Of(err) != fault.Usage || !strings.Contains(fault.Mend(err), c.mend)) {
			t.Errorf("word %q, flags %q: %v (%s)", c.word, c.flags, err, fault.Mend(err))
		}
	}
}

func TestNodesAreCompletedForOperationsWithAndWithoutTheFile(t *testing.T) {
	inSmallCluster(t)
	for args, want := range map[string]string{
		"maintenance":                 "on\noff\n",
		"maintenance on":              "db1\ndb2\nlb1\n",
		"maintenance on cluster.yaml": "db1\ndb2\nlb1\n",
		"audit":                       "db1\ndb2\nlb1\n",
	} {
		if code, out, stderr := call(t, append(strings.Fields(args), "--generate-bash-completion")...); code != 0 || out != want {
			t.Errorf("slipway %s: exit status %d, %q\n%s", args, code, out, stderr)
		}
	}
}

func FuzzFileFirst(f *testing.F) {
	f.Add("on\na-db1\ncluster.yaml")
	f.Add("x.yml\n--\ny.yaml")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		args := strings.Split(text, "\n")
		given := slices.Clone(args)
		file, rest := fileFirst(args)
		isFile := func(a string) bool { return strings.HasSuffix(a, ".yaml") || strings.HasSuffix(a, ".yml") }
		switch i := slices.IndexFunc(args, isFile); {
		case !slices.Equal(args, given):
			t.Errorf("%q has become %q", given, args)
		case i < 0 && (file != topologyFile || !slices.Equal(rest, args)):
			t.Errorf("%q: %q and %q", args, file, rest)
		case i >= 0 && (file != args[i] || !slices.Equal(slices.Insert(slices.Clone(rest), i, file), args)):
			t.Errorf("%q: %q and %q", args, file, rest)
		}
	})
}
