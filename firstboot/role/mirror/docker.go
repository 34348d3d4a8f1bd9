package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	daemonPath = "/etc/docker/daemon.json"
	certsDir   = "/etc/docker/certs.d"
	// ownPath remembers what the agent has put into daemon.json and certs.d: the files
	// are not its own, and only that is taken back.
	ownPath    = dir + "/docker.json"
	dockerUnit = "docker.service"
)

// own is what the agent has put into Docker's files.
type own struct {
	Mirror   string `json:"mirror"`             // in registry-mirrors
	Insecure string `json:"insecure,omitempty"` // in insecure-registries
	CA       string `json:"ca,omitempty"`       // path of a file
}

// images points Docker at the mirror's registry, or back.
func images(ctx context.Context, n *node.Node, m *plan.Mirror) error {
	if !n.Has("dockerd") {
		return nil
	}
	var want own
	if m != nil && m.Registry != "" {
		want.Mirror = m.Registry
		host, plain := strings.CutPrefix(m.Registry, "http://")
		if plain {
			want.Insecure = host
		} else if host = strings.TrimPrefix(m.Registry, "https://"); m.CA != "" {
			want.CA = certsDir + "/" + host + "/ca.crt"
		}
	}
	var had []own
	record, err := n.Read(ownPath)
	if err != nil {
		return err
	}
	if len(record) > 0 {
		if err := json.Unmarshal(record, &had); err != nil {
			had = nil // damaged: what it told of stays, beside what comes
		}
	}
	if want == (own{}) && len(had) == 0 {
		return nil
	}
	before, err := n.Read(daemonPath)
	if err != nil {
		return err
	}
	after, err := daemonJSON(before, had, want)
	if err != nil {
		return err
	}
	// Both are remembered until the files are as wanted: a power cut in between leaves
	// nothing that nobody knows of.
	if err := remember(n, append(slices.Clone(had), want)); err != nil {
		return err
	}
	if want.CA != "" {
		if _, err := n.Ensure(want.CA, 0o644, m.CA); err != nil {
			return err
		}
	}
	changed, err := n.Ensure(daemonPath, 0o644, string(after))
	if err != nil {
		return err
	}
	for _, former := range had {
		if former.CA != "" && former.CA != want.CA {
			if _, err := n.Ensure(former.CA, 0, ""); err != nil {
				return err
			}
		}
	}
	if err := remember(n, []own{want}); err != nil || !changed {
		return err
	}
	// Both settings are among those that a reload takes up.
	return n.Nudge(ctx, "reload", dockerUnit)
}

// remember keeps what the agent has put into Docker's files, and may have.
func remember(n *node.Node, all []own) error {
	slices.SortFunc(all, func(a, b own) int { return strings.Compare(a.Mirror+" "+a.CA, b.Mirror+" "+b.CA) })
	all = slices.DeleteFunc(slices.Compact(all), func(o own) bool { return o == own{} })
	if len(all) == 0 {
		_, err := n.Remove(ownPath)
		return err
	}
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	_, err = n.Write(ownPath, 0o644, text)
	return err
}

// daemonJSON is Docker's configuration with what is wanted in place of what the agent
// had put there before.
func daemonJSON(text []byte, had []own, want own) ([]byte, error) {
	config := map[string]any{}
	if len(bytes.TrimSpace(text)) > 0 {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		err := d.Decode(&config)
		if err == nil {
			if _, more := d.Token(); !errors.Is(more, io.EOF) {
				err = errors.New("something stands behind the JSON")
			}
		}
		if err != nil || config == nil {
			return nil, fault.New(fault.Input, "%s cannot be read, so Docker is not told of the mirror: %v", daemonPath, err).
				WithMend("mend the file; the agent tries again at the next boot, or when asked to (systemctl reload slipway-firstboot)")
		}
	}
	changed := false
	for key, of := range map[string]func(own) string{
		"registry-mirrors":    func(o own) string { return o.Mirror },
		"insecure-registries": func(o own) string { return o.Insecure },
	} {
		list, ok := config[key].([]any)
		if !ok && config[key] != nil {
			return nil, fault.New(fault.Input, "%s: %s is no list", daemonPath, key).WithMend("mend the file")
		}
		next := slices.DeleteFunc(slices.Clone(list), func(v any) bool {
			return v == of(want) || slices.ContainsFunc(had, func(o own) bool { return v == of(o) })
		})
		if of(want) != "" {
			next = append([]any{of(want)}, next...)
		}
		if len(list) == len(next) && reflect.DeepEqual(list, next) {
			continue
		}
		changed = true
		if config[key] = next; len(next) == 0 {
			delete(config, key)
		}
	}
	if !changed {
		return text, nil
	}
	out, err := json.MarshalIndent(config, "", "  ")
	return append(out, '\n'), err
}
