package swarm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// What a dispatcher asks another one for.
const (
	forToken = "token" // to join as a manager
	forKey   = "key"   // to unlock its own state
	forStack = "stack" // which services it has the images for
	forRole  = "role"  // what the member of an id is in the swarm
)

// answer is what a dispatcher hands to another. Its secrets are written to no disk.
type answer struct {
	None    bool   `json:"none,omitempty"` // it is in no swarm
	Why     string `json:"why,omitempty"`  // it cannot help now, as words that follow its name
	Address string `json:"address,omitempty"`
	Token   string `json:"token,omitempty"`
	Key     string `json:"key,omitempty"`
	Stack   string `json:"stack,omitempty"` // hash, see stack
	Role    string `json:"role,omitempty"`  // manager, worker or gone
}

// give answers another dispatcher of the site, and nobody else.
func give(ctx context.Context, n *node.Node, to plan.Node, ask url.Values) ([]byte, error) {
	if !applies(n) || to.Role != plan.DispatcherRole || to.Site != n.Member.Self.Site {
		return nil, peers.ErrNotForYou
	}
	d := dial(n)
	defer d.close()
	var (
		a   answer
		err error
	)
	switch ask.Get("what") {
	case forToken:
		a, err = giveToken(ctx, n, d, to)
	case forKey:
		a, err = giveKey(ctx, d)
	case forStack:
		a.Stack, err = ready(ctx, n, d)
	case forRole:
		a.Role, err = roleOf(ctx, d, ask.Get("id"))
	default:
		err = peers.ErrNotForYou
	}
	if errors.Is(err, peers.ErrNotForYou) {
		return nil, err
	}
	if err != nil {
		a = answer{Why: "says: " + err.Error()}
	}
	return json.Marshal(a)
}

// giveToken hands out the token that lets a node join as a manager. What is left of
// a machine that had its name before goes first.
func giveToken(ctx context.Context, n *node.Node, d *docker, to plan.Node) (answer, error) {
	own, err := d.local(ctx)
	switch {
	case err != nil:
		return answer{}, err
	case own.LocalNodeState == inactive:
		return answer{None: true}, nil
	case !own.manages():
		return answer{Why: "is no manager that can be asked (" + own.LocalNodeState + ")"}, nil
	}
	members, err := d.members(ctx)
	if err != nil {
		return answer{}, err
	}
	for _, m := range members {
		switch {
		case !m.is(to):
		case m.Status.State != "down":
			return answer{Why: "has not yet seen that the machine which was " + to.Name + " is gone"}, nil
		default:
			if err := d.expel(ctx, m); err != nil {
				return answer{}, fmt.Errorf("the former %s cannot be removed: %w", to.Name, err)
			}
		}
	}
	c, err := d.cluster(ctx)
	if err != nil {
		return answer{}, err
	}
	return answer{Address: address(n.Member.Self), Token: c.JoinTokens.Manager}, nil
}

func giveKey(ctx context.Context, d *docker) (answer, error) {
	own, err := d.local(ctx)
	if err != nil {
		return answer{}, err
	}
	if !own.manages() {
		return answer{Why: "is no manager that can be asked (" + own.LocalNodeState + ")"}, nil
	}
	key, err := d.unlockKey(ctx)
	return answer{Key: key}, err
}

// roleOf is what the managers know of a member.
func roleOf(ctx context.Context, d *docker, id string) (string, error) {
	members, err := d.members(ctx)
	if err != nil {
		return "", err
	}
	for _, m := range members {
		if m.ID == id {
			role, _ := m.Spec["Role"].(string)
			return role, nil
		}
	}
	return gone, nil
}

// Roles of a member; there is "manager" besides.
const (
	worker = "worker"
	gone   = "gone"
)

// take asks another dispatcher. Its error is in words that begin with the node's name.
func take(ctx context.Context, others peers.Offers, from plan.Node, what, id string) (answer, error) {
	data, err := others.Take(ctx, from.Name, offerName, url.Values{"what": {what}, "id": {id}})
	var a answer
	if err == nil {
		if err = json.Unmarshal(data, &a); err != nil {
			err = errors.New("answered something that this version does not understand")
		}
	}
	if err == nil && a.Why != "" {
		err = errors.New(a.Why)
	}
	if err != nil {
		return a, fmt.Errorf("%s %w", from.Name, err)
	}
	return a, nil
}

// enter brings this node a step nearer to being a manager. It returns true once it
// is one; its error is why that has to wait.
func enter(ctx context.Context, n *node.Node, d *docker, among peers.Offers) (bool, error) {
	own, err := d.local(ctx)
	if err != nil {
		return false, err
	}
	switch {
	case own.manages():
		return true, nil
	case own.LocalNodeState == inactive:
		return false, join(ctx, n, d, among)
	case own.LocalNodeState == locked:
		return false, unlock(ctx, n, d, among)
	}
	// While it starts it is no manager yet, and without a majority it cannot be one. It
	// leaves only if the swarm itself says that it has taken its vote.
	for _, m := range others(n) {
		a, err := take(ctx, among, m, forRole, own.NodeID)
		if err == nil && (a.Role == worker || a.Role == gone) {
			if err := d.leave(ctx); err != nil {
				return false, err
			}
			n.Changed("left the swarm, which had taken its vote, to join anew")
			return false, errJoining
		}
	}
	return false, fmt.Errorf("Docker's part in the swarm is %s %s", own.LocalNodeState, own.Error)
}

// join has this node join the swarm of the others, or create it if it is the first by
// name and all others say that they are in none: since nobody else ever creates one,
// there are never two.
func join(ctx context.Context, n *node.Node, d *docker, among peers.Offers) error {
	var why []string
	for _, m := range others(n) {
		a, err := take(ctx, among, m, forToken, "")
		if err == nil && !a.None {
			if err = d.join(ctx, n.Member.Self, a); err == nil {
				n.Changed("joined the swarm through %s", m.Name)
				return errJoining
			}
			err = fmt.Errorf("%s does not let it in: %w", m.Name, err)
		}
		if err != nil {
			why = append(why, err.Error())
		}
	}
	if len(why) > 0 {
		return errors.New(strings.Join(why, "; "))
	}
	if first := managers(n)[0].Name; first != n.Member.Self.Name {
		return fmt.Errorf("%s creates the swarm", first)
	}
	if err := d.create(ctx, n.Member.Self, *n.Member.Plan.Swarm); err != nil {
		return err
	}
	n.Changed("created the swarm")
	return errJoining
}

var errJoining = errors.New("the swarm takes this node in")

// unlock gets the key that this node's state is encrypted with from a manager that
// runs.
func unlock(ctx context.Context, n *node.Node, d *docker, among peers.Offers) error {
	why := []string{"the swarm is locked (autolock), and no other manager is there that could unlock it: docker swarm unlock"}
	for _, m := range others(n) {
		a, err := take(ctx, among, m, forKey, "")
		if err == nil {
			if err = d.ask(ctx, http.MethodPost, "/swarm/unlock", map[string]string{"UnlockKey": a.Key}, nil); err == nil {
				n.Changed("unlocked the swarm with the key from %s", m.Name)
				return errJoining
			}
		}
		why = append(why, err.Error())
	}
	return errors.New(strings.Join(why, "; "))
}
