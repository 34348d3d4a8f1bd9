package datasource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

// named is a NoCloud source that the kernel's command line or DMI names.
type named struct {
	From     string // who names it
	URL      string // where the files are; "" if only a name or id is given
	Hostname string
	ID       string
}

// parseNamed reads ds=nocloud;s=URL;h=HOST;i=ID out of a text in which it may
// stand among other words, and says whether it is there.
func parseNamed(text string) (n named, ok bool, err error) {
	for _, word := range strings.Fields(text) {
		// Boot loaders need the semicolons escaped or the word quoted, and not
		// all of them take that off again.
		word = strings.NewReplacer(`"`, "", `'`, "", `\`, "").Replace(word)
		rest, is := strings.CutPrefix(word, "ds=")
		if !is {
			continue
		}
		name, args, _ := strings.Cut(rest, ";")
		switch strings.ToLower(name) {
		case "nocloud", "nocloud-net", "nocloudnet":
		default:
			continue
		}
		for _, arg := range strings.Split(args, ";") {
			key, val, _ := strings.Cut(arg, "=")
			switch key {
			case "s", "seedfrom":
				n.URL = val
			case "h", "local-hostname":
				n.Hostname = val
			case "i", "instance-id":
				n.ID = val
			}
		}
		if n.URL == "" {
			return n, true, nil
		}
		if strings.HasPrefix(n.URL, "/") {
			n.URL = "file://" + n.URL
		}
		u, perr := url.Parse(n.URL)
		if perr != nil || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "file" || u.Scheme != "file" && u.Host == "" {
			return n, true, fmt.Errorf("s=%s is neither a http, https nor file URL", n.URL)
		}
		if !strings.HasSuffix(n.URL, "/") && !strings.HasSuffix(n.URL, "=") {
			n.URL += "/"
		}
		return n, true, nil
	}
	return n, false, nil
}

// named looks at the kernel's command line and at DMI. haveDisk says that a
// disk has a seed: then a URL is not fetched, only noted.
func (s *search) named(haveDisk bool) ([]*content, error) {
	cmdline, err := os.ReadFile(filepath.Join(s.env.Root, "/proc/cmdline"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	serial, err := s.env.DMI("product_serial")
	if err != nil {
		s.nothing("the DMI serial number (%v)", plain(err))
	}
	var found []*content
	for _, place := range []struct{ name, text string }{{"kernel command line", string(cmdline)}, {"DMI serial number", serial}} {
		n, ok, err := parseNamed(place.text)
		switch {
		case err != nil:
			return nil, fault.New(fault.Input, "%s by the %s: %w", NoCloud, place.name, err).
				WithMend("Write ds=nocloud;s=http://SERVER/PATH/ there.")
		case !ok:
			if place.text != "" {
				s.nothing("the %s (has no ds=nocloud)", place.name)
			}
			continue
		}
		n.From = place.name
		switch {
		case n.URL == "" && n.Hostname == "" && n.ID == "":
			s.nothing("the %s (ds=nocloud names no URL)", place.name)
		case (haveDisk || len(found) > 0) && n.URL != "":
			s.warnings = append(s.warnings, fmt.Sprintf("the %s names a seed, %s, which has no effect: another seed was found before it", place.name, n.URL))
		case haveDisk || len(found) > 0:
			s.warnings = append(s.warnings, fmt.Sprintf("the %s gives a name or id, which has no effect: another seed was found before it", place.name))
		default:
			seed, err := s.fetchNamed(n)
			if err != nil {
				return nil, err
			}
			found = append(found, seed)
		}
	}
	return found, nil
}

func (s *search) fetchNamed(n named) (*content, error) {
	out := &content{
		source: NoCloud, location: n.From, metaName: "meta-data", networkName: "network-config",
		instanceID: n.ID, hostname: n.Hostname,
	}
	if n.URL == "" {
		return out, nil
	}
	out.location = n.URL + ", named by the " + n.From
	if !strings.HasPrefix(n.URL, "file:") && !s.env.NetworkUp {
		return nil, &NeedsNetworkError{Source: n.From, URL: n.URL}
	}
	for _, f := range []struct {
		name     string
		to       *[]byte
		required bool
	}{{"meta-data", &out.meta, true}, {"user-data", &out.user, true}, {"vendor-data", &out.vendor, false}, {"network-config", &out.network, false}} {
		data, err := s.fetch(n.URL + f.name)
		if errors.Is(err, fs.ErrNotExist) && !f.required {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s by the %s: %w", NoCloud, n.From, err)
		}
		*f.to = data
	}
	return out, nil
}

// fetch reads a URL. A server that does not answer, or answers that it is out
// of order, is asked again; what is not there gives fs.ErrNotExist.
func (s *search) fetch(rawURL string) ([]byte, error) {
	if path, ok := strings.CutPrefix(rawURL, "file://"); ok {
		return readFile(filepath.Join(s.env.Root, "/", path))
	}
	var last error
	for attempt := range s.env.Attempts {
		if attempt > 0 {
			// 1, 2, 4, 8, 10, 10 … seconds
			if err := s.env.Sleep(s.ctx, min(time.Second<<(attempt-1), 10*time.Second)); err != nil {
				return nil, err
			}
		}
		data, again, err := get(s.ctx, s.env.HTTP, rawURL)
		if err == nil || !again {
			return data, err
		}
		last = err
	}
	return nil, fault.New(fault.Network, "%w (tried %d times)", last, s.env.Attempts).
		WithMend("Check that the server is reachable from the node's network.")
}

// get makes one request and says whether another one may do better.
func get(ctx context.Context, client *http.Client, rawURL string) (data []byte, again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
	if err != nil {
		return nil, false, fault.New(fault.Input, "%w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, ctx.Err() == nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return nil, false, fault.New(fault.Input, "%s: the server says %s: %w", rawURL, resp.Status, fs.ErrNotExist).
			WithMend("Put meta-data and user-data there; either may be empty.")
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout:
		return nil, true, fmt.Errorf("%s: the server says %s", rawURL, resp.Status)
	case resp.StatusCode != http.StatusOK:
		return nil, false, fault.New(fault.Network, "%s: the server says %s", rawURL, resp.Status)
	}
	data, err = io.ReadAll(io.LimitReader(resp.Body, MaxFile+1))
	switch {
	case err != nil:
		return nil, true, fmt.Errorf("%s: %w", rawURL, err)
	case len(data) > MaxFile:
		return nil, false, tooLarge(rawURL)
	}
	return data, false, nil
}

// readFile is os.ReadFile with the limit.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(data) > MaxFile {
		err = tooLarge(path)
	}
	return data, err
}
