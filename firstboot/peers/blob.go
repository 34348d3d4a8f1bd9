package peers

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

const (
	// blobSilence is how long an administrator who sends a blob, or a node that takes it, may make
	// no progress; the disk of a busy node is slow.
	blobSilence = time.Minute
	// blobCheck is how long the node may take to read the whole blob back.
	blobCheck = 10 * time.Minute
)

// taken is the answer to a blob.
type taken struct {
	Have int64 `json:"have"`
}

// receive answers PUT /v1/blobs/SHA256?offset=N.
func (s *Service) receive(w http.ResponseWriter, r *http.Request) {
	offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	if err != nil || offset < 0 || s.Receive == nil {
		actions.Refuse(w, http.StatusBadRequest, fault.New(fault.Input, "this node takes no such blob: offset %q", r.URL.Query().Get("offset")))
		return
	}
	control := http.NewResponseController(w)
	control.SetWriteDeadline(time.Time{})
	have, err := s.Receive(r.Context(), r.PathValue("sha256"), offset, &patient{
		r.Body, func() { control.SetReadDeadline(time.Now().Add(blobSilence)) }, func() { control.SetReadDeadline(time.Time{}) },
	})
	control.SetWriteDeadline(time.Now().Add(answerLimit))
	if err != nil {
		actions.Refuse(w, http.StatusConflict, err)
		return
	}
	answer(w, taken{have})
}

// patient calls on before each read, and end when there is no more to read.
type patient struct {
	io.Reader
	on, end func()
}

func (p *patient) Read(b []byte) (int, error) {
	p.on()
	n, err := p.Reader.Read(b)
	if err != nil {
		p.end()
	}
	return n, err
}

// Send appends to a blob that the node has offered to take: body is what follows from the offset
// on. It returns how much of the blob the node has then.
func (r Remote) Send(ctx context.Context, sha256 string, offset int64, body io.Reader) (have int64, err error) {
	c := newClient(r.Node.Address, r.Config, r.Dial, nil)
	defer c.close()
	c.patient(blobSilence)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := time.AfterFunc(blobSilence, cancel)
	defer watch.Stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, c.base+"/v1/blobs/"+sha256+"?offset="+strconv.FormatInt(offset, 10),
		&patient{body, func() { watch.Reset(blobSilence) }, func() { watch.Reset(blobCheck) }})
	if err != nil {
		return 0, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return 0, fault.New(fault.Network, "%s (%s): %s", r.Node.Name, r.Node.Address, noanswer.Words(err))
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return 0, fault.New(fault.Network, "%s (%s): %s", r.Node.Name, r.Node.Address, noanswer.Words(err))
	}
	if response.StatusCode != http.StatusOK {
		err := spoken(&statusError{response.StatusCode, data})
		var refused *fault.Error
		if !errors.As(err, &refused) {
			err = fault.New(fault.Network, "%s (%s): %w", r.Node.Name, r.Node.Address, err)
		}
		return 0, err
	}
	var t taken
	if err := json.Unmarshal(data, &t); err != nil {
		return 0, fault.New(fault.Network, "%s (%s): %w", r.Node.Name, r.Node.Address, errNotJSON)
	}
	return t.Have, nil
}
