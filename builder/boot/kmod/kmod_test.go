package kmod

import (
	"path"
	"reflect"
	"strings"
	"testing"
)

const (
	dep = `kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/fs/mbcache.ko
kernel/fs/jbd2/jbd2.ko:
kernel/fs/mbcache.ko:
kernel/drivers/scsi/sd_mod.ko: kernel/drivers/scsi/scsi_mod.ko kernel/drivers/scsi/scsi_common.ko
kernel/drivers/scsi/scsi_mod.ko: kernel/drivers/scsi/scsi_common.ko
kernel/drivers/scsi/scsi_common.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/crypto/crc32c_generic.ko:
`
	aliases = `# Aliases extracted from modules themselves.
alias pci:v00001AF4d00001001sv*sd*bc*sc*i* virtio_pci
alias pci:v*d*sv*sd*bc01sc06i01* ahci
alias scsi:t-0x00* sd_mod
alias scsi:t-0x0[7e]* sd_mod
alias crypto-crc32c crc32c_intel
alias crypto-crc32c crc32c_generic
`
	softdep = "softdep ext4 pre: crypto-crc32c post: nothing\n"
)

func index(t testing.TB) *Index {
	t.Helper()
	x, err := Parse([]byte(dep), []byte(aliases), []byte(softdep))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestWhatAModuleNeedsComesBeforeIt(t *testing.T) {
	x := index(t)
	for module, want := range map[string]string{
		"sd_mod":  "scsi_common scsi_mod sd_mod",
		"ext4":    "crc32c_generic crc32c_intel mbcache jbd2 ext4",
		"builtin": "",
	} {
		var got []string
		for _, f := range x.Order(module) {
			got = append(got, Name(f))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", module, got, want)
		}
	}
}

func TestADeviceIsServedByItsAlias(t *testing.T) {
	x := index(t)
	for alias, want := range map[string][]string{
		"pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01": {"ahci"},
		"scsi:t-0x00":   {"sd_mod"},
		"scsi:t-0x0e":   {"sd_mod"},
		"scsi:t-0x05":   nil,
		"crypto-crc32c": {"crc32c_generic", "crc32c_intel"},
		"crc32c-intel":  {"crc32c_intel"},
		"acpi:PNP0103:": nil,
	} {
		if got := x.Lookup(alias); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, want %q", alias, got, want)
		}
	}
}

func TestABadIndexIsNamedWithItsLine(t *testing.T) {
	for _, c := range []struct{ dep, alias, soft, want string }{
		{"kernel/a.ko:\nnonsense\n", "", "", "modules.dep line 2"},
		{"", "alias x\n", "", "modules.alias line 1"},
		{"", "", "softdep\n", "modules.softdep line 1"},
		{strings.Repeat("a", maxLine+1), "", "", "modules.dep"},
	} {
		if _, err := Parse([]byte(c.dep), []byte(c.alias), []byte(c.soft)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

func TestACircleOfDependenciesEnds(t *testing.T) {
	x, err := Parse([]byte("a.ko: b.ko\nb.ko: a.ko\n"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := x.Order("a"); len(got) != 2 {
		t.Errorf("got %q", got)
	}
}

// Without slashes and backslashes, path.Match knows the same patterns.
func FuzzMatchAgreesWithPathMatch(f *testing.F) {
	f.Add("pci:v*d00*[a-c]?i*", "pci:v0d001bxi")
	f.Add("a*b*c", "abbc")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if strings.ContainsAny(pattern+s, "/\\^") || !ascii(pattern) || !ascii(s) {
			return
		}
		want, err := path.Match(pattern, s)
		if err != nil || strings.Contains(pattern, "[]") || strings.Contains(pattern, "[-") || strings.Contains(pattern, "-]") {
			match(pattern, s) // must end, whatever it says
			return
		}
		if got := match(pattern, s); got != want {
			t.Errorf("match(%q, %q) = %v, path.Match says %v", pattern, s, got, want)
		}
	})
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(dep), []byte(aliases), []byte(softdep))
	f.Fuzz(func(t *testing.T, d, a, s []byte) {
		x, err := Parse(d, a, s)
		if err != nil {
			return
		}
		for _, file := range x.Files() {
			x.Order(Name(file))
		}
		x.Lookup("pci:v0")
	})
}
