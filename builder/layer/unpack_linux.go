package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sort"
	"strings"
	"sync"

	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// unpack lays packages down, several at a time, the largest first so that none
// is left to finish alone.
func (b *builder) unpack(ctx context.Context, pkgs []*pkg) error {
	if len(pkgs) == 0 {
		return nil
	}
	diverted := map[string]diversion{}
	if b.session != nil {
		var err error
		if diverted, err = b.db.diversions(); err != nil {
			return err
		}
	}
	task := b.Progress.Start(b.Name+": unpack", int64(len(pkgs)), progress.Items)
	queue := append([]*pkg(nil), pkgs...)
	sort.SliceStable(queue, func(i, j int) bool { return queue[i].file.Size() > queue[j].file.Size() })
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU() + 1)
	for _, p := range queue {
		group.Go(func() error {
			if err := groupCtx.Err(); err != nil {
				return err
			}
			task.Detail(p.Name)
			contents, err := b.unpackOne(groupCtx, p, b.options(p, diverted))
			if err != nil {
				return fmt.Errorf("unpacking %s %s: %w", p.Name, p.Version, err)
			}
			p.contents = contents
			task.Add(1)
			return nil
		})
	}
	err := group.Wait()
	if err == nil {
		err = b.settleContests(ctx, diverted)
	}
	task.Done(err)
	if err != nil {
		return err
	}
	all := make([]*deb.Contents, len(pkgs))
	for i, p := range pkgs {
		all[i] = p.contents
	}
	return b.root.SetDirs(all)
}

// options say how a package's files are laid down.
func (b *builder) options(p *pkg, diverted map[string]diversion) deb.Options {
	waiting := map[string]bool{}
	if !p.inPlace {
		for _, name := range conffiles(p) {
			waiting[name[1:]] = true
		}
	}
	return deb.Options{
		Keep:      b.Keep,
		Transform: b.Transform,
		Sum:       !p.has("md5sums"),
		Place: func(name string) string {
			// By the spelling that the package uses, as dpkg compares them.
			if d, ok := diverted[name]; ok && d.by != p.Name {
				return d.to
			}
			if waiting[name] {
				name += ".dpkg-new"
			}
			return name
		},
		Claim: func(name string) (bool, error) { return b.owners.claim(p, name) },
	}
}

// unpackOne lays one package down. Once there is a sandbox, dpkg-deb in it
// decompresses.
func (b *builder) unpackOne(ctx context.Context, p *pkg, o deb.Options) (*deb.Contents, error) {
	if b.session == nil {
		data, err := p.file.Data()
		if err != nil {
			return nil, err
		}
		defer data.Close()
		return b.root.Unpack(data, o)
	}
	if contents, ok, err := b.spooled(p, o); ok || err != nil {
		return contents, err
	}
	in, err := p.file.Raw()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	// A larger pipe means fewer switches between the two; a refusal is no harm.
	unix.FcntlInt(write.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	var complaint strings.Builder
	finished := make(chan error, 1)
	go func() {
		err := b.session.Run(ctx, sandbox.Cmd{
			Args: decompressor(), Stdin: in, Stdout: write, Stderr: &complaint,
		})
		write.Close()
		finished <- err
	}()
	contents, err := b.root.Unpack(out, o)
	out.Close()
	var exit *sandbox.ExitError
	if failed := <-finished; errors.As(failed, &exit) && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) {
		return nil, fault.New(fault.Integrity, "%s is damaged: %s", p.Path, strings.TrimSpace(complaint.String())).
			WithMend("remove it from the cache and fetch it again")
	} else if err == nil && failed != nil {
		return nil, failed
	}
	return contents, err
}

// owners knows which package each path came from. Two packages may ship one
// path only if one of them says that it replaces the other.
type owners struct {
	root *deb.Root

	mu        sync.Mutex
	of        map[string]*pkg
	contested map[string]bool
}

// claim decides whether p may write a path now. When paths are contested, the
// winner's are written once more at the end: which of two writers was last is
// chance.
func (o *owners) claim(p *pkg, name string) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of == nil {
		o.of, o.contested = map[string]*pkg{}, map[string]bool{}
	}
	other, ok := o.of[name]
	switch {
	case !ok || other == p:
		o.of[name] = p
		return true, nil
	case supersedes(p, other):
		o.of[name] = p
		other.lost["/"+name] = true
	case supersedes(other, p):
		p.lost["/"+name] = true
	default:
		return false, fault.New(fault.Failed, "/%s is in %s and in %s, and neither replaces the other", name, other.Name, p.Name).
			WithMend("leave one of the two packages out of the profile")
	}
	o.contested[name] = true
	return false, nil
}

// supersedes tells whether p's files take the place of q's (Debian Policy, 7.6.1).
func supersedes(p, q *pkg) bool {
	names := map[string]bool{q.Name: true}
	for _, name := range relationNames(q.file.Fields.Get("Provides")) {
		names[name] = true
	}
	for _, name := range p.replaces {
		if names[name] {
			return true
		}
	}
	return false
}

// settleContests writes the winners' files.
func (b *builder) settleContests(ctx context.Context, diverted map[string]diversion) error {
	winners := map[*pkg]map[string]bool{}
	for name := range b.owners.contested {
		p := b.owners.of[name]
		if winners[p] == nil {
			winners[p] = map[string]bool{}
		}
		winners[p][name] = true
	}
	b.owners.contested = map[string]bool{}
	for p, names := range winners {
		o := b.options(p, diverted)
		o.Claim = func(name string) (bool, error) { return names[name], nil }
		if _, err := b.unpackOne(ctx, p, o); err != nil {
			return fmt.Errorf("unpacking %s %s: %w", p.Name, p.Version, err)
		}
	}
	return nil
}
