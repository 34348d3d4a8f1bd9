package main

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// environment reads the variables that the agent has written, as systemd would
// (systemd.exec(5), EnvironmentFile=).
func environment(dir string) (map[string]string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for number, line := range strings.Split(string(data), "\n") {
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
			return nil, fmt.Errorf("%s/env: line %d is not NAME=\"VALUE\"", dir, number+1)
		}
		env[name] = strings.NewReplacer(`\\`, `\`, `\"`, `"`, "\\`", "`", `\$`, `$`).Replace(value[1 : len(value)-1])
	}
	return env, nil
}

// who serves.
type who struct {
	Dispatcher string `json:"dispatcher"`
	Replica    string `json:"replica"`
}

// identity is this replica's: the dispatcher's name from the agent, the container's
// host name from Docker.
func identity(env map[string]string) who {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return who{env["SLIPWAY_NODE"], host}
}

// certificate is the dispatcher's, read anew when the agent has exchanged it.
type certificate struct {
	dir string

	mu   sync.Mutex
	pair *tls.Certificate
	at   time.Time // of the file that pair was read from
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := filepath.Join(c.dir, "certificate.pem")
	info, err := os.Stat(name)
	if err == nil && (c.pair == nil || !info.ModTime().Equal(c.at)) {
		var pair tls.Certificate
		// While the two files are exchanged they do not go together; the former pair does.
		if pair, err = tls.LoadX509KeyPair(name, filepath.Join(c.dir, "key.pem")); err == nil {
			c.pair, c.at = &pair, info.ModTime()
		}
	}
	if c.pair == nil {
		return nil, err
	}
	return c.pair, nil
}
