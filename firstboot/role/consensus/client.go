package consensus

import (
	"context"
	"encoding/base64"
	"net/http"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/mtls"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Client asks a site's etcd, whichever member answers.
type Client struct {
	mtls *mtls.Client
	urls []string // of the members
}

// Dial makes a client with the node's certificate: a member's own, else the one
// that database nodes have. It connects only when something is asked.
func Dial(m *member.Member) (*Client, error) {
	pair, ok := m.Certificates[member.EtcdClient]
	if !ok {
		pair, ok = m.Certificates[member.EtcdCert]
	}
	if !ok {
		return nil, fault.New(fault.Input, "the seed of %s holds no certificate for etcd", m.Self.Name)
	}
	client, err := mtls.New(m.EtcdAuthority, pair)
	if err != nil {
		return nil, err
	}
	c := &Client{mtls: client}
	for _, peer := range m.Plan.ConsensusNodes(m.Site.Name) {
		c.urls = append(c.urls, Endpoint(peer))
	}
	return c, nil
}

// Close ends the client's connections.
func (c *Client) Close() { c.mtls.Close() }

// memberStatus is the answer to "status" of etcd's maintenance service.
type memberStatus struct {
	Header struct {
		MemberID string `json:"member_id"`
	} `json:"header"`
	Leader  string   `json:"leader"`    // "0" or absent: none
	Learner bool     `json:"isLearner"` // it has no vote yet
	Errors  []string `json:"errors"`
}

func (c *Client) status(ctx context.Context, at string) (memberStatus, error) {
	var s memberStatus
	err := c.mtls.JSON(ctx, http.MethodPost, at+"/v3/maintenance/status", struct{}{}, &s)
	return s, err
}

// listed is a member as the cluster knows it.
type listed struct {
	ID         string   `json:"ID"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"` // empty until it was started for the first time
	Learner    bool     `json:"isLearner"`  // it has no vote yet
}

func (c *Client) members(ctx context.Context, at string) ([]listed, error) {
	var answer struct {
		Members []listed `json:"members"`
	}
	err := c.mtls.JSON(ctx, http.MethodPost, at+"/v3/cluster/member/list", struct{}{}, &answer)
	return answer.Members, err
}

// agreed are the members as a majority of them knows.
func (c *Client) agreed(ctx context.Context, at string) ([]listed, error) {
	var answer struct {
		Members []listed `json:"members"`
	}
	err := c.mtls.JSON(ctx, http.MethodPost, at+"/v3/cluster/member/list", map[string]any{"linearizable": true}, &answer)
	return answer.Members, err
}

// electionLimit is how long members may take to agree again after their leader has gone.
const electionLimit = time.Minute

// settled is agreed once the members agree again: while they elect a leader, none of
// them answers such a question.
func (c *Client) settled(ctx context.Context, at string) ([]listed, error) {
	bounded, cancel := context.WithTimeout(ctx, electionLimit)
	defer cancel()
	for {
		known, err := c.agreed(bounded, at)
		if err == nil || !node.Sleep(bounded, lookAgain) {
			return known, err
		}
	}
}

// listed are the members as whoever answers first knows them.
func (c *Client) listed(ctx context.Context) (known []listed, err error) {
	var answer struct {
		Members []listed `json:"members"`
	}
	err = c.any(ctx, "/v3/cluster/member/list", struct{}{}, &answer)
	return answer.Members, err
}

// add makes a node a member, before it is started for the first time. It learns
// until it has all that the others have, and votes only then (etcd documentation,
// "Learner"): the cluster needs no more members for a quorum until there are more.
func (c *Client) add(ctx context.Context, at, peerURL string) ([]listed, error) {
	var answer struct {
		Members []listed `json:"members"`
	}
	err := c.mtls.JSON(ctx, http.MethodPost, at+"/v3/cluster/member/add", map[string]any{"peerURLs": []string{peerURL}, "isLearner": true}, &answer)
	return answer.Members, err
}

// promote has a learner vote. etcd refuses as long as it has too much to learn.
func (c *Client) promote(ctx context.Context, at, id string) error {
	return c.mtls.JSON(ctx, http.MethodPost, at+"/v3/cluster/member/promote", map[string]any{"ID": id}, nil)
}

// keyValue is an entry of the store; the gateway writes bytes in base64.
type keyValue struct {
	Value string `json:"value"`
}

// Get reads a key, as a majority of the members knows it. found tells an empty
// value from none.
func (c *Client) Get(ctx context.Context, key string) (value string, found bool, err error) {
	var answer struct {
		KVs []keyValue `json:"kvs"`
	}
	if err = c.any(ctx, "/v3/kv/range", map[string]any{"key": encode(key)}, &answer); err != nil || len(answer.KVs) == 0 {
		return "", false, err
	}
	data, err := base64.StdEncoding.DecodeString(answer.KVs[0].Value)
	return string(data), err == nil, err
}

// Put sets a key.
func (c *Client) Put(ctx context.Context, key, value string) error {
	return c.any(ctx, "/v3/kv/put", map[string]any{"key": encode(key), "value": encode(value)}, nil)
}

// DeleteEmpty takes a key away if its value is empty, in one step with the look.
func (c *Client) DeleteEmpty(ctx context.Context, key string) error {
	return c.any(ctx, "/v3/kv/txn", map[string]any{
		"compare": []any{
			map[string]any{"key": encode(key), "target": "VALUE", "value": ""},
			map[string]any{"key": encode(key), "target": "CREATE", "result": "GREATER", "create_revision": "0"},
		},
		"success": []any{map[string]any{"request_delete_range": map[string]any{"key": encode(key)}}},
	}, nil)
}

// List reads all keys with a prefix, without their values.
func (c *Client) List(ctx context.Context, prefix string) ([]string, error) {
	var answer struct {
		KVs []struct {
			Key string `json:"key"`
		} `json:"kvs"`
	}
	in := map[string]any{"key": encode(prefix), "range_end": encode(after(prefix)), "keys_only": true}
	if err := c.any(ctx, "/v3/kv/range", in, &answer); err != nil {
		return nil, err
	}
	var keys []string
	for _, kv := range answer.KVs {
		key, err := base64.StdEncoding.DecodeString(kv.Key)
		if err != nil {
			return nil, err
		}
		keys = append(keys, string(key))
	}
	return keys, nil
}

// Delete takes keys away, all in one step. Those that are not there are no error.
func (c *Client) Delete(ctx context.Context, keys ...string) error {
	var deeds []any
	for _, key := range keys {
		deeds = append(deeds, map[string]any{"request_delete_range": map[string]any{"key": encode(key)}})
	}
	if len(deeds) == 0 {
		return nil
	}
	return c.any(ctx, "/v3/kv/txn", map[string]any{"success": deeds}, nil)
}

// after is the first key behind all those with a prefix (etcd API, "range_end"). A
// prefix here ends in a slash.
func after(prefix string) string {
	return prefix[:len(prefix)-1] + string(prefix[len(prefix)-1]+1)
}

// Replace gives a key a new value, in one step with the look whether it still has
// the old one, and reports whether it had.
func (c *Client) Replace(ctx context.Context, key, old, value string) (bool, error) {
	return c.ifStill(ctx, key, old, map[string]any{"request_put": map[string]any{"key": encode(key), "value": encode(value)}})
}

// DeleteIf takes a key away if it still has that value, and reports whether it had.
func (c *Client) DeleteIf(ctx context.Context, key, old string) (bool, error) {
	return c.ifStill(ctx, key, old, map[string]any{"request_delete_range": map[string]any{"key": encode(key)}})
}

func (c *Client) ifStill(ctx context.Context, key, old string, do map[string]any) (bool, error) {
	var answer struct {
		Succeeded bool `json:"succeeded"`
	}
	err := c.any(ctx, "/v3/kv/txn", map[string]any{
		"compare": []any{map[string]any{"key": encode(key), "target": "VALUE", "value": encode(old)}},
		"success": []any{do},
	}, &answer)
	return answer.Succeeded, err
}

func encode(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// any asks one member after the other until one answers.
func (c *Client) any(ctx context.Context, path string, in, out any) error {
	err := error(fault.New(fault.Input, "the plan names no node that runs etcd for this site"))
	for _, at := range c.urls {
		if err = c.mtls.JSON(ctx, http.MethodPost, at+path, in, out); err == nil || ctx.Err() != nil {
			break
		}
	}
	return err
}
