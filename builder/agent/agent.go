// Package agent compiles the programs that an appliance runs of slipway's own: the
// init of its initramfs and the firstboot agent, and for some roles the command. In
// goes the project's source, out come static executables in the cache.
//
// The bytes depend on the source and the Go toolchain only: paths are trimmed,
// nothing of the version control or of the caller's environment is stamped in.
package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Binaries are the digests of the compiled programs in the cache, SHA-256 in
// hexadecimal.
type Binaries struct {
	Init      string `json:"init"`
	Firstboot string `json:"firstboot"`
}

// RecordKind is the kind of the cache's records that tell which source gave which binaries.
const RecordKind = "agent"

// Build compiles ./cmd/init and ./cmd/firstboot of the project in dir for
// linux/amd64, or takes them from the cache if the source is unchanged.
func Build(ctx context.Context, dir string, c *cache.Cache) (Binaries, error) {
	key, err := Key(dir)
	if err != nil {
		return Binaries{}, err
	}
	b, ok := Cached(c, key)
	if ok {
		return b, nil
	}
	if b.Init, err = Compile(ctx, dir, "./cmd/init", c); err != nil {
		return Binaries{}, err
	}
	if b.Firstboot, err = Compile(ctx, dir, "./cmd/firstboot", c); err != nil {
		return Binaries{}, err
	}
	data, err := json.Marshal(b)
	if err != nil {
		return Binaries{}, err
	}
	return b, c.PutRecord(RecordKind, key, data)
}

// Cached returns the programs of a source's key, if the cache has them.
func Cached(c *cache.Cache, key string) (b Binaries, ok bool) {
	data, ok := c.Record(RecordKind, key)
	if !ok || json.Unmarshal(data, &b) != nil {
		return Binaries{}, false
	}
	_, haveInit := c.Blob(b.Init)
	_, haveFirstboot := c.Blob(b.Firstboot)
	return b, haveInit && haveFirstboot
}

// Key is the key of the record for the source in dir.
func Key(dir string) (string, error) { return sourceKey(dir) }

// Program is the record of the compiled command: its digest in the cache.
type Program struct {
	Command string `json:"command"`
}

// CommandRecord is the kind of the cache's records that tell which source gave which command.
const CommandRecord = "command"

// Command compiles ./cmd/slipway like Build, for the roles that carry it, and returns
// its digest in the cache.
func Command(ctx context.Context, dir string, c *cache.Cache) (digest string, err error) {
	key, err := CommandKey(dir)
	if err != nil {
		return "", err
	}
	if digest, ok := CachedCommand(c, key); ok {
		return digest, nil
	}
	if digest, err = Compile(ctx, dir, "./cmd/slipway", c); err != nil {
		return "", err
	}
	data, err := json.Marshal(Program{digest})
	if err != nil {
		return "", err
	}
	return digest, c.PutRecord(CommandRecord, key, data)
}

// CachedCommand returns the command of a source's key, if the cache has it.
func CachedCommand(c *cache.Cache, key string) (digest string, ok bool) {
	var p Program
	data, ok := c.Record(CommandRecord, key)
	if !ok || json.Unmarshal(data, &p) != nil {
		return "", false
	}
	_, ok = c.Blob(p.Command)
	return p.Command, ok
}

// CommandKey is Key for the command, which imports more.
func CommandKey(dir string) (string, error) { return sourceKey(dir, commandSource...) }

// agentSource is where Key looks, and commandSource where CommandKey looks beside.
var (
	agentSource   = []string{"go.mod", "go.sum", "cmd/init", "cmd/firstboot", "firstboot", "builder", "internal"}
	commandSource = []string{"cmd/slipway", "qemu-tests"}
)

// Source lists the files that Key and CommandKey read, with slashes, below dir. What dir lacks is left out.
func Source(dir string) ([]string, error) {
	var all []string
	for _, top := range slices.Concat(agentSource, commandSource) {
		files, err := sourceFiles(dir, top)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		all = append(all, files...)
	}
	return all, nil
}

// sourceFiles lists the files of the module at or below top, but for tests and their data.
func sourceFiles(dir, top string) (files []string, err error) {
	err = filepath.WalkDir(filepath.Join(dir, top), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && name == "testdata" {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(dir, path)
		files = append(files, filepath.ToSlash(rel))
		return err
	})
	return files, err
}

// sourceKey hashes every Go file and embedded template of the module but its
// tests, with the toolchain's version. It takes in more than the programs
// import, which costs a compiler run now and then and can never be stale.
func sourceKey(dir string, more ...string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version())
	for _, top := range slices.Concat(agentSource, more) {
		files, err := sourceFiles(dir, top)
		for i := 0; i < len(files) && err == nil; i++ {
			var data []byte
			data, err = os.ReadFile(filepath.Join(dir, files[i]))
			fmt.Fprintf(h, "%s %x\n", files[i], sha256.Sum256(data))
		}
		if err != nil {
			return "", fault.New(fault.Input, "reading the agent's source: %w", err).
				WithMend("run slipway in a checkout of the project, or name it with --project")
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Compile runs the Go toolchain on one package of the module in dir and stores the
// executable, whose digest it returns.
func Compile(ctx context.Context, dir, pkg string, c *cache.Cache) (digest string, err error) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return "", fault.New(fault.Missing, "the Go toolchain is not in PATH: %w", err).
			WithMend("install Go 1.26 or later and put it in PATH")
	}
	tmp, err := os.MkdirTemp("", "slipway-agent-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "program")
	cmd := exec.CommandContext(ctx, goTool, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOFLAGS=", "GOEXPERIMENT=", "GOWORK=off")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fault.New(fault.Failed, "compiling %s: %w\n%s", pkg, err, strings.TrimSpace(log.String()))
	}
	f, err := os.Open(out)
	if err != nil {
		return "", err
	}
	defer f.Close()
	w, err := c.NewBlob()
	if err != nil {
		return "", err
	}
	defer w.Abort()
	if _, err := f.WriteTo(w); err != nil {
		return "", err
	}
	digest, _, err = w.Commit()
	return digest, err
}
