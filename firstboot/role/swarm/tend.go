package swarm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/role/product"
	"github.com/slipwayhq/slipway/internal/fault"
)

// tend is the leader's work: nobody but the plan's dispatchers is in the swarm, it is
// locked or not as the plan says, the tokens that have travelled count no more, and
// the services are the newest that all dispatchers can run.
func tend(ctx context.Context, n *node.Node, d *docker, among peers.Offers) error {
	own, err := d.local(ctx)
	if err != nil || !own.manages() {
		return err
	}
	members, err := d.members(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(members, func(m Member) bool { return m.ID == own.NodeID && m.leads() }) {
		return nil
	}
	for _, m := range members {
		if m.Status.State == "down" && !planned(n, m) {
			if err := d.expel(ctx, m); err != nil {
				return err
			}
			n.Changed("removed %s from the swarm, which the plan has no more", m.Description.Hostname)
		}
	}
	c, err := d.cluster(ctx)
	if err != nil {
		return err
	}
	if err := settle(ctx, n, d, c, members); err != nil {
		return err
	}
	return deploy(ctx, n, d, members, among)
}

// planned reports whether a member is a dispatcher of the plan.
func planned(n *node.Node, m Member) bool {
	return slices.ContainsFunc(managers(n), m.is)
}

// settle makes the swarm's own settings those of the plan, and rotates the tokens once
// for each set of managers that is complete.
func settle(ctx context.Context, n *node.Node, d *docker, c cluster, members []Member) error {
	want := n.Member.Plan.Swarm.Autolock
	change := c.autolock() != want
	if change {
		c.setAutolock(want)
	}
	var in []string
	for _, m := range members {
		if m.ManagerStatus != nil && planned(n, m) {
			in = append(in, m.ID)
		}
	}
	slices.Sort(in)
	sum := sha256.Sum256([]byte(strings.Join(in, " ")))
	mark := hex.EncodeToString(sum[:])
	rotate := len(in) == len(managers(n)) && c.label(membersLabel) != mark
	if rotate {
		c.mark(membersLabel, mark)
	}
	if !change && !rotate {
		return nil
	}
	if err := d.update(ctx, c, rotate); err != nil {
		return err
	}
	if change {
		n.Changed("autolock is %v now", want)
	}
	if rotate {
		n.Changed("rotated the swarm's tokens: all %d managers are in", len(in))
	}
	return nil
}

// stack is what is to run on the swarm.
type stack struct {
	path string
	env  []string // NAME=VALUE, what the Compose file is read with
	hash string   // of both
}

// stackOf works out what this node's version of the product wants to run. ok is false
// if that is nothing.
func stackOf(n *node.Node) (s stack, ok bool, err error) {
	if s.path = n.Role.Product.Stack; s.path == "" {
		return s, false, nil
	}
	text, err := n.Read(s.path)
	if err != nil {
		return s, false, err
	}
	if len(text) == 0 {
		return s, false, fault.New(fault.Input, "%s, which the profile names as the product's stack, is not in the appliance", s.path).
			WithMend("lay it in an overlay of the role")
	}
	env, err := product.Environment(n.Member)
	if err != nil {
		return s, false, err
	}
	for _, v := range env {
		switch v.Name {
		case "SLIPWAY_NODE", "SLIPWAY_FQDN", "SLIPWAY_ADDRESS": // differ from node to node
		default:
			s.env = append(s.env, v.Name+"="+v.Value)
		}
	}
	list, err := images(n)
	if err != nil {
		return s, false, err
	}
	for _, im := range list {
		s.env = append(s.env, im.variable()+"="+im.reference())
	}
	s.env = append(s.env, "DISPATCHERS="+strconv.Itoa(len(managers(n))))
	all, err := json.Marshal([]any{string(text), s.env})
	if err != nil {
		return s, false, err
	}
	sum := sha256.Sum256(all)
	s.hash = hex.EncodeToString(sum[:])
	return s, true, nil
}

// ready is the hash of the stack that this node could run now, or "".
func ready(ctx context.Context, n *node.Node, d *docker) (string, error) {
	s, ok, err := stackOf(n)
	if err != nil || !ok {
		return "", err
	}
	list, err := images(n)
	if err != nil {
		return "", err
	}
	lacking, err := d.missing(ctx, list)
	if err != nil || len(lacking) > 0 {
		return "", err
	}
	return s.hash, nil
}

// deploy has the swarm run the product's services, once all dispatchers that run could.
func deploy(ctx context.Context, n *node.Node, d *docker, members []Member, among peers.Offers) error {
	s, ok, err := stackOf(n)
	if err != nil || !ok {
		return err
	}
	c, err := d.cluster(ctx)
	if err != nil || c.label(stackLabel) == s.hash {
		return err
	}
	for _, other := range others(n) {
		if !slices.ContainsFunc(members, func(m Member) bool { return m.is(other) && m.ready() }) {
			continue
		}
		a, err := take(ctx, among, other, forStack, "")
		if err != nil {
			return fmt.Errorf("the services wait: %w", err)
		}
		if a.Stack != s.hash {
			return nil // has another version, and takes this one with its own
		}
	}
	argv := append([]string{"env"}, s.env...)
	argv = append(argv, "docker", "stack", "deploy", "--compose-file", s.path, "--resolve-image", "never", "--prune", "--detach=true", stackName)
	if _, err := n.Execute(ctx, node.Command{Argv: argv, Timeout: 5 * time.Minute}); err != nil {
		return fmt.Errorf("the services cannot be deployed: %w", err)
	}
	if c, err = d.cluster(ctx); err != nil {
		return err
	}
	c.mark(stackLabel, s.hash)
	if err := d.update(ctx, c, false); err != nil {
		return err
	}
	n.Changed("deployed the services of %s", s.path)
	return nil
}

// judge says what is wrong with the swarm, as a manager sees it.
func judge(ctx context.Context, n *node.Node, d *docker) (wrong []error) {
	members, err := d.members(ctx)
	if err != nil {
		return []error{err}
	}
	for _, want := range managers(n) {
		i := slices.IndexFunc(members, func(m Member) bool { return m.is(want) })
		switch {
		case i < 0:
			wrong = append(wrong, fmt.Errorf("%s is not in the swarm", want.Name))
		case members[i].ManagerStatus == nil:
			wrong = append(wrong, fmt.Errorf("%s is no manager of the swarm", want.Name))
		case !members[i].ready() || members[i].ManagerStatus.Reachability != "reachable":
			wrong = append(wrong, fmt.Errorf("the swarm does not reach %s (%s, %s)", want.Name, members[i].Status.State, members[i].ManagerStatus.Reachability))
		}
	}
	c, err := d.cluster(ctx)
	if err != nil {
		return append(wrong, err)
	}
	if p := n.Member.Plan.Swarm.DataPathPort; c.DataPathPort != 0 && c.DataPathPort != p {
		wrong = append(wrong, fmt.Errorf("the swarm was made with the data path port %d, and keeps it; the topology says %d", c.DataPathPort, p))
	}
	list, err := d.services(ctx)
	if err != nil {
		return append(wrong, err)
	}
	for _, s := range list {
		if st := s.ServiceStatus; st != nil && st.RunningTasks < st.DesiredTasks {
			wrong = append(wrong, fmt.Errorf("of the service %s %d of %d run", s.Spec.Name, st.RunningTasks, st.DesiredTasks))
		}
	}
	return wrong
}
