//go:build !long

package database

import (
	"testing"

	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

func TestMain(m *testing.M) { roletest.Main(m) }
