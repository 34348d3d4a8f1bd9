package grubenv

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func editenv(t *testing.T, args ...string) string {
	t.Helper()
	tool, err := exec.LookPath("grub-editenv")
	if err != nil {
		t.Fatal("grub-editenv is missing: apt-get install grub-common")
	}
	out, err := exec.Command(tool, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("grub-editenv %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestGRUBReadsWhatWeWriteAndWeReadWhatItWrites(t *testing.T) {
	file := filepath.Join(t.TempDir(), "grubenv")
	e := Env{Good: "v1", Previous: "v0", Other: map[string]string{"odd": `back\slash`}}.Start("v2")
	block, err := e.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, block, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"good=v1\n", "try=v2\n", "tries=3\n", "previous=v0\n", "odd=back\\slash\n"} {
		if got := editenv(t, file, "list"); !strings.Contains(got, want) {
			t.Errorf("grub-editenv does not see %q in %q", want, got)
		}
	}
	editenv(t, file, "set", "tries=1")
	editenv(t, file, "unset", "odd")
	block, err = os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(block)
	want := Env{Good: "v1", Previous: "v0", Try: "v2", Tries: 1, Other: map[string]string{}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestAConfirmedVersionIsGoodAndEndsTheTrial(t *testing.T) {
	e := Env{Good: "v1"}.Start("v2")
	if !e.OnTrial("v2") || e.OnTrial("v1") {
		t.Error("v2 is on trial and v1 is not")
	}
	e = e.Confirm("v2")
	if e.Previous != "v1" || e.Confirm("v2").Previous != "v1" {
		t.Errorf("the version to go back to is %q", e.Previous)
	}
	if e.Good != "v2" || e.Try != "" || e.Tries != 0 || e.OnTrial("") {
		t.Errorf("got %+v", e)
	}
	block, err := e.Bytes()
	if err != nil || bytes.Contains(block, []byte("tries")) {
		t.Errorf("%v, %q", err, block[:60])
	}
}

func TestDamagedBlocksAreRefused(t *testing.T) {
	fill := func(s string) []byte { return append([]byte(s), bytes.Repeat([]byte("#"), Size-len(s))...) }
	for what, block := range map[string][]byte{
		"want 1024":         []byte(header),
		"does not begin":    fill("good=v1\n"),
		"not NAME=VALUE":    fill(header + "good\n"),
		"tries is \"many\"": fill(header + "tries=many\n"),
		"tries is \"4\"":    fill(header + "tries=4\n"),
	} {
		if _, err := Parse(block); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("got %v, want %q", err, what)
		}
	}
	if _, err := (Env{Good: strings.Repeat("v", Size)}).Bytes(); err == nil {
		t.Error("a block that overflows is written")
	}
}

func FuzzParse(f *testing.F) {
	block, err := Env{Good: "v1"}.Start("v2").Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(block)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Parse(b)
		if err != nil {
			return
		}
		again, err := e.Bytes()
		if err != nil {
			return // a name that GRUB would not write
		}
		back, err := Parse(again)
		if err != nil {
			t.Fatalf("our own block: %v", err)
		}
		if back.Good != e.Good || back.Try != e.Try {
			t.Errorf("%+v became %+v", e, back)
		}
	})
}
