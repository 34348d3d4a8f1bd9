package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/mirror/store"
	"github.com/slipwayhq/slipway/firstboot/actions/actionstest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// machine is a mirror with devices. A device has a file system, or none; mounting one with
// volumes shows a VOLUME.
type machine struct {
	*node.Node
	*commands
	kinds   map[string]string // by device
	volumes map[string]bool
	mounted map[string]string // device by mount point
	options string            // of the import, when it ran
	said    []string          // what the last load said
	state   string            // of the import's unit; "" is inactive
	ends    func() error      // what the import does
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	n, run, _ := testNode(t, &plan.Mirror{Node: "m1", URL: "https://192.0.2.61", Key: "k"})
	n.Member.Self.Name = "m1"
	m := &machine{Node: n, commands: run, kinds: map[string]string{}, volumes: map[string]bool{}, mounted: map[string]string{}, ends: func() error { return nil }}
	put(t, n, "/proc/self/mountinfo", "22 1 254:3 / /state rw - ext4 /dev/vda3 rw\n23 1 0:20 / /proc rw - proc proc rw\n")
	for _, program := range []string{"blkid", "mount", "umount"} {
		put(t, n, "/usr/bin/"+program, "#!")
	}
	m.disk(t, "vda", "254:0", "20000", "")
	m.part(t, "vda", "vda2", "254:2", "vfat")
	m.part(t, "vda", "vda3", "254:3", "ext4")
	m.disk(t, "loop0", "7:0", "100", "squashfs")
	m.disk(t, "sr0", "11:0", "0", "") // an empty drive
	run.answer = m.obey
	return m
}

func (m *machine) disk(t *testing.T, name, number, size, kind string) {
	t.Helper()
	m.attributes(t, "/sys/devices/"+name, name, number, size, kind)
}

func (m *machine) part(t *testing.T, disk, name, number, kind string) {
	t.Helper()
	m.attributes(t, "/sys/devices/"+disk+"/"+name, name, number, "1000", kind)
	put(t, m.Node, "/sys/devices/"+disk+"/"+name+"/partition", "1")
}

func (m *machine) attributes(t *testing.T, at, name, number, size, kind string) {
	t.Helper()
	m.kinds[name] = kind
	put(t, m.Node, at+"/size", size+"\n")
	put(t, m.Node, at+"/dev", number+"\n")
	link := m.Path("/sys/class/block/" + name)
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(m.Path(at), link); err != nil {
		t.Fatal(err)
	}
}

// obey is what the node's programs do.
func (m *machine) obey(c node.Command) (string, error) {
	last := c.Argv[len(c.Argv)-1]
	switch strings.Join(c.Argv[:min(2, len(c.Argv))], " ") {
	case "blkid -p":
		if kind := m.kinds[filepath.Base(last)]; kind == "ambivalent" {
			return "", &node.CommandError{Argv: c.Argv, Err: exec.Command("/bin/sh", "-c", "exit 8").Run()}
		} else if kind != "" {
			return kind + "\n", nil
		}
		return "", errors.New("exit status 2")
	case "mount -t":
		device := filepath.Base(c.Argv[len(c.Argv)-2])
		if m.kinds[device] == "broken" {
			return "", errors.New("wrong fs type")
		}
		m.mounted[last] = device
		if m.volumes[device] {
			_, err := m.Write(last+"/volume-1/VOLUME", 0o644, nil)
			return "", err
		}
		return "", nil
	case "umount " + last:
		if m.mounted[last] == "" {
			return "", errors.New("not mounted")
		}
		delete(m.mounted, last)
		return "", os.RemoveAll(m.Path(last + "/volume-1"))
	case "systemctl is-active":
		if last == ImportUnit && m.state != "" {
			return m.state + "\n", errors.New("exit status 3")
		}
		if last == ImportUnit {
			return "inactive\n", errors.New("exit status 3")
		}
	case "systemctl start":
		options, err := m.Read(optionsFile)
		m.options = string(options)
		return "", errors.Join(err, m.ends())
	}
	return "", nil
}

func (m *machine) load(t *testing.T, args LoadArgs) (LoadResult, error) {
	t.Helper()
	m.said = nil
	text, err := actionstest.Hear(t.Context(), Load, m.Node, args, func(line string) { m.said = append(m.said, line) })
	var r LoadResult
	if err == nil {
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.mounted) > 0 {
		t.Errorf("still mounted: %v", m.mounted)
	}
	if left, _ := filepath.Glob(m.Path(mediaDir + "/*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	return r, err
}

func TestAllMediaWithVolumesAreTakenInAndTheNodesOwnDiskIsLeftAlone(t *testing.T) {
	m := newMachine(t)
	m.disk(t, "sr1", "11:1", "900", "iso9660")
	m.disk(t, "sr2", "11:2", "900", "iso9660") // the seed
	m.disk(t, "vdb", "254:16", "900", "")
	m.part(t, "vdb", "vdb1", "254:17", "ext4")
	m.disk(t, "vdc", "254:32", "900", "xfs")
	m.volumes["sr1"], m.volumes["vdb1"] = true, true
	m.ends = func() error {
		_, err := m.Write(resultFile, 0o644, []byte(`[{"site":"plant-7","edition":3,"volumes":[1,2],"missing":[4],"damaged":[]}]`))
		return err
	}
	r, err := m.load(t, LoadArgs{AllowOlder: true})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Media, []string{"/dev/sr1", "/dev/vdb1"}) || len(r.Imported) != 1 || r.Imported[0].Edition != 3 || !slices.Equal(r.Imported[0].Missing, []int{4}) {
		t.Errorf("%+v", r)
	}
	if want := "OPTIONS=--allow-older " + mediaDir + "/sr1 " + mediaDir + "/vdb1\n"; m.options != want {
		t.Errorf("the import is told %q, want %q", m.options, want)
	}
	for _, c := range m.ran {
		if strings.HasPrefix(c, "mount ") && !strings.Contains(c, " ro,nosuid,nodev,noexec") {
			t.Errorf("%s", c)
		}
		if strings.HasPrefix(c, "mount -t ext4 ") && !strings.Contains(c, ",noload ") {
			t.Errorf("the journal would be replayed onto the medium: %s", c)
		}
		if strings.Contains(c, "/dev/vda") || strings.Contains(c, "mount -t xfs") || strings.Contains(c, "/dev/loop") {
			t.Errorf("not its business: %s", c)
		}
	}
}

func TestWithoutMediaItSaysWhatIsAttached(t *testing.T) {
	m := newMachine(t)
	_, err := m.load(t, LoadArgs{})
	if fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "nothing is attached but the node's own disk") || fault.Mend(err) == "" {
		t.Errorf("%v", err)
	}
	m.disk(t, "sr1", "11:1", "900", "iso9660")
	if _, err := m.load(t, LoadArgs{}); err == nil || !strings.Contains(err.Error(), "there is no VOLUME on /dev/sr1 (iso9660)") {
		t.Errorf("%v", err)
	}
	m.disk(t, "vdb", "254:16", "900", "ntfs")
	m.disk(t, "vdc", "254:32", "900", "ambivalent")
	_, err = m.load(t, LoadArgs{})
	if err == nil || !strings.Contains(err.Error(), "/dev/sr1 (iso9660), /dev/vdb (ntfs: cannot be read here), /dev/vdc (several file systems at once: cannot be read here)") || !strings.Contains(fault.Mend(err), "exFAT") {
		t.Errorf("%v, %q", err, fault.Mend(err))
	}
	if m.options != "" {
		t.Error("the import ran")
	}
}

func TestAMediumThatFailsIsNamedBesideThoseThatAreTakenIn(t *testing.T) {
	m := newMachine(t)
	m.disk(t, "sr1", "11:1", "900", "iso9660")
	m.disk(t, "vdb", "254:16", "900", "vfat")
	m.disk(t, "vdc", "254:32", "900", "vfat")
	m.volumes["sr1"] = true
	answer := m.answer
	m.answer = func(c node.Command) (string, error) {
		switch last := c.Argv[len(c.Argv)-1]; {
		case c.Argv[0] == "mount" && strings.HasSuffix(last, "/vdb"):
			return "", errors.New("wrong fs type")
		case c.Argv[0] == "mount" && strings.HasSuffix(last, "/vdc"): // a directory that cannot be read
			at := m.Path(last)
			m.mounted[last] = "vdc"
			return "", errors.Join(os.Remove(at), os.Symlink(filepath.Base(at), at))
		case c.Argv[0] == "umount" && strings.HasSuffix(last, "/vdc"):
			delete(m.mounted, last)
			return "", nil
		}
		return answer(c)
	}
	m.ends = func() error {
		_, err := m.Write(resultFile, 0o644, []byte(`[{"site":"plant-7","edition":3,"volumes":[1],"missing":[],"damaged":[],"published":true}]`))
		return err
	}
	r, err := m.load(t, LoadArgs{})
	if err != nil || !slices.Equal(r.Media, []string{"/dev/sr1"}) {
		t.Errorf("%+v, %v", r, err)
	}
	said := strings.Join(m.said, "\n")
	for _, want := range []string{"passed over: /dev/vdb could not be mounted: wrong fs type", "passed over: /dev/vdc: looking for volumes: "} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
}

func TestMediaAreTakenInByOneAtATime(t *testing.T) {
	m := newMachine(t)
	m.disk(t, "sr1", "11:1", "900", "iso9660")
	m.volumes["sr1"] = true
	for _, state := range []string{"active", "activating"} { // a oneshot that runs is activating
		m.state = state
		if _, err := m.load(t, LoadArgs{}); fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "already") {
			t.Errorf("while it is %s: %v", state, err)
		}
	}
	if m.options != "" {
		t.Error("the import ran twice")
	}
}

// systemd does not start a unit whose conditions are not met, and calls that a success.
func TestAnImportThatDidNotRunIsAFailure(t *testing.T) {
	m := newMachine(t)
	m.disk(t, "sr1", "11:1", "900", "iso9660")
	m.volumes["sr1"] = true
	if _, err := m.load(t, LoadArgs{}); fault.Of(err) != fault.Failed || !strings.Contains(fault.Mend(err), "systemctl status "+ImportUnit) {
		t.Errorf("%v, %q", err, fault.Mend(err))
	}
}

func TestTheImportsComplaintReachesTheAdministrator(t *testing.T) {
	m := newMachine(t)
	m.disk(t, "sr1", "11:1", "900", "iso9660")
	m.volumes["sr1"] = true
	m.ends = func() error {
		_, err := m.Write(sayingsFile, 0o644, []byte("volume 1 of 2: 10%\n{\"error\":{\"class\":\"integrity\",\"message\":\"volume 1 is damaged\",\"mend\":\"bring it again\"}}\n"))
		return errors.Join(err, errors.New("exit status 1"))
	}
	_, err := m.load(t, LoadArgs{})
	if fault.Of(err) != fault.Integrity || err.Error() != "volume 1 is damaged" || fault.Mend(err) != "bring it again" {
		t.Errorf("%v, %q", err, fault.Mend(err))
	}
	m.ends = func() error { return errors.New("exit status 1") }
	if _, err := m.load(t, LoadArgs{}); fault.Of(err) != fault.Failed || !strings.Contains(fault.Mend(err), "journalctl -u "+ImportUnit) {
		t.Errorf("%v, %q", err, fault.Mend(err))
	}
}

func TestAfterDamageItSaysWhatToBring(t *testing.T) {
	m := newMachine(t)
	m.disk(t, "sr1", "11:1", "900", "iso9660")
	m.volumes["sr1"] = true
	bad := make([]string, 30)
	for i := range bad {
		bad[i] = fmt.Sprintf("volume-2/data/%d has another hash", i)
	}
	result, err := json.Marshal([]store.Imported{{Site: "plant-7", Edition: 3, Volumes: []int{2}, Missing: []int{1, 2, 4}, Damaged: bad}})
	if err != nil {
		t.Fatal(err)
	}
	m.ends = func() error {
		_, err := m.Write(resultFile, 0o644, result)
		_, err2 := m.Write(sayingsFile, 0o644, []byte("{\"error\":{\"class\":\"integrity\",\"message\":\"volume 2 is damaged\"}}\n"))
		return errors.Join(err, err2, errors.New("exit status 6"))
	}
	if _, err := m.load(t, LoadArgs{}); fault.Of(err) != fault.Integrity {
		t.Errorf("%v", err)
	}
	said := strings.Join(m.said, "\n")
	for _, want := range []string{"damaged: volume-2/data/0 has another hash\n", "damaged: volume-2/data/19 ", "and 10 more files are damaged", "edition 3 of plant-7 is not complete; still to come: volume 1, 2 and 4"} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
	if strings.Contains(said, "data/20") {
		t.Errorf("it says all of\n%s", said)
	}
}

func TestWhoeverGoesAwayStopsTheImport(t *testing.T) {
	m := newMachine(t)
	m.disk(t, "sr1", "11:1", "900", "iso9660")
	m.volumes["sr1"] = true
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	answer := m.answer
	m.Node.Run = runner(func(c node.Command) (string, error) {
		if strings.Join(c.Argv, " ") == "systemctl stop "+ImportUnit {
			close(stopped)
			return "", nil
		}
		return answer(c)
	})
	m.ends = func() error {
		cancel()
		<-stopped
		return errors.New("stopped")
	}
	if _, err := actionstest.Run(ctx, Load, m.Node, LoadArgs{}); err == nil {
		t.Error("it says that all is well")
	}
	if len(m.mounted) > 0 {
		t.Errorf("still mounted: %v", m.mounted)
	}
}

type runner func(node.Command) (string, error)

func (r runner) Run(_ context.Context, c node.Command) (string, error) { return r(c) }

func TestOnlyTheMirrorTakesMediaIn(t *testing.T) {
	m := newMachine(t)
	m.Member.Self.Name = "db1"
	if _, err := m.load(t, LoadArgs{}); fault.Of(err) != fault.Input {
		t.Errorf("%v", err)
	}
	if _, err := actionstest.Run(t.Context(), Load, m.Node, map[string]any{"device": "/dev/vda"}); fault.Of(err) != fault.Input {
		t.Errorf("an argument that there is not: %v", err)
	}
	if len(m.ran) > 0 {
		t.Errorf("%q", m.ran)
	}
}
