//go:build long

package short

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/drill/faults"
	"github.com/slipwayhq/slipway/qemu-tests/drill/report"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

func TestMain(m *testing.M) { os.Exit(images.Main(m)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestThePairLosesNothingAndComesBack(t *testing.T) {
	const seed = 7
	top, err := topology.Load("../../../examples/postgres-pair/cluster.yaml")
	must(t, err)
	chosen, err := faults.Named([]string{"kill-postgres", "power-cut", "partition"})
	must(t, err)
	rounds, err := schedule.New(top.Plan(), faults.Schedule(chosen), 1, seed)
	must(t, err)
	log := logrus.New()
	log.SetOutput(t.Output())
	site, err := drill.NewSite(t.Context(), drill.SiteConfig{Topology: top, Images: filepath.Dir(images.Path(t, "db-master", "qcow2")), Dir: t.TempDir(), Log: log})
	must(t, err)
	defer site.Close()
	out := labtest.OutDir(t)
	must(t, os.MkdirAll(out, 0o755))
	defer func() {
		if !t.Failed() {
			return
		}
		for _, n := range site.Nodes() {
			m, err := site.Cluster.Node(n)
			if err == nil {
				_, err = m.Keep(t.Context(), out)
			}
			if err != nil {
				t.Log(err)
			}
		}
	}()
	must(t, site.Form(t.Context(), 0))

	history, err := os.Create(filepath.Join(out, "history.jsonl"))
	must(t, err)
	defer history.Close()
	result, err := drill.Run(t.Context(), drill.Config{
		Cluster: top.Name, Version: builder.Version, Seed: seed, Schedule: rounds, Faults: faults.On(site.Cluster, chosen),
		Ground: site.Lab, Load: site.Clients, History: history, Recover: 15 * time.Minute, Log: log,
	})
	must(t, err)
	page, err := os.Create(filepath.Join(out, "drill.html"))
	must(t, err)
	defer page.Close()
	must(t, report.HTML(page, result))
	if text := report.Text(result); !result.Held() || len(result.Rounds) != len(rounds) {
		t.Errorf("the drill found something that did not hold; see %s\n%s", out, text)
	} else {
		t.Log("\n" + text)
	}
	if len(result.Picture.Holders) == 0 {
		t.Error("the switch has seen nobody send from the virtual address")
	}
}
