package balancer

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/status"
)

// leaderPrefix marks the servers that stand in for replicas when there are none.
const leaderPrefix = "leader:"

const (
	statsTime  = 5 * time.Second
	statsLimit = 1 << 20
)

// servers asks HAProxy how its servers are ("show stat", HAProxy Management
// Guide, section 9.3).
func servers(ctx context.Context, socket string) ([]status.Backend, error) {
	ctx, cancel := context.WithTimeout(ctx, statsTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("haproxy does not answer: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// -1: all proxies; 4: servers only; -1: all of them.
	if _, err := io.WriteString(conn, "show stat -1 4 -1\n"); err != nil {
		return nil, fmt.Errorf("haproxy does not answer: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(conn, statsLimit))
	if err != nil {
		return nil, fmt.Errorf("haproxy does not answer: %w", err)
	}
	return parse(data)
}

// parse reads the CSV format of HAProxy's statistics (Management Guide, section
// 9.1). Columns go by their names, since versions add some.
func parse(data []byte) ([]status.Backend, error) {
	text, ok := bytes.CutPrefix(data, []byte("# "))
	if !ok {
		return nil, errors.New("haproxy's statistics do not begin with the names of their columns")
	}
	r := csv.NewReader(bytes.NewReader(text))
	r.FieldsPerRecord = -1
	rows, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("haproxy's statistics cannot be read: %w", err)
	}
	column := map[string]int{}
	if len(rows) > 0 {
		for i, name := range rows[0] {
			column[name] = i
		}
	}
	for _, name := range []string{"pxname", "svname", "status", "check_status", "check_code", "last_chk"} {
		if _, ok := column[name]; !ok {
			return nil, fmt.Errorf("haproxy's statistics have no column %s", name)
		}
	}
	backends := []status.Backend{}
	for _, row := range rows[1:] {
		field := func(name string) string {
			if i := column[name]; i < len(row) {
				return row[i]
			}
			return ""
		}
		state := field("status")
		backends = append(backends, status.Backend{
			Name: field("pxname"), Server: field("svname"),
			// "UP 1/3" is one that is about to go down.
			Up:    strings.HasPrefix(state, "UP"),
			Check: explain(state, field("check_status"), field("check_code"), field("last_chk")),
		})
	}
	return backends, nil
}

// explain is the last health check in words. HAProxy's own codes are those of
// the Configuration Manual's section 9.1, "check_status".
func explain(state, code, status, detail string) string {
	if strings.HasPrefix(state, "NOLB") || strings.HasPrefix(state, "DRAIN") {
		return "takes nobody new"
	}
	code = strings.TrimPrefix(code, "* ") // a check under way
	what := map[string]string{
		"INI": "not checked yet", "L4TOUT": "no connection in time", "L4CON": "no connection",
		"L6TOUT": "no TLS handshake in time", "L6RSP": "the TLS handshake failed",
		"L7TOUT": "no answer in time", "L7RSP": "the answer is no HTTP", "SOCKERR": "no socket",
	}[code]
	switch {
	case code == "":
		return ""
	case strings.HasPrefix(code, "L7") && status != "":
		return "HTTP " + status
	case what == "":
		what = code
	}
	if detail = strings.Join(strings.Fields(detail), " "); detail != "" && code != "INI" {
		return what + ": " + detail
	}
	return what
}
