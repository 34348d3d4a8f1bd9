package versions

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/builder/disk"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// sample is an image's content by blob, and the image.
type sample struct {
	image   Image
	content map[string][]byte // by SHA-256
}

func blobOf(b []byte) Blob {
	sum := sha256.Sum256(b)
	return Blob{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(b))}
}

var base, packages, kernel = fill("base", 300_000), fill("packages", 200_000), fill("kernel", 70_000)

func fill(word string, n int) []byte {
	return bytes.Repeat([]byte(word+" "), n/len(word)+1)[:n]
}

// newSample is an image of the role gateway that differs from others in its config layer.
func newSample(t testing.TB, version, postgres string) sample {
	t.Helper()
	s := sample{content: map[string][]byte{}, image: Image{Role: "gateway", Version: version, Files: map[string]Blob{}}}
	add := func(b []byte) Blob {
		blob := blobOf(b)
		s.content[blob.SHA256] = b
		return blob
	}
	m := manifest.Manifest{
		Format: 1, Version: version, Kernel: "6.12", Created: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Role: manifest.Role{Format: 1, Name: "gateway"}, Packages: []manifest.Package{{Name: "postgresql-" + postgres, Version: postgres}},
	}
	for i, content := range [][]byte{base, packages, fill("config of "+version, 50_000)} {
		b := add(content)
		s.image.Layers = append(s.image.Layers, b)
		m.Layers = append(m.Layers, manifest.Layer{Name: []string{"base", "packages", "config"}[i], Digest: b.SHA256, Size: b.Size})
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	s.image.Files = map[string]Blob{
		manifestAt: add(text), "vmlinuz": add(kernel), "initrd": add(fill("initrd of "+version, 30_000)),
		bootConfig: add([]byte("# What GRUB must know.\nset title=\"" + version + "\"\nset args=\"console=tty0 quiet\"\n")),
	}
	return s
}

// files are an image's as they stand on a disk.
func (s sample) files() (files []disk.File) {
	add := func(name string, b []byte) {
		files = append(files, disk.File{Path: name, Size: int64(len(b)), Src: bytes.NewReader(b)})
	}
	for _, b := range s.image.Layers {
		add(layerFile(b.SHA256), s.content[b.SHA256])
	}
	for name, b := range s.image.Files {
		add(path.Join(dirOf(s.image.Version), name), s.content[b.SHA256])
	}
	return files
}

// machine is a node whose disk has a version, and whose power can be cut.
type machine struct {
	node  *node.Node
	store *Store
	disk  *memoryDisk
}

const espSize = 40 << 20

func newMachine(t testing.TB, s sample) *machine {
	t.Helper()
	files := s.files()
	slices.SortFunc(files, func(a, b disk.File) int { return strings.Compare(a.Path, b.Path) })
	im, err := disk.Layout(disk.LayoutInput{Size: 64 << 20, ESPSize: espSize, Files: files, Date: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, espSize)
	if _, err := im.ReadAt(content, 2<<20); err != nil {
		t.Fatal(err)
	}
	m := &machine{disk: &memoryDisk{content: content, left: -1}}
	m.node = &node.Node{
		Root: t.TempDir(), Run: noCommands{}, Role: &manifest.Role{Name: "gateway"},
		Boot: bootfacts.Facts{Format: 1, Version: s.image.Version, ESP: "/dev/vda2"},
	}
	for _, dir := range []string{"/usr/bin", "/var/lib/slipway", filepath.Dir(EnvPath), bootfacts.StateDir + "/upper/" + s.image.Version + "/fs"} {
		if err := os.MkdirAll(m.node.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(m.node.Path("/usr/bin/mount"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	m.setEnv(t, grubenv.Env{Good: s.image.Version})
	m.on()
	return m
}

// on is the agent's start.
func (m *machine) on() {
	m.store = New(m.node, func() (Partition, error) { return m.disk, nil })
}

func (m *machine) setEnv(t testing.TB, e grubenv.Env) {
	t.Helper()
	block, err := e.Bytes()
	if err == nil {
		err = os.WriteFile(m.node.Path(EnvPath), block, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (m *machine) env(t testing.TB) grubenv.Env {
	t.Helper()
	e, err := ReadEnv(m.node)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (m *machine) versions(t testing.TB) string {
	t.Helper()
	list, err := m.store.List()
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, v := range list {
		word := v.Version
		for mark, is := range map[string]bool{"running": v.Running, "good": v.Good, "previous": v.Previous, "incomplete": v.Incomplete} {
			if is {
				word += "+" + mark
			}
		}
		parts := strings.Split(word, "+")
		slices.Sort(parts[1:])
		words = append(words, strings.Join(parts, "+"))
	}
	return strings.Join(words, " ")
}

// boot is what GRUB, the init and a role that comes up do.
func (m *machine) boot(t testing.TB, version string) {
	t.Helper()
	m.node.Boot.Version = version
	if err := os.MkdirAll(m.store.upperDir(version)+"/fs", 0o755); err != nil {
		t.Fatal(err)
	}
	m.setEnv(t, m.env(t).Confirm(version))
	m.on()
}

// upgrade sends what is missing until the version is installed.
func (m *machine) upgrade(s sample) error {
	for range 3 {
		offer, err := m.store.Install(context.Background(), s.image, func(string) {})
		if err != nil || offer.Installed {
			return err
		}
		for _, b := range offer.Missing {
			if have, err := m.store.Receive(context.Background(), b.SHA256, b.Have, bytes.NewReader(s.content[b.SHA256][b.Have:])); err != nil || have != b.Size {
				return fmt.Errorf("%s: %d: %w", b, have, err)
			}
		}
	}
	return errors.New("it never has all")
}

type noCommands struct{}

func (noCommands) Run(context.Context, node.Command) (string, error) { return "", nil }

var errPower = errors.New("the power was cut")

// memoryDisk is a disk that fails after so many operations. What is written counts at once: what a volatile
// cache does is package bootpart's test.
type memoryDisk struct {
	content []byte
	left    int
	ops     int
	undo    []write
}

// write is what stood somewhere before it was written over.
type write struct {
	off int64
	old []byte
}

// back undoes all that was written since the last time.
func (d *memoryDisk) back() {
	for _, w := range slices.Backward(d.undo) {
		copy(d.content[w.off:], w.old)
	}
	d.undo = nil
}

func (d *memoryDisk) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(d.content).ReadAt(p, off)
}

func (d *memoryDisk) WriteAt(p []byte, off int64) (int, error) {
	if d.left == 0 {
		return 0, errPower
	}
	d.left--
	d.ops++
	d.undo = append(d.undo, write{off, bytes.Clone(d.content[off : off+int64(len(p))])})
	return copy(d.content[off:], p), nil
}

func (d *memoryDisk) Sync() error {
	if d.left == 0 {
		return errPower
	}
	return nil
}
func (d *memoryDisk) Size() int64  { return int64(len(d.content)) }
func (d *memoryDisk) Forget()      {}
func (d *memoryDisk) Close() error { return nil }

func TestAnUpgradeSendsOnlyWhatTheNodeLacks(t *testing.T) {
	m, next := newMachine(t, newSample(t, "v1", "17")), newSample(t, "v2", "17")
	offer, err := m.store.Install(t.Context(), next.image, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	for _, b := range offer.Missing {
		missing = append(missing, string(next.content[b.SHA256][:9]))
	}
	slices.Sort(missing)
	// Base, packages and the kernel are there.
	if got := strings.Join(missing, "|"); got != `# What GR|config of|initrd of|{"format"` {
		t.Errorf("missing: %s", got)
	}
	if err := m.upgrade(next); err != nil {
		t.Fatal(err)
	}
	if got := m.versions(t); got != "v1+good+running v2" {
		t.Error(got)
	}
	before := m.disk.ops
	if offer, err := m.store.Install(t.Context(), next.image, func(string) {}); err != nil || !offer.Installed || m.disk.ops != before {
		t.Errorf("a version that is there: %+v, %v, %d writes", offer, err, m.disk.ops-before)
	}
}

func TestWhatIsNotWhatItSaysIsRefused(t *testing.T) {
	next := newSample(t, "v2", "17")
	change := func(how func(*Image)) Image {
		im := next.image
		im.Layers = slices.Clone(im.Layers)
		im.Files = map[string]Blob{}
		for name, b := range next.image.Files {
			im.Files[name] = b
		}
		how(&im)
		return im
	}
	other := newSample(t, "v3", "17")
	for why, c := range map[string]struct {
		image Image
		class fault.Class
	}{
		"another role":                 {change(func(im *Image) { im.Role = "balancer" }), fault.Input},
		"a name that is a path":        {change(func(im *Image) { im.Version = "../x" }), fault.Input},
		"no layers":                    {change(func(im *Image) { im.Layers = nil }), fault.Input},
		"a layer that is too large":    {change(func(im *Image) { im.Layers[0].Size = maxLayer + 1 }), fault.Input},
		"no kernel":                    {change(func(im *Image) { delete(im.Files, "vmlinuz") }), fault.Input},
		"more than fits":               {change(func(im *Image) { im.Layers[2].Size = 2 << 30 }), fault.Space},
		"another manifest's layers":    {change(func(im *Image) { im.Layers[2] = other.image.Layers[2] }), fault.Integrity},
		"another version's manifest":   {change(func(im *Image) { im.Files[manifestAt] = other.image.Files[manifestAt] }), fault.Integrity},
		"the name of one that runs":    {change(func(im *Image) { im.Version = "v1" }), fault.Integrity},
		"a boot.cfg that runs a shell": {change(func(im *Image) { im.Files[bootConfig] = blobOf([]byte("reboot\n")) }), fault.Integrity},
	} {
		m := newMachine(t, newSample(t, "v1", "17"))
		offered := sample{c.image, map[string][]byte{blobOf([]byte("reboot\n")).SHA256: []byte("reboot\n")}}
		for _, s := range []sample{next, other} {
			for sum, b := range s.content {
				offered.content[sum] = b
			}
		}
		err := m.upgrade(offered)
		if err == nil || fault.Of(err) != c.class {
			t.Errorf("%s: %v (%s)", why, err, fault.Of(err))
		}
		if got := m.versions(t); got != "v1+good+running" && got != "v1+good+running v2+incomplete" {
			t.Errorf("%s: %s", why, got)
		}
	}
}

func TestABlobIsTakenOnlyAsOfferedAndGoesOnWhereItStopped(t *testing.T) {
	m, next := newMachine(t, newSample(t, "v1", "17")), newSample(t, "v2", "17")
	config := next.image.Layers[2]
	content := next.content[config.SHA256]
	if _, err := m.store.Receive(t.Context(), config.SHA256, 0, bytes.NewReader(content)); err == nil {
		t.Fatal("a blob is taken that nobody offered")
	}
	if _, err := m.store.Install(t.Context(), next.image, func(string) {}); err != nil {
		t.Fatal(err)
	}
	broken := io.MultiReader(bytes.NewReader(content[:20_000]), brokenReader{})
	if have, err := m.store.Receive(t.Context(), config.SHA256, 0, broken); err == nil || have != 20_000 {
		t.Fatalf("a connection that is lost: %d, %v", have, err)
	}
	m.on() // the agent starts anew
	offer, err := m.store.Install(t.Context(), next.image, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(offer.Missing, func(b Missing) bool { return b.Blob == config })
	if i < 0 || offer.Missing[i].Have != 20_000 {
		t.Fatalf("missing: %v", offer.Missing)
	}
	if have, err := m.store.Receive(t.Context(), config.SHA256, 0, bytes.NewReader(content)); err == nil || have != 20_000 {
		t.Errorf("from the wrong place: %d, %v", have, err)
	}
	damaged := append(bytes.Clone(content[20_000:49_999]), 'x')
	if have, err := m.store.Receive(t.Context(), config.SHA256, 20_000, bytes.NewReader(damaged)); fault.Of(err) != fault.Integrity || have != 0 {
		t.Errorf("damaged: %d, %v", have, err)
	}
	if have, err := m.store.Receive(t.Context(), config.SHA256, 0, bytes.NewReader(append(bytes.Clone(content), 'x'))); fault.Of(err) != fault.Integrity || have != 0 {
		t.Errorf("too long: %d, %v", have, err)
	}
	if err := m.upgrade(next); err != nil {
		t.Error(err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

// TestAPowerCutAtAnyStepOfAnUpgrade goes through two upgrades, so that one is cleaned away too.
func TestAPowerCutAtAnyStepOfAnUpgradeLeavesTheOldVersionsAndTheUpgradeGoesOn(t *testing.T) {
	v1, v2, v3, v4 := newSample(t, "v1", "17"), newSample(t, "v2", "17"), newSample(t, "v3", "17"), newSample(t, "v4", "18")
	prepared := func() *machine {
		m := newMachine(t, v1)
		for _, s := range []sample{v2, v3} {
			if err := m.upgrade(s); err != nil {
				t.Fatal(err)
			}
			m.boot(t, s.image.Version)
		}
		m.disk.ops = 0
		return m
	}
	whole := prepared()
	if got := whole.versions(t); got != "v1 v2+previous v3+good+running" {
		t.Fatal(got)
	}
	if err := whole.upgrade(v4); err != nil {
		t.Fatal(err)
	}
	const after = "v2+previous v3+good+running v4"
	if got := whole.versions(t); got != after {
		t.Fatal(got)
	}
	if _, err := os.Stat(whole.store.upperDir("v1")); !os.IsNotExist(err) {
		t.Error("what v1 wrote is still there")
	}
	m := prepared()
	m.disk.undo = nil
	for at := range whole.disk.ops {
		m.disk.back()
		m.disk.left = at
		m.on()
		if err := m.upgrade(v4); !errors.Is(err, errPower) {
			t.Fatalf("cut at %d: %v", at, err)
		}
		m.disk.left = -1
		m.on()
		now := m.versions(t)
		for _, kept := range []string{"v2+previous", "v3+good+running"} {
			if !slices.Contains(strings.Fields(now), kept) {
				t.Fatalf("cut at %d: %s", at, now)
			}
		}
		if err := m.upgrade(v4); err != nil {
			t.Fatalf("cut at %d, then: %v", at, err)
		}
		if got := m.versions(t); got != after {
			t.Fatalf("cut at %d, then: %s", at, got)
		}
	}
	t.Logf("%d moments", whole.disk.ops)
}

func TestADamagedLayerIsRefusedAndTheVersionsThatNeedItStay(t *testing.T) {
	m, next := newMachine(t, newSample(t, "v1", "17")), newSample(t, "v2", "17")
	i := bytes.Index(m.disk.content, packages)
	m.disk.content[i+100_000] ^= 1
	err := m.upgrade(next)
	if fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), "damaged on this node's disk") {
		t.Errorf("%v", err)
	}
	if got := m.versions(t); got != "v1+good+running" {
		t.Error(got)
	}
}

func TestATrialARollbackAndWhatIsRefused(t *testing.T) {
	m, next := newMachine(t, newSample(t, "v1", "17")), newSample(t, "v2", "18")
	if _, err := m.store.Rollback(t.Context()); err == nil {
		t.Error("there is nothing to go back to, and it goes")
	}
	if _, err := m.store.Try(t.Context(), "v2", next.image.Files[manifestAt].SHA256); err == nil {
		t.Error("a version is tried that is not there")
	}
	if err := m.upgrade(next); err != nil {
		t.Fatal(err)
	}
	if _, err := m.store.Try(t.Context(), "v2", blobOf(nil).SHA256); fault.Of(err) != fault.Integrity {
		t.Errorf("another manifest than asked for: %v", err)
	}
	if restart, err := m.store.Try(t.Context(), "v2", next.image.Files[manifestAt].SHA256); err != nil || !restart {
		t.Fatal(restart, err)
	}
	if e := m.env(t); e.Good != "v1" || e.Try != "v2" || e.Tries != grubenv.Tries {
		t.Errorf("%+v", e)
	}

	// It does not come up in time: back out of the trial.
	m.node.Boot.Version = "v2"
	if back, err := m.store.Rollback(t.Context()); err != nil || *back != (Back{From: "v2", To: "v1", Restart: true}) || m.env(t).Try != "" {
		t.Errorf("%+v, %v", back, err)
	}
	m.node.Boot.Version = "v1"

	// It fails by itself: the reason is told, and ending the trial restarts nothing.
	failed := m.env(t).Start("v2")
	failed.Tries = 0
	m.setEnv(t, failed)
	recorder := &Recorder{Node: m.node}
	recorder.Show(status.Report{Version: "v2", Trial: true, State: status.Converging, Steps: []status.Step{{Name: "role", State: status.Running, WaitingFor: "nginx.service is activating"}}})
	list, err := m.store.List()
	if err != nil || len(list) != 2 || !strings.Contains(list[1].Failed, "nginx.service is activating") || list[1].PostgreSQL != "18" {
		t.Errorf("%+v, %v", list, err)
	}
	if back, err := m.store.Rollback(t.Context()); err != nil || *back != (Back{From: "v2", To: "v1"}) || m.env(t).Failed() {
		t.Errorf("%+v, %v", back, err)
	}

	// It is good, and then it is not: back to the former, on trial.
	m.boot(t, "v2")
	if back, err := m.store.Rollback(t.Context()); err != nil || *back != (Back{From: "v2", To: "v1", Restart: true}) {
		t.Errorf("%+v, %v", back, err)
	}
	if e := m.env(t); e.Try != "v1" || e.Good != "v2" {
		t.Errorf("%+v", e)
	}
	// Asked again before and after the start anew, it goes on.
	if back, err := m.store.Rollback(t.Context()); err != nil || *back != (Back{From: "v2", To: "v1", Restart: true}) {
		t.Errorf("%+v, %v", back, err)
	}
	m.node.Boot.Version = "v1"
	if back, err := m.store.Rollback(t.Context()); err != nil || *back != (Back{From: "v2", To: "v1"}) {
		t.Errorf("%+v, %v", back, err)
	}
	// Unless nobody waits for it any more.
	if back, err := m.store.Abandon(t.Context(), "v0"); err != nil || back.Restart || m.env(t).Try != "v1" {
		t.Errorf("%+v, %v", back, err)
	}
	if back, err := m.store.Abandon(t.Context(), "v1"); err != nil || *back != (Back{From: "v1", To: "v2", Restart: true}) || m.env(t).Try != "" {
		t.Errorf("%+v, %v", back, err)
	}
	m.boot(t, "v1")
	if got := m.versions(t); got != "v1+good+running v2+previous" {
		t.Error(got)
	}
}

func TestTheInitsWordsComeFirst(t *testing.T) {
	m := newMachine(t, newSample(t, "v1", "17"))
	if got := Failure(m.node, "v2"); !strings.Contains(got, "did not get as far") {
		t.Error(got)
	}
	text, err := json.Marshal(bootfacts.Failure{Version: "v2", Why: "layer config:\n it is short"})
	if err == nil {
		err = os.WriteFile(m.node.Path(bootfacts.FailurePath), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := Failure(m.node, "v2"); got != "it could not be started: layer config: it is short" {
		t.Error(got)
	}
}

func FuzzImage(f *testing.F) {
	text, err := json.Marshal(newSample(f, "v2", "17").image)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		var im Image
		if json.Unmarshal(text, &im) != nil || im.Check() != nil {
			return
		}
		for _, b := range im.blobs() {
			if strings.ContainsAny(staged(b.SHA256)+dirOf(im.Version), " \\\n\"$") || strings.Contains(im.Version, "/") || b.Size <= 0 {
				t.Errorf("%+v passes", im)
			}
		}
	})
}
