package seed

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/datasource/volume"
)

func need(t *testing.T, tool, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Fatalf("%s is missing: apt-get install -y %s", tool, pkg)
	}
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

var example = Files{
	MetaData:      []byte("instance-id: db1\nlocal-hostname: db1\nslipway:\n  cluster: shop\n"),
	UserData:      []byte("#cloud-config\npackages: []\n"),
	NetworkConfig: []byte("version: 2\nethernets:\n  lan:\n    match: {macaddress: '52:54:00:00:00:01'}\n    set-name: lan\n    addresses: [192.0.2.10/24]\n"),
	VendorData:    []byte("#cloud-config\n"),
}

func large() Files {
	f := example
	f.UserData = append([]byte("#cloud-config\n"), bytes.Repeat([]byte("# 3 MiB of comment\n"), 3<<20/19)...)
	return f
}

// media is every medium that this package writes.
func media() map[string]func(io.Writer) error {
	drive := ConfigDrive{MetaData: []byte(`{"uuid": "u", "hostname": "db1"}`), UserData: example.UserData, NetworkData: []byte(`{"links": []}`)}
	return map[string]func(io.Writer) error{
		"NoCloud ISO":         func(w io.Writer) error { return NoCloudISO(w, example) },
		"NoCloud ISO, empty":  func(w io.Writer) error { return NoCloudISO(w, Files{}) },
		"NoCloud ISO, large":  func(w io.Writer) error { return NoCloudISO(w, large()) },
		"NoCloud vfat":        func(w io.Writer) error { return NoCloudVFAT(w, example) },
		"NoCloud vfat, empty": func(w io.Writer) error { return NoCloudVFAT(w, Files{}) },
		"NoCloud vfat, large": func(w io.Writer) error { return NoCloudVFAT(w, large()) },
		"config drive":        func(w io.Writer) error { return ConfigDriveISO(w, drive) },
		"OVF CD":              func(w io.Writer) error { return OVFISO(w, OVF{Hostname: "db1", Files: example}) },
		"OVF environment":     func(w io.Writer) error { return OVFEnv(w, OVF{Hostname: "db1", Files: example}) },
	}
}

func write(t *testing.T, fill func(io.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := fill(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTheSameFilesGiveTheSameBytes(t *testing.T) {
	for name, fill := range media() {
		first := write(t, fill)
		// Another date, another mask, another place, another time zone.
		func() {
			t.Setenv("SOURCE_DATE_EPOCH", "1234567890")
			t.Setenv("TMPDIR", t.TempDir())
			defer syscall.Umask(syscall.Umask(0o077))
			zone := time.Local
			time.Local = time.FixedZone("far", 7*3600)
			defer func() { time.Local = zone }()
			if second := write(t, fill); !bytes.Equal(first, second) {
				t.Errorf("%s differs in a second run", name)
			}
			os.Unsetenv("SOURCE_DATE_EPOCH")
		}()
	}
}

func TestNothingIsLeftInTheTemporaryDirectory(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	for _, fill := range media() {
		write(t, fill)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestTheAgentsReaderFindsWhatWasWritten(t *testing.T) {
	for name, fill := range map[string]func(io.Writer, Files) error{"ISO": NoCloudISO, "vfat": NoCloudVFAT} {
		for _, files := range []Files{example, large(), {}} {
			v, err := volume.Open(bytes.NewReader(write(t, func(w io.Writer) error { return fill(w, files) })))
			if err != nil {
				t.Fatal(err)
			}
			for file, want := range map[string][]byte{"meta-data": files.MetaData, "user-data": files.UserData, "network-config": files.NetworkConfig, "vendor-data": files.VendorData} {
				got, err := v.ReadFile(file)
				if want == nil && err != nil && file != "meta-data" && file != "user-data" {
					continue
				}
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %s: %d bytes, want %d; %v", name, file, len(got), len(want), err)
				}
			}
		}
	}
}

func save(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seed")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Other people's readers are the judges of an ISO: libisofs in xorriso, the
// one of cdrkit in isoinfo, and libblkid, by which udev finds the label.
func TestOtherReadersAcceptTheISO(t *testing.T) {
	need(t, "xorriso", "xorriso")
	need(t, "isoinfo", "genisoimage")
	need(t, "blkid", "util-linux")
	for _, files := range []Files{example, large(), {}} {
		path := save(t, write(t, func(w io.Writer) error { return NoCloudISO(w, files) }))
		if label := output(t, "blkid", "-p", "-o", "value", "-s", "LABEL", path); strings.TrimSpace(label) != "cidata" {
			t.Errorf("blkid: label %q", label)
		}
		for _, kind := range [][]string{{"-R"}, {"-J"}} {
			for file, want := range map[string][]byte{"meta-data": files.MetaData, "user-data": files.UserData} {
				got := output(t, "isoinfo", append(kind, "-i", path, "-x", "/"+file)...)
				if got != string(want) {
					t.Errorf("isoinfo %v: %s: %d bytes, want %d", kind, file, len(got), len(want))
				}
			}
		}
		out := t.TempDir()
		output(t, "xorriso", "-osirrox", "on", "-indev", path, "-extract", "/", out)
		got, err := os.ReadFile(filepath.Join(out, "user-data"))
		if err != nil || !bytes.Equal(got, files.UserData) {
			t.Errorf("xorriso: user-data: %d bytes, %v", len(got), err)
		}
	}
	drive := save(t, write(t, media()["config drive"]))
	if label := output(t, "blkid", "-p", "-o", "value", "-s", "LABEL", drive); strings.TrimSpace(label) != "config-2" {
		t.Errorf("blkid: label %q", label)
	}
	if got := output(t, "isoinfo", "-R", "-i", drive, "-x", "/openstack/latest/user_data"); got != string(example.UserData) {
		t.Errorf("isoinfo: user_data %q", got)
	}
}

func TestOtherReadersAcceptTheFATImage(t *testing.T) {
	need(t, "fsck.vfat", "dosfstools")
	need(t, "mtype", "mtools")
	need(t, "blkid", "util-linux")
	for _, files := range []Files{example, large(), {}} {
		path := save(t, write(t, func(w io.Writer) error { return NoCloudVFAT(w, files) }))
		output(t, "fsck.vfat", "-n", path)
		if label := output(t, "blkid", "-p", "-o", "value", "-s", "LABEL", path); strings.TrimSpace(label) != "CIDATA" {
			t.Errorf("blkid: label %q", label)
		}
		for file, want := range map[string][]byte{"meta-data": files.MetaData, "user-data": files.UserData} {
			if got := output(t, "mtype", "-i", path, "::"+file); got != string(want) {
				t.Errorf("mtype: %s: %d bytes, want %d", file, len(got), len(want))
			}
		}
	}
}

func TestTheOVFEnvironmentIsWellFormed(t *testing.T) {
	need(t, "xmllint", "libxml2-utils")
	nasty := OVF{Hostname: `a"<b>&'`, Password: "line\nbreak\ttab ]]>", Files: example}
	path := save(t, write(t, func(w io.Writer) error { return OVFEnv(w, nasty) }))
	output(t, "xmllint", "--noout", path)
	got := output(t, "xmllint", "--xpath", `string(//*[local-name()="Property"][@*[local-name()="key"]="password"]/@*[local-name()="value"])`, path)
	if strings.TrimSuffix(got, "\n") != nasty.Password {
		t.Errorf("password came back as %q", got)
	}
}

func TestASeedThatIsTooLargeIsRefused(t *testing.T) {
	big := Files{UserData: make([]byte, 60<<20)}
	if err := NoCloudVFAT(io.Discard, big); err == nil || !strings.Contains(err.Error(), "more than the limit") {
		t.Errorf("got %v", err)
	}
}
