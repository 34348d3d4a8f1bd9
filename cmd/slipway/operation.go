package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

// reachFlags are those of every command that reaches a cluster's nodes.
func reachFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.BoolFlag{Name: "direct", Usage: "do not look for a lab on this machine"},
		&cli.BoolFlag{Name: "json", Usage: "print JSON; what is said on the way goes to standard error"},
	}, labStoreFlags()...)
}

// operationFlags are those of every operation, with its own before them.
func operationFlags(own ...cli.Flag) []cli.Flag {
	return append(append(own,
		&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"},
		&cli.StringFlag{Name: "confirm", Usage: "agree by the `WORD` that would have to be typed, where a yes is not enough"},
		&cli.BoolFlag{Name: "dry-run", Usage: "show the steps and end"},
	), reachFlags()...)
}

// operationHelp ends the description of every operation.
const operationHelp = `

The steps are shown before anything is done; --yes agrees beforehand, --dry-run ends
there. At the end the cluster is looked at again. After an interruption run the same
command again: it does what is left. A lab of this cluster that runs on this machine
is reached through its gateway; otherwise, or with --direct, the topology's addresses
are. FILE is cluster.yaml unless another is named.

Exit status: 0 done and verified (or nothing to do), 2 wrong usage or nobody agreed,
5 a node cannot be reached, 9 refused, failed, or not all is as it should be.`

// clusterSession is what commands on a running cluster need.
type clusterSession struct {
	*labSession
	vault   *vault.Vault
	cluster *operations.Cluster
}

// beginCluster opens the store of a cluster and finds the way to its nodes. o says
// how the store is opened; a command that changes it closes it (Vault.Close). args
// are the arguments without the topology's file, see fileFirst.
func beginCluster(c *cli.Context, file string, o vault.Options) (*clusterSession, error) {
	l, err := beginLabOf(c, file, nil)
	if err != nil {
		return nil, err
	}
	inLab := false
	if !c.Bool("direct") {
		if inLab, err = l.place.Runs(); err != nil {
			return nil, err
		}
	}
	dir, _ := l.storeDir(c)
	o.Cluster = l.topology.Name
	v, err := openStoreIn(c, dir, o)
	if err != nil {
		return nil, err
	}
	p, err := v.Plan()
	if err == nil && p == nil {
		err = fault.New(fault.Input, "%s holds no plan yet", v.Dir()).WithMend("run: slipway seed %s", l.file)
	}
	if err != nil {
		v.Close()
		return nil, err
	}
	dial := (&net.Dialer{}).DialContext
	if inLab {
		dial = l.client.Dial
	}
	return &clusterSession{l, v, &operations.Cluster{
		Plan: p, Dial: dial,
		TLS: func(right string) (tls.Certificate, *x509.CertPool, error) { return v.AdminTLS(right) },
	}}, nil
}

// has makes sure that the cluster's plan has a node.
func (s *clusterSession) has(node string) error {
	if _, err := s.cluster.Plan.Node(node); err != nil {
		return fault.New(fault.Usage, "%s has no node %q", s.file, node).WithMend("its nodes are %s", strings.Join(nodeNames(s.topology), ", "))
	}
	return nil
}

// fileFirst takes the topology's file out of a command's arguments: the first one
// that ends as one, or else cluster.yaml.
func fileFirst(args []string) (file string, rest []string) {
	file = topologyFile
	for i, a := range args {
		if strings.HasSuffix(a, ".yaml") || strings.HasSuffix(a, ".yml") {
			return a, slices.Delete(slices.Clone(args), i, i+1)
		}
	}
	return file, args
}

// runOperation does an operation with the flags of operationFlags, and prints what
// becomes of it.
func runOperation(c *cli.Context, s *clusterSession, prepare operations.Prepare) error {
	out := c.App.Writer
	if c.Bool("json") {
		out = c.App.ErrWriter
	}
	runner := &operations.Runner{
		Cluster: s.cluster, DryRun: c.Bool("dry-run"),
		Say:   func(line string) { fmt.Fprintln(out, line) },
		Agree: func(ctx context.Context, word string) error { return agree(ctx, c, word) },
	}
	result, err := runner.Run(c.Context, prepare)
	if result != nil && c.Bool("json") {
		if printErr := printJSON(c, result); err == nil {
			err = printErr
		}
	}
	return err
}

// agree asks whether to go on. word has to be typed, unless it is "".
func agree(ctx context.Context, c *cli.Context, word string) error {
	declined := fault.New(fault.Usage, "nobody agreed; nothing was done")
	switch {
	case word != "" && c.IsSet("confirm"):
		if c.String("confirm") != word {
			return fault.New(fault.Usage, "--confirm %s does not agree to this; nothing was done", c.String("confirm")).WithMend("the word is %s", word)
		}
		return nil
	case word == "" && c.Bool("yes"):
		return nil
	case !term.IsTerminal(int(os.Stdin.Fd())) && word != "":
		return declined.WithMend("agree with --confirm %s", word)
	case !term.IsTerminal(int(os.Stdin.Fd())):
		return declined.WithMend("agree with --yes, or look first with --dry-run")
	}
	question := "Go on? [y/N] "
	if word != "" {
		question = fmt.Sprintf("To go on, type %s: ", word)
	}
	fmt.Fprint(os.Stderr, question)
	answered := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		answered <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(os.Stderr)
		return ctx.Err()
	case answer := <-answered:
		if word != "" && answer == word || word == "" && (strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes")) {
			return nil
		}
	}
	return declined
}

// completeOperation offers a topology's nodes behind what is there already, whether
// the file was named or not.
func completeOperation(c *cli.Context) {
	file, _ := fileFirst(c.Args().Slice())
	if t, err := topology.Load(file); err == nil && (c.NArg() == 0 || !strings.HasPrefix(c.Args().Get(c.NArg()-1), "-")) {
		for _, name := range nodeNames(t) {
			fmt.Fprintln(c.App.Writer, name)
		}
	}
	completeFiles(c)
}
