package swarm

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

const (
	socketPath  = "/run/docker.sock"
	apiVersion  = "/v1.45"
	answerLimit = 8 << 20
	// answerTime is for a question that Docker may pass on to another manager; one that
	// has no leader answers after 20 seconds.
	answerTime = 45 * time.Second
	loadTime   = 10 * time.Minute
	expelTime  = 30 * time.Second
)

// docker asks the Docker of a node.
type docker struct{ http *http.Client }

// dial makes a client; it connects only when something is asked.
func dial(n *node.Node) *docker {
	socket := n.Path(socketPath)
	return &docker{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 1, IdleConnTimeout: 30 * time.Second,
	}}}
}

func (d *docker) close() { d.http.CloseIdleConnections() }

// refusedError is an answer of Docker that says no.
type refusedError struct {
	code int
	said string
}

func (e *refusedError) Error() string { return "Docker says: " + e.said }

// ask puts a question; in and out may be nil.
func (d *docker) ask(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	return d.send(ctx, answerTime, method, path, "application/json", body, out)
}

func (d *docker) send(ctx context.Context, limit time.Duration, method, path, kind string, body io.Reader, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://docker"+apiVersion+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		request.Header.Set("Content-Type", kind)
	}
	answer, err := d.http.Do(request)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return errors.New("Docker does not run yet")
		}
		return fmt.Errorf("Docker: %s", noanswer.Words(err))
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, answerLimit+1))
	switch {
	case err != nil:
		return fmt.Errorf("Docker: %s", noanswer.Words(err))
	case len(data) > answerLimit:
		return fmt.Errorf("Docker answered more than %d MiB", answerLimit>>20)
	case answer.StatusCode >= 300:
		var why struct {
			Message string `json:"message"`
		}
		json.Unmarshal(data, &why)
		return &refusedError{answer.StatusCode, strings.Join(strings.Fields(why.Message), " ")}
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("Docker's answer makes no sense: %w", err)
	}
	return nil
}

// States of a Docker in respect of a swarm that call for something to be done. There
// are "pending" and "error" besides.
const (
	inactive = "inactive"
	active   = "active"
	locked   = "locked"
)

// local is what a Docker says of its part in a swarm.
type local struct {
	NodeID           string
	LocalNodeState   string
	ControlAvailable bool // it is a manager
	Error            string
	Cluster          *struct{ ID string }
}

func (d *docker) local(ctx context.Context) (local, error) {
	var info struct{ Swarm local }
	err := d.ask(ctx, http.MethodGet, "/info", nil, &info)
	return info.Swarm, err
}

// manages reports whether it is a manager that can be asked.
func (l local) manages() bool { return l.LocalNodeState == active && l.ControlAvailable }

// cluster is the swarm as its managers know it. Its specification is kept as it came:
// an update must hand back all of it.
type cluster struct {
	ID         string
	Version    struct{ Index uint64 }
	Spec       map[string]any
	JoinTokens struct{ Manager, Worker string }
	// DataPathPort is 0 where Docker does not say.
	DataPathPort int
}

func (d *docker) cluster(ctx context.Context) (cluster, error) {
	var c cluster
	err := d.ask(ctx, http.MethodGet, "/swarm", nil, &c)
	return c, err
}

// label reads a label of the swarm.
func (c cluster) label(name string) string {
	labels, _ := c.Spec["Labels"].(map[string]any)
	text, _ := labels[name].(string)
	return text
}

// mark sets a label in the specification.
func (c cluster) mark(name, value string) {
	labels, _ := c.Spec["Labels"].(map[string]any)
	if labels == nil {
		labels = map[string]any{}
	}
	labels[name] = value
	c.Spec["Labels"] = labels
}

// autolock reads whether the managers' state is encrypted with the unlock key.
func (c cluster) autolock() bool {
	encryption, _ := c.Spec["EncryptionConfig"].(map[string]any)
	on, _ := encryption["AutoLockManagers"].(bool)
	return on
}

func (c cluster) setAutolock(on bool) {
	encryption, _ := c.Spec["EncryptionConfig"].(map[string]any)
	if encryption == nil {
		encryption = map[string]any{}
	}
	encryption["AutoLockManagers"] = on
	c.Spec["EncryptionConfig"] = encryption
}

// listen is what a node says of itself when it creates or joins a swarm: all of it
// happens at its first card's address, now and after another card was added.
func listen(self plan.Node) map[string]any {
	return map[string]any{"ListenAddr": address(self), "AdvertiseAddr": address(self), "DataPathAddr": self.Address.String()}
}

// create makes a swarm of which this node is the only manager.
func (d *docker) create(ctx context.Context, self plan.Node, s plan.Swarm) error {
	in := listen(self)
	in["DataPathPort"] = s.DataPathPort
	in["DefaultAddrPool"], in["SubnetSize"] = []string{overlayPool}, overlaySize
	in["Spec"] = map[string]any{"EncryptionConfig": map[string]any{"AutoLockManagers": s.Autolock}}
	return d.ask(ctx, http.MethodPost, "/swarm/init", in, nil)
}

// join has it join another manager's swarm.
func (d *docker) join(ctx context.Context, self plan.Node, a answer) error {
	in := listen(self)
	in["RemoteAddrs"], in["JoinToken"] = []string{a.Address}, a.Token
	return d.ask(ctx, http.MethodPost, "/swarm/join", in, nil)
}

// leave has it forget the swarm.
func (d *docker) leave(ctx context.Context) error {
	return d.ask(ctx, http.MethodPost, "/swarm/leave?force=1", nil, nil)
}

// unlockKey is "" where the swarm is not locked.
func (d *docker) unlockKey(ctx context.Context) (string, error) {
	var out struct{ UnlockKey string }
	err := d.ask(ctx, http.MethodGet, "/swarm/unlockkey", nil, &out)
	return out.UnlockKey, err
}

// update hands the specification back, and has both tokens rotated if that is wanted.
func (d *docker) update(ctx context.Context, c cluster, rotate bool) error {
	turn := strconv.FormatBool(rotate)
	return d.ask(ctx, http.MethodPost, fmt.Sprintf("/swarm/update?version=%d&rotateManagerToken=%s&rotateWorkerToken=%s", c.Version.Index, turn, turn), c.Spec, nil)
}

// Member is a node of the swarm, as its managers know it.
type Member struct {
	ID          string
	Version     struct{ Index uint64 }
	Spec        map[string]any
	Description struct{ Hostname string }
	Status      struct{ State string } // unknown, down, ready, disconnected
	// ManagerStatus is nil for one that is no manager.
	ManagerStatus *struct {
		Leader       bool
		Reachability string // unknown, unreachable, reachable
	}
}

func (m Member) ready() bool { return m.Status.State == "ready" }

// leads reports whether it is the leader.
func (m Member) leads() bool { return m.ManagerStatus != nil && m.ManagerStatus.Leader }

func (d *docker) members(ctx context.Context) ([]Member, error) {
	var list []Member
	err := d.ask(ctx, http.MethodGet, "/nodes", nil, &list)
	return list, err
}

// expel takes a dead member out of the swarm: demoted first, since it votes, then
// removed. One that never got as far as to vote cannot be demoted, only removed.
func (d *docker) expel(ctx context.Context, m Member) error {
	ctx, cancel := context.WithTimeout(ctx, expelTime)
	defer cancel()
	var refused *refusedError
	if m.Spec["Role"] != worker {
		m.Spec["Role"] = worker
		err := d.ask(ctx, http.MethodPost, fmt.Sprintf("/nodes/%s/update?version=%d", m.ID, m.Version.Index), m.Spec, nil)
		if err != nil && !errors.As(err, &refused) {
			return err
		}
	}
	// Its vote goes only after the demotion has been worked out; until then Docker
	// refuses to remove it.
	for {
		err := d.ask(ctx, http.MethodDelete, "/nodes/"+m.ID+"?force=1", nil, nil)
		switch {
		case err == nil, errors.As(err, &refused) && refused.code == http.StatusNotFound:
			return nil
		case !errors.As(err, &refused) || !node.Sleep(ctx, time.Second):
			return err
		}
	}
}

// service is a service of the swarm.
type service struct {
	ID            string
	Spec          struct{ Name string }
	ServiceStatus *struct{ RunningTasks, DesiredTasks int }
}

func (d *docker) services(ctx context.Context) ([]service, error) {
	var list []service
	err := d.ask(ctx, http.MethodGet, "/services?status=true", nil, &list)
	return list, err
}

// hasImage reports whether Docker has an image under a name or digest.
func (d *docker) hasImage(ctx context.Context, reference string) (bool, error) {
	err := d.ask(ctx, http.MethodGet, "/images/"+reference+"/json", nil, nil)
	var refused *refusedError
	if errors.As(err, &refused) && refused.code == http.StatusNotFound {
		return false, nil
	}
	return err == nil, err
}

// discard has Docker forget an image that may be broken, with the tasks that it could not
// start from it, which would keep its files. One that a container runs from is whole.
func (d *docker) discard(ctx context.Context, im image) error {
	tasks := url.Values{"filters": {`{"label":["com.docker.swarm.task.id"]}`}}
	if err := d.ask(ctx, http.MethodPost, "/containers/prune?"+tasks.Encode(), nil, nil); err != nil {
		return err
	}
	err := d.ask(ctx, http.MethodDelete, "/images/"+im.digest+"?force=1", nil, nil)
	var refused *refusedError
	if errors.As(err, &refused) && (refused.code == http.StatusConflict || refused.code == http.StatusNotFound) {
		return nil
	}
	return err
}

// load has Docker take all images of a layout.
func (d *docker) load(ctx context.Context, dir string) error {
	in, out := io.Pipe()
	go func() { out.CloseWithError(pack(out, dir)) }()
	defer in.Close()
	return d.send(ctx, loadTime, http.MethodPost, "/images/load?quiet=1", "application/x-tar", in, nil)
}

// pack writes a directory of files as a tar archive.
func pack(to io.Writer, dir string) error {
	w := tar.NewWriter(to)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(rel), Mode: 0o644, Size: info.Size()}); err != nil {
			return err
		}
		_, err = io.Copy(w, f)
		return err
	})
	return errors.Join(err, w.Close())
}
