package boot

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestModulesOfVirtualMachinesStayAndOthersGo(t *testing.T) {
	p, err := NewModulePolicy()
	if err != nil {
		t.Fatal(err)
	}
	const k = "usr/lib/modules/6.12.1+deb13-amd64/kernel/"
	for file, want := range map[string]bool{
		k + "drivers/block/virtio_blk.ko.xz":                    true,
		"/" + k + "drivers/block/virtio_blk.ko.xz":              true,
		"./lib/modules/6.1.0/kernel/fs/ext4/ext4.ko":            true,
		k + "drivers/scsi/vmw_pvscsi.ko.xz":                     true,
		k + "drivers/net/vmxnet3/vmxnet3.ko.xz":                 true,
		k + "drivers/message/fusion/mptspi.ko.xz":               true,
		k + "drivers/watchdog/i6300esb.ko.xz":                   true,
		k + "drivers/watchdog/softdog.ko.xz":                    true,
		k + "drivers/block/drbd/drbd.ko.xz":                     true,
		k + "net/netfilter/ipvs/ip_vs.ko.xz":                    true,
		k + "drivers/net/vxlan/vxlan.ko.xz":                     true,
		k + "drivers/net/wireguard/wireguard.ko.xz":             true,
		k + "fs/overlayfs/overlay.ko.xz":                        true,
		k + "fs/squashfs/squashfs.ko.xz":                        true,
		k + "drivers/hv/hv_vmbus.ko.xz":                         true,
		k + "drivers/block/xen-blkfront.ko.xz":                  true,
		k + "drivers/gpu/drm/amd/amdgpu/amdgpu.ko.xz":           false,
		k + "drivers/net/wireless/ath/ath9k/ath9k.ko.xz":        false,
		k + "sound/core/snd.ko.xz":                              false,
		k + "drivers/md/bcache/bcache.ko.xz":                    false,
		k + "drivers/net/ethernet/intel/e1000/e1000.ko.xz":      true,
		k + "drivers/net/ethernet/intel/ice/ice.ko.xz":          false,
		"usr/lib/modules/6.12.1+deb13-amd64/modules.builtin":    true,
		"usr/share/doc/linux-image/kernel/sound/core/snd.ko.xz": true,
	} {
		if got := p.Keep(file); got != want {
			t.Errorf("Keep(%q) = %v, want %v", file, got, want)
		}
	}
}

func TestTheLastRuleDecides(t *testing.T) {
	p, err := parsePolicy("rules", "# all of it\na/*/\n!a/b/c\n\n!a/x/\na/x/keep_*\n")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"a/b/d": true, "a/b/c": false, "a/b/c/d": true, "a/x/y": false, "a/x/keep_me": true, "a/b": false, "ab/c/d": false,
	} {
		if got := p.keeps(name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestABadPatternIsNamedWithItsLine(t *testing.T) {
	_, err := parsePolicy("rules", "ok/\nfs/[a\n")
	if err == nil || !strings.Contains(err.Error(), "rules line 2") {
		t.Errorf("got %v", err)
	}
}

func TestEmbeddedListsHaveNoBadPattern(t *testing.T) {
	if _, err := parsePolicy("initramfs.modules", initramfsList); err != nil {
		t.Error(err)
	}
}

// module makes the smallest ELF file with a .modinfo section.
func module(t testing.TB, depends string) []byte {
	t.Helper()
	info := []byte("license=GPL\x00depends=" + depends + "\x00name=x\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	var b bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	const header, sectionHeader = 64, 64
	infoAt, namesAt := uint64(header), uint64(header+len(info))
	sections := namesAt + uint64(len(names))
	put([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	put([]uint16{1, 62}) // relocatable, x86-64
	put(uint32(1))
	put([]uint64{0, 0, sections})
	put(uint32(0))
	put([]uint16{header, 0, 0, sectionHeader, 3, 2})
	put(info)
	put(names)
	put(make([]byte, sectionHeader))
	for _, s := range []struct {
		name, kind uint32
		at, size   uint64
	}{{1, 1, infoAt, uint64(len(info))}, {10, 3, namesAt, uint64(len(names))}} {
		put([]uint32{s.name, s.kind})
		put([]uint64{0, 0, s.at, s.size})
		put([]uint32{0, 0})
		put([]uint64{1, 0})
	}
	return b.Bytes()
}

func moduleTree(t testing.TB, files map[string][]byte) *tree.Tree {
	t.Helper()
	root := tree.New()
	for name, content := range files {
		if err := root.PutFile("usr/lib/modules/6.1/"+name, 0o644, 1, content); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestAKeptModuleMustHaveWhatItNeeds(t *testing.T) {
	files := map[string][]byte{
		"kernel/fs/ext4/ext4.ko": module(t, "jbd2,crc16,mbcache"),
		"kernel/fs/jbd2/jbd2.ko": module(t, ""),
		"kernel/lib/crc16.ko":    module(t, ""),
		"modules.builtin":        []byte("kernel/fs/mbcache.ko\n"),
	}
	if err := CheckModules(moduleTree(t, files)); err != nil {
		t.Errorf("a whole tree: %v", err)
	}
	delete(files, "kernel/lib/crc16.ko")
	err := CheckModules(moduleTree(t, files))
	if err == nil || !strings.Contains(err.Error(), "crc16 (needed by ext4)") || fault.Mend(err) == "" {
		t.Errorf("without crc16: %v", err)
	}
}
