package boottest

import (
	"testing"

	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// TestWithoutMetadata powers on an appliance as somebody does who forgot the
// seed, and then brings it.
func TestWithoutMetadata(t *testing.T) {
	t.Parallel()
	m := labtest.Start(t, lab.VM{Name: "bare", Image: images.Path(t, "gateway", "qcow2"), CPUs: 1})
	report := waitUntil(m, status.Unconfigured)

	t.Run("it has an address by DHCP", func(t *testing.T) {
		m := m.In(t)
		m.WaitUntilSucceeds("ip -4 -brief address show scope global | grep -q 10.0.2.15/24")
	})
	t.Run("it says what is missing and how to give it", func(t *testing.T) {
		if len(report.Advice) == 0 {
			t.Error("the report has no advice")
		}
	})
	t.Run("the screen says so too", func(t *testing.T) {
		m := m.In(t)
		t.Logf("kept %s", m.Screenshot("unconfigured"))
		m.WaitForScreen(1, "UNCONFIGURED")
		m.WaitForScreen(1, "cidata")
	})
	t.Run("nobody can log in", func(t *testing.T) {
		m := m.In(t)
		noPasswords(m)
		if len(report.Logins) != 0 {
			t.Errorf("logins: %v", report.Logins)
		}
		m.MustFail("find /root /home -name authorized_keys -size +0 | grep .")
	})
	t.Run("it takes up a seed that is inserted while it runs", func(t *testing.T) {
		m := m.In(t)
		m.InsertCD(noCloudISO(t, seed.Files{
			MetaData: []byte("instance-id: late\nlocal-hostname: late-1\n"),
			UserData: []byte("#cloud-config\nssh_authorized_keys: [\"" + newKey(t).authorized + "\"]\nno_such_key: 1\n"),
		}))
		m.WaitUntilSucceeds("hostname | grep -x late-1")
		// All that can be done is done, and what cannot is not passed over in silence.
		report := waitUntil(m, status.Degraded)
		warnsOf(m, report, "no_such_key")
		servicesRun(m)
	})
}
