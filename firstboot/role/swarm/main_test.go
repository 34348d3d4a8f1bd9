package swarm

import (
	"testing"

	"github.com/slipwayhq/slipway/firstboot/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m, "containerd,docker-cli,docker.io,iptables,procps,runc") }
