package lab

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

func complete(t *testing.T, vm VM) VM {
	t.Helper()
	if vm.Name == "" {
		vm.Name = "node"
	}
	if vm.Dir == "" {
		vm.Dir = t.TempDir()
	}
	if vm.Image == "" {
		vm.Image = "disk.raw"
	}
	done, err := vm.complete()
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func commandLine(t *testing.T, vm VM, accel Accel) string {
	t.Helper()
	a, err := args(vm, accel)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(a, " ")
}

func TestMachineHasAnExplicitDiskSerial(t *testing.T) {
	got := commandLine(t, complete(t, VM{Name: "a-node-with-a-long-name"}), TCG)
	if !strings.Contains(got, "virtio-blk-pci,drive=system,serial=slipway-a-node-with-,") {
		t.Errorf("no serial of at most 20 bytes in %s", got)
	}
}

func TestTCGHidesCmpxchg16b(t *testing.T) {
	if got := commandLine(t, complete(t, VM{}), TCG); !strings.Contains(got, ",-cx16") {
		t.Errorf("QEMU 7.2 corrupts memory without -cx16: %s", got)
	}
}

func TestTCGKeepsCmpxchg16bOnOneThreadOnly(t *testing.T) {
	if got := commandLine(t, complete(t, VM{WideAtomics: true}), TCG); !strings.Contains(got, "tcg,thread=single") || strings.Contains(got, "-cx16") {
		t.Error(got)
	}
}

func TestOneProcessorHasCmpxchg16bAtNoCost(t *testing.T) {
	if got := commandLine(t, complete(t, VM{CPUs: 1}), TCG); !strings.Contains(got, "tcg,thread=multi") || strings.Contains(got, "-cx16") {
		t.Error(got)
	}
}

func TestTheHardwareClockIsTheHostsUnlessToldOtherwise(t *testing.T) {
	vm := VM{Name: "n", Image: "x.qcow2", Dir: t.TempDir()}
	if line := commandLine(t, vm, TCG); !strings.Contains(line, "-rtc base=utc ") {
		t.Error(line)
	}
	vm.Clock = time.Date(2001, 1, 2, 3, 4, 5, 0, time.FixedZone("CET", 3600))
	if line := commandLine(t, vm, TCG); !strings.Contains(line, "-rtc base=2001-01-02T02:04:05 ") {
		t.Error(line)
	}
}

func TestSecureBootGuardsTheVariablesWithSMM(t *testing.T) {
	got := commandLine(t, complete(t, VM{Firmware: SecureBoot}), TCG)
	for _, want := range []string{"-machine q35,smm=on", "driver=cfi.pflash01,property=secure,value=on"} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %q in %s", want, got)
		}
	}
}

func TestNetworkIsIsolatedUnlessOpened(t *testing.T) {
	closed := complete(t, VM{NICs: []NIC{{}}})
	if got := commandLine(t, closed, TCG); !strings.Contains(got, "user,id=net0,restrict=on") {
		t.Error(got)
	}
	if got := commandLine(t, complete(t, VM{NICs: []NIC{{Open: true}}}), TCG); strings.Contains(got, "restrict") {
		t.Error(got)
	}
}

func TestNICsOnASwitchGetTheirSocketsInOrder(t *testing.T) {
	sw := ether.New(ether.Options{})
	defer sw.Close()
	vm := complete(t, VM{Name: "a-db1", NICs: []NIC{{Switch: sw}, {}, {Switch: sw, PortName: "elsewhere/7"}}})
	got := commandLine(t, vm, TCG)
	for _, want := range []string{
		"stream,id=net0,server=off,addr.type=fd,addr.str=5", "user,id=net1,restrict=on", "stream,id=net2,server=off,addr.type=fd,addr.str=6",
		"virtio-net-pci,netdev=net2,mac=",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %q in %s", want, got)
		}
	}
	if a, b := vm.NICs[0].PortName, vm.NICs[2].PortName; a != "a-db1/0" || b != "elsewhere/7" {
		t.Errorf("ports %s and %s", a, b)
	}
}

func TestANICOnASwitchOpensNothing(t *testing.T) {
	vm := VM{Name: "a", Image: "disk.raw", Dir: t.TempDir(), NICs: []NIC{{Switch: new(ether.Switch), Open: true}}}
	if _, err := vm.complete(); fault.Of(err) != fault.Usage {
		t.Errorf("%v", err)
	}
}

func TestCommasInOptionsAreEscaped(t *testing.T) {
	got := commandLine(t, complete(t, VM{DMISerial: "ds=nocloud;s=http://10.0.2.2/a,b/"}), TCG)
	if !strings.Contains(got, "serial=ds=nocloud;s=http://10.0.2.2/a,,b/") {
		t.Error(got)
	}
}

func TestSeedsAreCDsOrDisksByTheirContent(t *testing.T) {
	dir := t.TempDir()
	iso := make([]byte, 16*2048+6)
	copy(iso[16*2048:], "\x01CD001")
	files := map[string][]byte{"seed.iso": iso, "seed.img": []byte("\xeb\x3c\x90 a FAT boot sector")}
	var seeds []string
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, path)
	}
	slices.Sort(seeds) // seed.img, seed.iso
	got := commandLine(t, complete(t, VM{Seeds: seeds}), TCG)
	for _, want := range []string{"virtio-blk-pci,drive=seed0,serial=seed.img", "ide-cd,id=cd0,bus=ide.1,drive=seed1"} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %q in %s", want, got)
		}
	}
}

func TestAddressesAreDerivedFromTheName(t *testing.T) {
	a, again, b := complete(t, VM{Name: "a"}), complete(t, VM{Name: "a"}), complete(t, VM{Name: "b"})
	if a.NICs[0].MAC != again.NICs[0].MAC || a.NICs[0].MAC == b.NICs[0].MAC {
		t.Errorf("MACs: %s, %s, %s", a.NICs[0].MAC, again.NICs[0].MAC, b.NICs[0].MAC)
	}
	if uuidFor("a") == uuidFor("b") || len(uuidFor("a")) != 36 {
		t.Errorf("UUIDs: %s, %s", uuidFor("a"), uuidFor("b"))
	}
}

func TestMistakesInAVMAreNamed(t *testing.T) {
	for want, vm := range map[string]VM{
		"only letters":     {Name: "../x", Image: "i", Dir: "d"},
		"neither an image": {Name: "x", Dir: "d"},
		"no directory":     {Name: "x", Image: "i"},
	} {
		if _, err := vm.complete(); fault.Of(err) != fault.Usage || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestMissingToolsAreNamedWithTheCommandThatInstallsThem(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := checkTools(BIOS)
	if fault.Of(err) != fault.Missing || !strings.Contains(fault.Mend(err), "apt-get install --no-install-recommends ") ||
		!strings.Contains(fault.Mend(err), "qemu-utils") {
		t.Errorf("%v; mend: %s", err, fault.Mend(err))
	}
}

func TestAnOverlayIsNotUsedOverAnotherImage(t *testing.T) {
	need(t, qemuImg, "qemu-utils")
	dir := t.TempDir()
	image := filepath.Join(dir, "image.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	vm := complete(t, VM{Image: image, Format: "raw", Dir: filepath.Join(dir, "vm")})
	for range 2 {
		if err := prepare(t.Context(), vm); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(image, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := prepare(t.Context(), vm); fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "was replaced") || fault.Mend(err) == "" {
		t.Errorf("%v; mend: %s", err, fault.Mend(err))
	}
}

func TestOverlayLeavesTheImageAloneAndGrows(t *testing.T) {
	need(t, qemuImg, "qemu-utils")
	dir := t.TempDir()
	image := filepath.Join(dir, "image.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o400); err != nil {
		t.Fatal(err)
	}
	vm := complete(t, VM{Image: image, DiskSize: 8 << 20, Dir: filepath.Join(dir, strings.Repeat("deep/", 30))})
	if err := prepare(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	i, err := imageInfo(t.Context(), filepath.Join(vm.Dir, systemDisk), "")
	if err != nil || i.Format != "qcow2" || i.VirtualSize != 8<<20 {
		t.Errorf("%+v %v", i, err)
	}
	m := &Machine{vm: vm}
	if err := m.ResizeDisk(t.Context(), 16<<20); err != nil {
		t.Fatal(err)
	}
	if i, err = imageInfo(t.Context(), filepath.Join(vm.Dir, systemDisk), ""); err != nil || i.VirtualSize != 16<<20 {
		t.Errorf("%+v %v", i, err)
	}
}

// A QEMU with no guest inside is enough to prove the plumbing: it starts from a
// deep directory, answers QMP, shows a screen, and ends with us.
func TestEmptyMachineStartsAnswersAndEnds(t *testing.T) {
	need(t, qemuSystem, "qemu-system-x86")
	t.Setenv(AccelEnv, "tcg")
	dir := t.TempDir()
	image := filepath.Join(dir, "image.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o400); err != nil {
		t.Fatal(err)
	}
	m, err := Start(t.Context(), VM{
		Patience: 5 * time.Second, // nothing in it will ever answer
		Name:     "empty", Image: image, Memory: 64 << 20, CPUs: 1, Dir: filepath.Join(dir, strings.Repeat("deep/", 40)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !m.Running() || m.PID() == 0 {
		t.Fatal("the machine is not running")
	}
	conn, err := m.Serial()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	kept, err := m.Keep(t.Context(), filepath.Join(dir, "out"))
	if err != nil || len(kept) != 2 {
		t.Errorf("kept %v: %v", kept, err)
	}
	var refused *agentError
	if err := m.QMP(t.Context(), "no-such-command", nil, nil); err == nil || errors.As(err, &refused) {
		t.Errorf("a command that QMP does not know: %v", err)
	}
	m.Crash()
	if m.Running() {
		t.Error("the machine survived a power cut")
	}
	if err := m.QMP(t.Context(), "query-status", nil, nil); fault.Of(err) != fault.Failed {
		t.Errorf("a machine without power answers: %v", err)
	}
}

func TestMachineEndsWithItsContext(t *testing.T) {
	need(t, qemuSystem, "qemu-system-x86")
	t.Setenv(AccelEnv, "tcg")
	image := filepath.Join(t.TempDir(), "image.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o400); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	m, err := Start(ctx, VM{Name: "empty", Image: image, Memory: 64 << 20, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	cancel()
	<-m.run.done
	if m.Running() {
		t.Error("QEMU outlived its context")
	}
}

func TestQEMUThatDoesNotStartSaysWhy(t *testing.T) {
	need(t, qemuSystem, "qemu-system-x86")
	t.Setenv(AccelEnv, "tcg")
	image := filepath.Join(t.TempDir(), "image.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o400); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), VM{Name: "bad", Image: image, Dir: t.TempDir(), NICs: []NIC{{Model: "no-such-card"}}})
	if fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "no-such-card") {
		t.Error(err)
	}
}

func need(t *testing.T, tool, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Fatalf("%s is missing; run: apt-get install --no-install-recommends %s", tool, pkg)
	}
}

func TestProbeProgramIsAnExecutable(t *testing.T) {
	f, err := elf.NewFile(bytes.NewReader(probeInit()))
	if err != nil {
		t.Fatal(err)
	}
	if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 || len(f.Progs) != 1 || f.Progs[0].Filesz != uint64(len(probeInit())) {
		t.Errorf("%+v", f.FileHeader)
	}
}

// fakeAgent answers like qemu-ga, after some noise that belongs to nobody.
func fakeAgent(t *testing.T, noise string, answer func(command string) string) *agent {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	go func() {
		lines := bufio.NewScanner(theirs)
		for lines.Scan() {
			var request struct {
				Execute   string         `json:"execute"`
				Arguments map[string]any `json:"arguments"`
			}
			if json.Unmarshal(bytes.TrimLeft(lines.Bytes(), "\xff"), &request) != nil {
				continue
			}
			if request.Execute == "guest-sync-delimited" {
				fmt.Fprintf(theirs, "%s\xff{\"return\": %.0f}\n", noise, request.Arguments["id"])
				continue
			}
			io.WriteString(theirs, answer(request.Execute)+"\n")
		}
	}()
	return newAgent(ours)
}

func TestAgentChannelFindsItsStepAgain(t *testing.T) {
	a := fakeAgent(t, `{"return": {"half an ol`+"\n"+`{"return": 7}`+"\n", func(string) string { return `{"return": {"pid": 4}}` })
	var got struct{ PID int }
	if err := a.call(t.Context(), "guest-exec", nil, &got); err != nil || got.PID != 4 {
		t.Errorf("%+v %v", got, err)
	}
}

func TestAgentRefusalKeepsTheChannelInStep(t *testing.T) {
	a := fakeAgent(t, "", func(string) string { return `{"error": {"class": "GenericError", "desc": "no such file"}}` })
	err := a.call(t.Context(), "guest-file-open", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "no such file") || !a.synced {
		t.Errorf("%v, in step: %v", err, a.synced)
	}
}

func TestSilentGuestEndsWithTheDeadline(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	go io.Copy(io.Discard, theirs)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- newAgent(ours).call(ctx, "guest-ping", nil, nil) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestConsoleTextIsReadWithoutControlSequences(t *testing.T) {
	if got := plain("\x1b[0;32m  OK  \x1b[0m ready\r\n\x1b]0;title\x07$ "); got != "  OK   ready\n$ " {
		t.Errorf("%q", got)
	}
}

func TestScreenIsReadLineByLine(t *testing.T) {
	raw := []byte{2, 4, 0, 0, 'o', 7, 'k', 7, ' ', 7, ' ', 7, 'g', 7, 'o', 7, '!', 7, ' ', 7}
	if got, err := decodeScreen(raw); err != nil || got != "ok\ngo!\n" {
		t.Errorf("%q %v", got, err)
	}
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add([]byte(`{"return": {"pid": 4}}`))
	f.Add([]byte("rest\xff{\"return\": 7}"))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "no"}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var out map[string]any
		if err := decodeAnswer(line, &out); err == nil && !bytes.Contains(line, []byte("return")) {
			t.Errorf("%q was taken for an answer", line)
		}
		_, _ = readLine(bufio.NewReader(bytes.NewReader(line)), 1<<10)
	})
}

func FuzzScreens(f *testing.F) {
	f.Add([]byte("P6\n1 1\n255\nabc"))
	f.Add([]byte{1, 1, 0, 0, 'x', 7})
	f.Fuzz(func(t *testing.T, data []byte) {
		if picture, err := decodePPM(bytes.NewReader(data)); err == nil && picture.Bounds().Empty() {
			t.Error("an empty picture")
		}
		if text, err := decodeScreen(data); err == nil && len(text) > len(data) {
			t.Error("more text than bytes")
		}
	})
}
