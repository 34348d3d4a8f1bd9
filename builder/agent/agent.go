// Package agent compiles the programs that an appliance runs of slipway's own: the
// init of its initramfs and the firstboot agent, and for some roles the command, or those
// that their images are made of. In
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
	"path"
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
func Key(dir string) (string, error) { return sourceKey(dir, agentSource) }

// CommandPackage is the command slipway.
const CommandPackage = "./cmd/slipway"

// Program is the record of a compiled command: its digest in the cache.
type Program struct {
	Command string `json:"command"`
}

// CommandRecord is the kind of the cache's records that tell which source gave which command.
const CommandRecord = "command"

// Command compiles a command of the project like Build, and returns its digest in the cache:
// CommandPackage for the roles that carry it, or one that an image is made of. pkg is its
// package, such as ./service.
func Command(ctx context.Context, dir, pkg string, c *cache.Cache) (digest string, err error) {
	key, err := CommandKey(dir, pkg)
	if err != nil {
		return "", err
	}
	if digest, ok := CachedCommand(c, key); ok {
		return digest, nil
	}
	if err := importsWithin(ctx, dir, pkg); err != nil {
		return "", err
	}
	if digest, err = Compile(ctx, dir, pkg, c); err != nil {
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

// CommandKey is Key for a command.
func CommandKey(dir, pkg string) (string, error) { return sourceKey(dir, commandSource(pkg)) }

// agentSource is where Key looks.
var agentSource = []string{"go.mod", "go.sum", "cmd/init", "cmd/firstboot", "firstboot", "builder", "internal"}

// commandSource is where CommandKey looks: the command slipway imports from most of the project, others
// from their own directory alone.
func commandSource(pkg string) []string {
	if pkg == CommandPackage {
		return slices.Concat(agentSource, []string{"cmd/slipway", "qemu-tests"})
	}
	return []string{"go.mod", "go.sum", path.Clean(pkg)}
}

// importsWithin refuses a command that imports packages of the project from where CommandKey
// does not look: a change there would go unseen.
func importsWithin(ctx context.Context, dir, pkg string) error {
	out, err := goTool(ctx, dir, "list", "-deps", "-f", "{{with .Module}}{{if .Main}}{{$.ImportPath}} {{.Path}}{{end}}{{end}}", pkg)
	if err != nil {
		return err
	}
	tops := commandSource(pkg)
	for line := range strings.Lines(out) {
		imported, module, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		at := strings.TrimPrefix(strings.TrimPrefix(imported, module), "/")
		if !slices.ContainsFunc(tops, func(top string) bool { return at == top || strings.HasPrefix(at, top+"/") }) {
			return fault.New(fault.Input, "%s imports %s, which is in none of %s", pkg, imported, strings.Join(tops, ", ")).
				WithMend("move that package below %s: what a program is made of is told by the files there", pkg)
		}
	}
	return nil
}

// Source lists the files that Key, and CommandKey of the command slipway, read, with slashes, below dir. What dir lacks is left out.
func Source(dir string) ([]string, error) {
	var all []string
	for _, top := range commandSource(CommandPackage) {
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
func sourceKey(dir string, tops []string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version())
	for _, top := range tops {
		files, err := sourceFiles(dir, top)
		if top == "go.sum" && errors.Is(err, fs.ErrNotExist) {
			continue // nothing is imported from elsewhere
		}
		for i := 0; i < len(files) && err == nil; i++ {
			var data []byte
			data, err = os.ReadFile(filepath.Join(dir, files[i]))
			fmt.Fprintf(h, "%s %x\n", files[i], sha256.Sum256(data))
		}
		if err != nil {
			return "", fault.New(fault.Input, "reading the source of a program: %w", err).
				WithMend("run slipway in a checkout of the project, or name it with --project")
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Compile runs the Go toolchain on one package of the module in dir and stores the
// executable, whose digest it returns.
func Compile(ctx context.Context, dir, pkg string, c *cache.Cache) (digest string, err error) {
	tmp, err := os.MkdirTemp("", "slipway-agent-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "program")
	if _, err := goTool(ctx, dir, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, pkg); err != nil {
		return "", err
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

// goTool runs the Go toolchain in dir for linux/amd64 and returns what it prints. A directory named
// vendor is no matter of Go's: what a vendor brings may be there.
func goTool(ctx context.Context, dir string, args ...string) (string, error) {
	tool, err := exec.LookPath("go")
	if err != nil {
		return "", fault.New(fault.Missing, "the Go toolchain is not in PATH: %w", err).
			WithMend("install Go 1.26 or later and put it in PATH")
	}
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOFLAGS=-mod=readonly", "GOEXPERIMENT=", "GOWORK=off")
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fault.New(fault.Failed, "compiling %s: %w\n%s", args[len(args)-1], err, strings.TrimSpace(log.String()))
	}
	return out.String(), nil
}
