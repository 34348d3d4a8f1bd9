//go:build long

package clustertest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/qemu-tests/drill/faults"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// edited builds the image of the node's role from a copy of the project with some more files
// in the base overlay.
func edited(t *testing.T, files map[string]string) string {
	t.Helper()
	return filepath.Join(editedImages(t, files, "db-master"), "db-master.qcow2")
}

// editedImages does that for several roles, and is the directory with their images.
func editedImages(t *testing.T, files map[string]string, roles ...string) string {
	t.Helper()
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	root, dir := filepath.Dir(strings.TrimSpace(string(mod))), t.TempDir()
	for _, part := range []string{"profiles", "overlays", "cmd", "firstboot", "builder", "internal", "qemu-tests", "go.mod", "go.sum", "images.lock"} {
		if out, err := exec.Command("cp", "-a", filepath.Join(root, part), dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for name, content := range files {
		file := filepath.Join(dir, "overlays", "base", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, is := strings.CutPrefix(content, "-> "); is {
			err = os.Symlink(target, file)
		} else {
			err = os.WriteFile(file, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", append([]string{"run", "./cmd/slipway", "build", "--format", "qcow2", "--output", "out"}, roles...)...)
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	return filepath.Join(dir, "out")
}

// upgraded is one node and its administrator.
type upgraded struct {
	given
	cluster *operations.Cluster
}

func (u upgraded) in(t *testing.T) upgraded { return upgraded{u.given.in(t), u.cluster} }

// do does an operation as the command does, and returns what it said.
func (u upgraded) do(prepare operations.Prepare) (said string, err error) {
	var lines []string
	runner := operations.Runner{
		Cluster: u.cluster, Agree: func(context.Context, string) error { return nil },
		Say: func(line string) { u.Log(line); lines = append(lines, line) },
	}
	_, err = runner.Run(u.Context(), prepare)
	return strings.Join(lines, "\n"), err
}

func (u upgraded) to(image string) (said string, err error) {
	u.Helper()
	releases, err := operations.OpenReleases(context.Background(), image)
	if err != nil {
		u.Fatal(err)
	}
	defer operations.CloseReleases(releases)
	return u.do(operations.Upgrade(u.cluster, releases, []string{theNode}, 0))
}

// runs checks what the node runs, and that its database has what it had.
func (u upgraded) runs(version string) {
	u.Helper()
	r := u.Report(theNode)
	if r.Version != version || r.Trial || r.State != status.Ready && r.State != status.Degraded {
		u.Errorf("it runs %s (trial %v) and is %s; want %s", r.Version, r.Trial, r.State, version)
	}
	if got := u.sql("SELECT what FROM kept"); got != "the row" {
		u.Errorf("the database says %q", got)
	}
}

// TestUpgradeFallbackRollbackAndReset takes one database node through the versions of its image.
func TestUpgradeFallbackRollbackAndReset(t *testing.T) {
	first := images.Path(t, "db-master", "qcow2")
	better := edited(t, map[string]string{"etc/slipway-edit": "better\n"})
	broken := edited(t, map[string]string{
		"usr/lib/systemd/system/never-up.service":                      "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=/usr/bin/systemctl reboot --force --force\n",
		"usr/lib/systemd/system/sysinit.target.wants/never-up.service": "-> ../never-up.service",
	})
	dir := t.TempDir()
	u := newUpgraded(t, dir, first)
	u.Start(theNode)
	u.WaitUntilReady(readyTime, theNode)
	u.sql("CREATE TABLE kept AS SELECT 'the row' AS what")
	was := u.Report(theNode).Version
	var now string

	part := func(name string, tell func(upgraded)) {
		t.Helper()
		if !t.Run(name, func(t *testing.T) { tell(u.in(t)) }) {
			t.FailNow()
		}
	}
	part("an upgrade sends what differs, and is confirmed", func(u upgraded) {
		said, err := u.to(better)
		if err != nil {
			u.Fatal(err)
		}
		if !strings.Contains(said, "in 3 parts") {
			u.Errorf("it sends more than the config layer, manifest and boot.cfg, or less:\n%s", said)
		}
		now = u.Report(theNode).Version
		u.runs(now)
		if now == was || u.node().Succeed("cat /etc/slipway-edit") != "better\n" {
			u.Errorf("version %s, as before", now)
		}
		u.node().Succeed("echo mine > /etc/by-hand")
		if said, err := u.to(better); err != nil || !strings.Contains(said, "Nothing to do") {
			u.Errorf("once more: %v\n%s", err, said)
		}
	})
	part("a version that does not come up falls back, and says so", func(u upgraded) {
		said, err := u.to(broken)
		if err == nil || !strings.Contains(err.Error(), "has gone back to "+now+" by itself") {
			u.Fatalf("%v\n%s", err, said)
		}
		u.WaitUntil(status.Degraded, readyTime, theNode)
		u.runs(now)
		r := u.Report(theNode)
		if !slices.ContainsFunc(r.Warnings, func(w node.Warning) bool { return strings.Contains(w.Message, "did not come up in 3 starts") }) {
			u.Errorf("warnings: %v", r.Warnings)
		}
		if _, err := u.do(operations.Rollback(u.cluster, theNode, "")); err != nil {
			u.Errorf("ending the trial: %v", err)
		}
	})
	part("a rollback takes it to the version before, with what that had written", func(u upgraded) {
		if _, err := u.do(operations.Rollback(u.cluster, theNode, "")); err != nil {
			u.Fatal(err)
		}
		u.runs(was)
		u.node().MustFail("ls /etc/slipway-edit /etc/by-hand")
		if _, err := u.do(operations.Rollback(u.cluster, theNode, "")); err != nil {
			u.Fatal(err)
		}
		u.runs(now)
		u.node().Succeed("grep mine /etc/by-hand")
	})
	part("a factory reset takes away what was changed by hand, and no data of the cluster", func(u upgraded) {
		if _, err := u.do(operations.FactoryReset(u.cluster, theNode, true)); err == nil || !strings.Contains(err.Error(), "votes in the site's etcd") {
			u.Errorf("with its data: %v", err)
		}
		if _, err := u.do(operations.FactoryReset(u.cluster, theNode, false)); err != nil {
			u.Fatal(err)
		}
		u.runs(now)
		u.node().MustFail("ls /etc/by-hand")
	})
	part("the boot partition is sound", func(u upgraded) {
		u.node().Succeed("fsck.vfat -n $(findmnt -no SOURCE /run/slipway/esp)")
		u.node().Succeed("cd /run/slipway/esp/layers && for f in *.sqfs; do echo \"${f%.sqfs}  $f\"; done | sha256sum -c --quiet")
		u.node().Succeed("firstboot audit | grep version-try")
	})
}

// rolling is the upgrade of a whole cluster, for a drill: clients work meanwhile.
type rolling struct {
	*testing.T
	admin    *operations.Cluster
	releases []*operations.Release
}

func (r rolling) Plan() schedule.Fault {
	return schedule.Fault{Name: "upgrade", Targets: []schedule.Target{schedule.All}}
}

func (r rolling) Inject(ctx context.Context, _ []string, _ uint64) error {
	runner := operations.Runner{Cluster: r.admin, Say: func(line string) { r.Log(line) }, Agree: func(context.Context, string) error { return nil }}
	_, err := runner.Run(ctx, operations.Upgrade(r.admin, r.releases, nil, 0))
	return err
}

func (r rolling) Heal(context.Context, []string) error { return nil }

// TestUpgradeOfAWholeClusterUnderLoad upgrades the nodes of examples/postgres-pair while
// clients work on it, and has another node lead for comparison.
func TestUpgradeOfAWholeClusterUnderLoad(t *testing.T) {
	better := editedImages(t, map[string]string{"etc/slipway-edit": "better\n"}, "db-master", "db-replica", "balancer")
	releases, err := operations.OpenReleases(t.Context(), better)
	if err != nil {
		t.Fatal(err)
	}
	defer operations.CloseReleases(releases)
	s := newSite(t, example(t, "postgres-pair"))
	s.StartAll()
	s.becomesWhole()
	ground := s.ground()
	handover, err := faults.Named([]string{"switchover"})
	if err != nil {
		t.Fatal(err)
	}
	result := s.drilled(t, 1, append(faults.On(ground, handover), rolling{t, ground.Operations(), releases}))
	for _, r := range result.Rounds {
		t.Logf("%s: clients waited for %.1f s at most", r.Fault, r.Gap.Length().Seconds())
	}
	for _, n := range s.plan.Nodes {
		s.Node(n.Name).Succeed("grep better /etc/slipway-edit")
	}
}

// newUpgraded is a node from an image, with its administrator, powered off.
func newUpgraded(t *testing.T, dir, image string) upgraded {
	t.Helper()
	file := filepath.Join(dir, "cluster.yaml")
	if err := os.WriteFile(file, []byte(oneDatabase), 0o600); err != nil {
		t.Fatal(err)
	}
	top, err := topology.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	iso := seedOf(t, oneDatabase, filepath.Join(dir, "store"), time.Now())
	v, err := vault.Open(filepath.Join(dir, "store"), vault.Options{Cluster: top.Name, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	u := upgraded{given: given{labtest.NewCluster(t, lab.ClusterConfig{Topology: top, Images: filepath.Dir(image), Seeds: filepath.Dir(iso)})}}
	u.cluster = &operations.Cluster{
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) { return u.Lab().Dial(ctx, address) },
		TLS:  func(right string) (tls.Certificate, *x509.CertPool, error) { return v.AdminTLS(right) },
	}
	if u.cluster.Plan, err = v.Plan(); err != nil {
		t.Fatal(err)
	}
	return u
}
