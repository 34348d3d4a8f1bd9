package vip

import (
	"testing"

	"github.com/slipwayhq/slipway/firstboot/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m, "curl", "haproxy", "keepalived") }
