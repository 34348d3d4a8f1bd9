package cmdline

import (
	"strings"
	"testing"
)

const esp = "6a1f0c11-2222-4333-8444-555566667777"

func TestTheInitFindsItsArgumentsAmongOthers(t *testing.T) {
	a, err := Parse("BOOT_IMAGE=/x console=ttyS0,115200 slipway.version=v1 slipway.esp=" + strings.ToUpper(esp) + " slipway.debug\n")
	if err != nil || a.Version != "v1" || a.ESP.String() != esp || !a.Debug {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestWhatIsMissingOrOddIsNamed(t *testing.T) {
	for line, want := range map[string]string{
		"": "slipway.version",
		"slipway.version=../x slipway.esp=" + esp: "slipway.version",
		"slipway.version=a:b slipway.esp=" + esp:  "slipway.version",
		"slipway.version=a,b slipway.esp=" + esp:  "slipway.version",
		"slipway.version=v1":                      "slipway.esp",
		"slipway.version=v1 slipway.esp=vda2":     "slipway.esp",
	} {
		if _, err := Parse(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("slipway.version=v1 slipway.esp=" + esp)
	f.Fuzz(func(t *testing.T, line string) {
		if a, err := Parse(line); err == nil && strings.ContainsAny(a.Version, "/:,\\ \n") {
			t.Errorf("version %q can leave its directory or split mount options", a.Version)
		}
	})
}
