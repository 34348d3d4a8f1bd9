package clustertest

import (
	"os"
	"testing"

	"github.com/slipwayhq/slipway/qemu-tests/images"
)

func TestMain(m *testing.M) { os.Exit(images.Main(m)) }
