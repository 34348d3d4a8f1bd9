package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

func initCommand() *cli.Command {
	return &cli.Command{
		Name:      "init",
		Usage:     "write a commented cluster.yaml from questions or flags",
		ArgsUsage: "[FILE]",
		Description: `Asks on a terminal for what no flag gives; with --yes, or without a terminal,
takes the defaults. What it writes passes slipway check. FILE is cluster.yaml
unless another is named.

Examples:
  slipway init
  slipway init --subnet 192.0.2.0/24 --yes
  slipway init --name orders --subnet 192.0.2.0/24 --databases 2 --balancers 2 --vip 192.0.2.10 --yes
  slipway init --subnet 192.0.2.0/24 --standby 198.51.100.0/24 --user ops --key-file ops.pub --yes`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the cluster", Value: "postgres"},
			&cli.StringFlag{Name: "domain", Usage: "`DOMAIN` of host names"},
			&cli.StringFlag{Name: "subnet", Usage: "`NETWORK` that the nodes are on, such as 192.0.2.0/24"},
			&cli.StringFlag{Name: "gateway", Usage: "`ADDRESS` of its router", DefaultText: "the subnet's first"},
			&cli.IntFlag{Name: "databases", Usage: "how many nodes run PostgreSQL", Value: 3},
			&cli.IntFlag{Name: "balancers", Usage: "how many nodes run HAProxy", Value: 2},
			&cli.StringFlag{Name: "vip", Usage: "virtual `ADDRESS` of the database, or none", DefaultText: "the subnet's tenth"},
			&cli.StringFlag{Name: "vip-on", Usage: "what holds it: balancers or databases", DefaultText: "balancers, if there are any"},
			&cli.IntFlag{Name: "router-id", Usage: "VRRP `ID` of the virtual address, 1 to 255", Value: 51},
			&cli.StringFlag{Name: "standby", Usage: "`NETWORK` of a second site that replicates the first"},
			&cli.IntFlag{Name: "standby-databases", Usage: "how many nodes run PostgreSQL there", Value: 1},
			&cli.StringFlag{Name: "user", Usage: "`NAME` of the administrator on the nodes", DefaultText: "yours"},
			&cli.StringSliceFlag{Name: "key-file", Usage: "`FILE` with the administrator's public SSH keys; may be repeated", DefaultText: "the one in ~/.ssh"},
			&cli.StringSliceFlag{Name: "dns", Usage: "`ADDRESS` of a DNS server; may be repeated"},
			&cli.StringSliceFlag{Name: "ntp", Usage: "`NAME` or address of a time server; may be repeated"},
			&cli.StringSliceFlag{Name: "clients", Usage: "`NETWORK` that applications are in; may be repeated", DefaultText: "the nodes' own"},
			&cli.StringFlag{Name: "database", Usage: "`NAME` of a database to make"},
			&cli.BoolFlag{Name: "yes", Usage: "ask nothing, take the defaults"},
			&cli.BoolFlag{Name: "force", Usage: "overwrite FILE"},
		},
		BashComplete: completeFiles,
		Action: func(c *cli.Context) error {
			var questions io.Reader
			if !c.Bool("yes") && term.IsTerminal(int(os.Stdin.Fd())) {
				questions = os.Stdin
			}
			return initialise(c, questions)
		},
	}
}

// initialise writes the file, from flags and from what questions are answered
// with; without a reader it asks none.
func initialise(c *cli.Context, answers io.Reader) error {
	file, err := fileOrDefault(c)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(file); err == nil && !c.Bool("force") {
		return fault.New(fault.Usage, "%s is there already", file).WithMend("name another file, or overwrite it with --force")
	}
	values := newAnswers(c)
	if answers != nil {
		if err := values.ask(c.App.ErrWriter, answers); err != nil {
			return err
		}
	}
	starter, err := values.starter(file)
	if err != nil {
		return err
	}
	text, err := starter.Text()
	if err != nil {
		return err
	}
	if err := atomicfile.WriteBytes(file, 0o644, text); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "wrote %s\n", file)
	t, err := topology.Load(file)
	if err != nil {
		return err
	}
	for _, w := range t.Warnings {
		fmt.Fprintln(c.App.ErrWriter, w)
	}
	return nil
}

// answers are the values of the flags, by name, and which of them are given.
type answers struct {
	value map[string]string
	given map[string]bool
}

func newAnswers(c *cli.Context) answers {
	a := answers{value: map[string]string{}, given: map[string]bool{}}
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		a.given[name] = c.IsSet(name)
		switch f.(type) {
		case *cli.IntFlag:
			a.value[name] = strconv.Itoa(c.Int(name))
		case *cli.StringSliceFlag:
			a.value[name] = strings.Join(c.StringSlice(name), ",")
		case *cli.StringFlag:
			a.value[name] = c.String(name)
		}
	}
	if !a.given["user"] {
		a.value["user"] = loginName()
	}
	if !a.given["key-file"] {
		a.value["key-file"] = ownKey()
	}
	return a
}

// ask asks for what no flag gives. An empty line is the default.
func (a answers) ask(w io.Writer, r io.Reader) error {
	in := bufio.NewScanner(r)
	for _, q := range []struct{ flag, text string }{
		{"name", "Name of the cluster"},
		{"domain", "Domain of host names, such as example.internal"},
		{"subnet", "Network that the nodes are on, such as 192.0.2.0/24"},
		{"gateway", "Address of its router (empty: the first)"},
		{"databases", "How many nodes run PostgreSQL"},
		{"balancers", "How many nodes run HAProxy"},
		{"vip", "Virtual address of the database (empty: the tenth; none: none)"},
		{"standby", "Network of a second site that replicates the first (empty: none)"},
		{"dns", "DNS servers, with commas"},
		{"ntp", "Time servers, with commas"},
		{"user", "Administrator's login name"},
		{"key-file", "File with the administrator's public SSH keys"},
		{"database", "Name of a database to make (empty: none)"},
	} {
		if a.given[q.flag] {
			continue
		}
		prompt := q.text
		if v := a.value[q.flag]; v != "" {
			prompt += " [" + v + "]"
		}
		fmt.Fprint(w, prompt+": ")
		if !in.Scan() {
			if err := in.Err(); err != nil {
				return fault.New(fault.Usage, "reading an answer: %w", err)
			}
			return fault.New(fault.Usage, "the answers ended before the questions did").WithMend("give flags, and --yes for the defaults")
		}
		if v := strings.TrimSpace(in.Text()); v != "" {
			a.value[q.flag] = v
		}
	}
	return nil
}

// starter reads the answers.
func (a answers) starter(file string) (topology.Starter, error) {
	if a.value["subnet"] == "" {
		return topology.Starter{}, fault.New(fault.Usage, "--subnet is missing").WithMend("name the network that the nodes are on, such as --subnet 192.0.2.0/24")
	}
	s := topology.Starter{File: file, Name: a.value["name"], Domain: a.value["domain"], On: plan.Holder(a.value["vip-on"]),
		User: a.value["user"], Database: a.value["database"], NTP: list(a.value["ntp"])}
	var errs []error
	s.Subnet = read(a, "subnet", netip.ParsePrefix, &errs)
	s.Gateway = read(a, "gateway", netip.ParseAddr, &errs)
	s.Databases = read(a, "databases", strconv.Atoi, &errs)
	s.Balancers = read(a, "balancers", strconv.Atoi, &errs)
	s.RouterID = read(a, "router-id", strconv.Atoi, &errs)
	s.Standby = read(a, "standby", netip.ParsePrefix, &errs)
	s.StandbyDatabases = read(a, "standby-databases", strconv.Atoi, &errs)
	if s.NoVIP = a.value["vip"] == "none"; !s.NoVIP {
		s.VIP = read(a, "vip", netip.ParseAddr, &errs)
	}
	for _, text := range list(a.value["dns"]) {
		s.DNS = append(s.DNS, read(answers{value: map[string]string{"dns": text}}, "dns", netip.ParseAddr, &errs))
	}
	for _, text := range list(a.value["clients"]) {
		s.Clients = append(s.Clients, read(answers{value: map[string]string{"clients": text}}, "clients", netip.ParsePrefix, &errs))
	}
	for _, name := range list(a.value["key-file"]) {
		keys, err := readKeys(name)
		s.Keys, errs = append(s.Keys, keys...), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return s, fault.New(fault.Usage, "%w", err).WithMend("see slipway init --help")
	}
	return s, nil
}

// read parses the value of a flag; an empty one is the zero value.
func read[T any](a answers, flag string, parse func(string) (T, error), errs *[]error) T {
	var zero T
	if a.value[flag] == "" {
		return zero
	}
	v, err := parse(a.value[flag])
	if err != nil {
		*errs = append(*errs, fmt.Errorf("--%s: %w", flag, err))
		return zero
	}
	return v
}

// list reads what commas separate.
func list(text string) []string {
	var items []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// maxKeys bounds a file of public keys.
const maxKeys = 64 << 10

// readKeys reads the lines of a .pub file, or of authorized_keys.
func readKeys(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("--key-file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeys+1))
	if err != nil || len(data) > maxKeys {
		return nil, fmt.Errorf("--key-file: %s is no file of public keys", name)
	}
	// Nothing of a private key may get as far as a message.
	if strings.Contains(string(data), "PRIVATE KEY") {
		return nil, fmt.Errorf("--key-file: %s holds a private key; name the .pub file beside it", name)
	}
	var keys []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			keys = append(keys, line)
		}
	}
	return keys, nil
}

// loginName is the caller's, if nodes can have it.
func loginName() string {
	u, err := user.Current()
	if err != nil || u.Uid == "0" || !regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`).MatchString(u.Username) {
		return "ops"
	}
	return u.Username
}

// ownKey is the caller's public key, or "".
func ownKey() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	for _, name := range []string{"id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"} {
		path := filepath.Join(home, ".ssh", name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path
		}
	}
	return ""
}
