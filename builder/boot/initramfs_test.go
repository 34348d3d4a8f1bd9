package boot

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/internal/fault"
)

// tool returns the path of an outside judge.
func tool(t testing.TB, name, pkg string) string {
	t.Helper()
	for _, p := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(p); err == nil {
			return found
		}
	}
	t.Fatalf("%s is missing: apt-get install %s", name, pkg)
	return ""
}

func initramfsInput(t testing.TB) InitramfsInput {
	return InitramfsInput{
		Init:    []byte("#!init"),
		Release: "6.1",
		Date:    1700000000,
		Root: moduleTree(t, map[string][]byte{
			"kernel/fs/ext4/ext4.ko":             []byte("ext4 "),
			"kernel/fs/jbd2/jbd2.ko":             []byte("jbd2"),
			"kernel/crypto/crc32c_generic.ko":    []byte("crc"),
			"kernel/fs/xfs/xfs.ko":               []byte("xfs"),
			"kernel/drivers/block/virtio_blk.ko": []byte("vb"),
			"modules.dep":                        []byte("kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\nkernel/fs/jbd2/jbd2.ko:\nkernel/fs/xfs/xfs.ko:\nkernel/drivers/block/virtio_blk.ko:\nkernel/crypto/crc32c_generic.ko:\n"),
			"modules.alias":                      []byte("# aliases\nalias virtio:d00000002v* virtio_blk\nalias fs-xfs xfs\nalias crypto-crc32c crc32c_generic\n"),
			"modules.softdep":                    []byte("softdep jbd2 pre: crypto-crc32c\nsoftdep xfs pre: crc\n"),
		}),
	}
}

func TestCPIOReadsTheInitramfsBack(t *testing.T) {
	var b bytes.Buffer
	if err := Initramfs(&b, initramfsInput(t)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	plain, err := exec.Command(tool(t, "zstd", "zstd"), "-dc", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	unpack := exec.Command(tool(t, "cpio", "cpio"), "-idm", "--quiet")
	unpack.Dir, unpack.Stdin = dir, bytes.NewReader(plain)
	if out, err := unpack.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	const m = "usr/lib/modules/6.1/"
	for name, want := range map[string]string{
		"init":                                "#!init",
		m + "kernel/fs/ext4/ext4.ko":          "ext4 ",
		m + "kernel/fs/jbd2/jbd2.ko":          "jbd2",
		m + "kernel/crypto/crc32c_generic.ko": "crc",
		m + "modules.alias":                   "alias virtio:d00000002v* virtio_blk\nalias crypto-crc32c crc32c_generic\n",
		m + "modules.softdep":                 "softdep jbd2 pre: crypto-crc32c\n",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "init")); err != nil || st.Mode() != 0o755 || st.ModTime().Unix() != 1700000000 {
		t.Errorf("/init: %v, %v", st, err)
	}
	if _, err := os.Stat(filepath.Join(dir, m+"kernel/fs/xfs/xfs.ko")); err == nil {
		t.Error("a module that nobody asked for is in the initramfs")
	}
}

func TestTheSameInputsMakeTheSameInitramfs(t *testing.T) {
	var a, b bytes.Buffer
	if err := Initramfs(&a, initramfsInput(t)); err != nil {
		t.Fatal(err)
	}
	if err := Initramfs(&b, initramfsInput(t)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two runs differ")
	}
}

func TestIndicesThatNameMissingModulesAreRefused(t *testing.T) {
	in := initramfsInput(t)
	in.Root.Remove("usr/lib/modules/6.1/kernel/fs/jbd2/jbd2.ko")
	err := Initramfs(&bytes.Buffer{}, in)
	if err == nil || !strings.Contains(err.Error(), "jbd2.ko") || fault.Mend(err) == "" {
		t.Errorf("got %v", err)
	}
	in.Root.Remove("usr/lib/modules/6.1/modules.dep")
	if err := Initramfs(&bytes.Buffer{}, in); err == nil || !strings.Contains(fault.Mend(err), "depmod") {
		t.Errorf("got %v", err)
	}
}

func TestExactlyOneKernelIsWanted(t *testing.T) {
	in := initramfsInput(t)
	if r, err := KernelRelease(in.Root); err != nil || r != "6.1" {
		t.Errorf("%q, %v", r, err)
	}
	if err := in.Root.PutFile("usr/lib/modules/6.2/modules.dep", 0o644, 0, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := KernelRelease(in.Root); err == nil || !strings.Contains(err.Error(), "[6.1 6.2]") {
		t.Errorf("got %v", err)
	}
}
