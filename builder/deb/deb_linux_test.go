package deb_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/builder/ownership"
	"github.com/slipwayhq/slipway/internal/fault"
	"golang.org/x/sys/unix"
)

// member is an ar member of a package made by hand.
func member(name string, content []byte) []byte {
	out := fmt.Appendf(nil, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, 0, 0, 0, "100644", len(content))
	out = append(out, content...)
	if len(content)%2 == 1 {
		out = append(out, '\n')
	}
	return out
}

// archive is a tar of headers; a regular file's content is its name.
func archive(headers ...tar.Header) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = h.Name
			h.Size = int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.Format = tar.FormatGNU
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		io.WriteString(w, content)
	}
	w.Close()
	return out.Bytes()
}

func control(text string) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	w.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755})
	w.WriteHeader(&tar.Header{Name: "./control", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))})
	io.WriteString(w, text)
	w.Close()
	return out.Bytes()
}

const stanza = "Package: a\nVersion: 1\nArchitecture: all\nDescription: short\n long\n"

// plainPackage is a sound package without compression.
func plainPackage(headers ...tar.Header) []byte {
	out := []byte("!<arch>\n")
	out = append(out, member("debian-binary", []byte("2.0\n"))...)
	out = append(out, member("control.tar", control(stanza))...)
	return append(out, member("data.tar", archive(headers...))...)
}

func write(t testing.TB, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "a.deb")
	if err := os.WriteFile(name, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// need ends the test if an outside tool is missing.
func need(t *testing.T, tool, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Fatalf("%s is missing: apt-get install %s", tool, pkg)
	}
}

func TestPackagesOfDpkgDebReadBackWithEveryCompression(t *testing.T) {
	need(t, "dpkg-deb", "dpkg")
	source := t.TempDir()
	for name, content := range map[string]string{"DEBIAN/control": stanza + "Maintainer: x\n", "DEBIAN/conffiles": "/etc/a.conf\n", "etc/a.conf": "conf", "usr/share/a/text": strings.Repeat("text ", 1000)} {
		name = filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(filepath.Join(source, "DEBIAN"), 0o755)
	for _, compression := range []string{"none", "gzip", "xz", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "a.deb")
			if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--uniform-compression", "-Z"+compression, "-b", source, name).CombinedOutput(); err != nil {
				t.Fatalf("dpkg-deb: %v\n%s", err, out)
			}
			f, err := deb.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got := f.Fields.Get("package"); got != "a" {
				t.Errorf("package is %q", got)
			}
			if got := f.Fields.Get("Description"); got != "short\n long" {
				t.Errorf("description is %q", got)
			}
			if got := string(f.Control["conffiles"]); got != "/etc/a.conf\n" {
				t.Errorf("conffiles are %q", got)
			}
			theirs, err := exec.Command("dpkg-deb", "--fsys-tarfile", name).Output()
			if err != nil {
				t.Fatal(err)
			}
			data, err := f.Data()
			if err != nil {
				t.Fatal(err)
			}
			ours, err := io.ReadAll(data)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(ours, theirs) {
				t.Errorf("data.tar differs from dpkg-deb's: %d and %d bytes", len(ours), len(theirs))
			}
		})
	}
}

func TestDamagedPackagesAreRefusedWithTheirName(t *testing.T) {
	good := plainPackage(tar.Header{Name: "./usr", Typeflag: tar.TypeDir})
	huge := []byte("!<arch>\n")
	huge = append(huge, member("debian-binary", []byte("2.0\n"))...)
	big := member("control.tar", nil)
	huge = append(huge, bytes.Replace(big, []byte("0         `"), []byte("999999999 `"), 1)...)
	for what, content := range map[string][]byte{
		"empty":            {},
		"not ar":           []byte("hello, world, this is text"),
		"cut in header":    good[:70],
		"cut in control":   good[:200],
		"no data":          good[:bytes.Index(good, []byte("data.tar"))],
		"version":          bytes.Replace(good, []byte("2.0\n"), []byte("3.0\n"), 1),
		"other member":     bytes.Replace(good, []byte("control.tar "), []byte("control.zip "), 1),
		"size not number":  bytes.Replace(good, []byte("4         `"), []byte("x         `"), 1),
		"size past end":    huge,
		"no control file":  bytes.Replace(good, []byte("./control"), []byte("./contrlo"), 1),
		"control unparsed": bytes.Replace(good, []byte("Package: a"), []byte("Package= a"), 1),
	} {
		t.Run(what, func(t *testing.T) {
			name := write(t, content)
			f, err := deb.Open(name)
			if err == nil {
				f.Close()
				t.Fatal("was taken")
			}
			if fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), name) || fault.Mend(err) == "" {
				t.Errorf("unhelpful: %v (%v; %q)", err, fault.Of(err), fault.Mend(err))
			}
		})
	}
}

func unpack(t *testing.T, dir string, o deb.Options, headers ...tar.Header) (*deb.Contents, error) {
	t.Helper()
	root, err := deb.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	c, err := root.Unpack(bytes.NewReader(archive(headers...)), o)
	if err == nil {
		err = root.SetDirs([]*deb.Contents{c})
	}
	return c, err
}

// listing is what a directory holds: names, kinds, modes, owners, contents.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	filepath.Walk(dir, func(name string, info os.FileInfo, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		rel, _ := filepath.Rel(dir, name)
		line := fmt.Sprintf("%s %v", rel, info.Mode())
		owner := make([]byte, 32)
		if n, err := unix.Lgetxattr(name, ownership.Owner, owner); err == nil {
			line += " " + string(owner[:n])
		}
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			line += " " + string(b)
		}
		if info.Mode()&os.ModeSymlink != 0 {
			target, _ := os.Readlink(name)
			line += " -> " + target
		}
		lines = append(lines, line)
		return nil
	})
	sort.Strings(lines)
	return strings.Join(lines[1:], "\n") // the directory itself is the test's
}

func TestUnpackingKeepsModesOwnersLinksAndTimes(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir := t.TempDir()
	when := time.Unix(1700000000, 0)
	c, err := unpack(t, dir, deb.Options{},
		tar.Header{Name: "./", Typeflag: tar.TypeDir},
		tar.Header{Name: "./usr/", Typeflag: tar.TypeDir},
		tar.Header{Name: "./usr/bin/", Typeflag: tar.TypeDir, Mode: 0o750, Gid: 42},
		tar.Header{Name: "./usr/bin/su", Typeflag: tar.TypeReg, Mode: 0o4755, ModTime: when},
		tar.Header{Name: "./usr/bin/su2", Typeflag: tar.TypeLink, Linkname: "./usr/bin/su"},
		tar.Header{Name: "./usr/bin/owned", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 5, Gid: 6},
		tar.Header{Name: "./usr/bin/secret", Typeflag: tar.TypeReg, Mode: 0o200},
		tar.Header{Name: "./usr/bin/sh", Typeflag: tar.TypeSymlink, Linkname: "dash"},
		tar.Header{Name: "./usr/bin/pipe", Typeflag: tar.TypeFifo, Mode: 0o600},
	)
	if err != nil {
		t.Fatal(err)
	}
	want := `usr drwxr-xr-x
usr/bin drwxr-x--- 0:42
usr/bin/owned -rw-r----- 5:6 ./usr/bin/owned
usr/bin/pipe prw-------
usr/bin/secret -rw------- ./usr/bin/secret
usr/bin/sh Lrwxrwxrwx -> dash
usr/bin/su urwxr-xr-x ./usr/bin/su
usr/bin/su2 urwxr-xr-x ./usr/bin/su`
	if got := listing(t, dir); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	mode := make([]byte, 8)
	if n, err := unix.Lgetxattr(filepath.Join(dir, "usr/bin/secret"), ownership.Mode, mode); err != nil || string(mode[:n]) != "200" {
		t.Errorf("true mode of a file that its owner may not read: %q, %v", mode[:n], err)
	}
	if info, _ := os.Stat(filepath.Join(dir, "usr/bin/su")); !info.ModTime().Equal(when) {
		t.Errorf("time is %v", info.ModTime())
	}
	if got := strings.Join(c.Paths[:4], " "); got != "/. /usr /usr/bin /usr/bin/su" {
		t.Errorf("listed: %s", got)
	}
}

// base-files ships /lib64, through which every program is started, while others
// are being unpacked by dpkg-deb out of the same tree.
func TestALinkThatStandsAlreadyIsNeverMissing(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "lib64")
	if err := os.Symlink("usr/lib64", link); err != nil {
		t.Fatal(err)
	}
	before, err := os.Lstat(link)
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"usr/lib64", "usr/lib32"} {
		if _, err := unpack(t, dir, deb.Options{}, tar.Header{Name: "./lib64", Typeflag: tar.TypeSymlink, Linkname: target}); err != nil {
			t.Fatal(err)
		}
		after, err := os.Lstat(link)
		if err != nil {
			t.Fatal(err)
		}
		if target == "usr/lib64" && !os.SameFile(before, after) {
			t.Error("the link was made anew, although it led there already")
		}
		if got := listing(t, dir); got != "lib64 Lrwxrwxrwx -> "+target {
			t.Errorf("got:\n%s", got)
		}
	}
}

func TestLinksLeadPackagesAroundInTheRootButNeverOut(t *testing.T) {
	outside := t.TempDir()
	dir := t.TempDir()
	for link, target := range map[string]string{"bin": "usr/bin", "abs": outside, "up": "../../../../.." + outside} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := unpack(t, dir, deb.Options{},
		tar.Header{Name: "./bin/", Typeflag: tar.TypeDir},
		tar.Header{Name: "./bin/a", Typeflag: tar.TypeReg},
		tar.Header{Name: "./abs/b", Typeflag: tar.TypeReg},
		tar.Header{Name: "./up/c", Typeflag: tar.TypeReg},
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/bin/a", filepath.Join(outside, "b"), filepath.Join(outside, "c")} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Errorf("not inside the root: %v", err)
		}
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("outside the root: %v", entries)
	}
	if _, err := unpack(t, dir, deb.Options{}, tar.Header{Name: "./a/../../b", Typeflag: tar.TypeReg}); err == nil {
		t.Error("a path with .. was taken")
	}
	if _, err := unpack(t, dir, deb.Options{}, tar.Header{Name: "./l", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}); err == nil {
		t.Error("a hard link with .. was taken")
	}
}

func TestPoliciesDecideWhatIsLaidDown(t *testing.T) {
	dir := t.TempDir()
	c, err := unpack(t, dir, deb.Options{
		Keep: func(p string) bool { return p != "doc" },
		Transform: func(p string) (string, deb.Convert) {
			name, ok := strings.CutSuffix(p, ".gz")
			if !ok {
				return "", nil
			}
			return name, func(r io.Reader) (io.Reader, error) { return strings.NewReader("plain"), nil }
		},
		Place: func(p string) string {
			if p == "conf" {
				return "conf.dpkg-new"
			}
			return p
		},
		Claim: func(p string) (bool, error) { return p != "taken", nil },
	},
		tar.Header{Name: "./doc", Typeflag: tar.TypeReg}, tar.Header{Name: "./m.gz", Typeflag: tar.TypeReg, Mode: 0o644},
		tar.Header{Name: "./conf", Typeflag: tar.TypeReg, Mode: 0o644}, tar.Header{Name: "./taken", Typeflag: tar.TypeReg},
	)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := listing(t, dir), "conf.dpkg-new -rw-r--r-- ./conf\nm -rw-r--r-- plain"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if got := strings.Join(c.Paths, " "); got != "/m /conf /taken" {
		t.Errorf("listed: %s", got)
	}
	sum := md5.Sum([]byte("plain"))
	if c.Sums["/m"] != hex.EncodeToString(sum[:]) || c.Renamed["/m.gz"] != "/m" {
		t.Errorf("sums: %v, renamed: %v", c.Sums, c.Renamed)
	}
}

func TestAFullDiskSaysSo(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Logf("only root can mount a small file system: %v", err)
		return
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	root, err := deb.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	err = root.WriteFile("large", 0o644, make([]byte, 1<<20))
	if fault.Of(err) != fault.Space || fault.Mend(err) == "" {
		t.Errorf("got %v (%v)", err, fault.Of(err))
	}
}

// gzipped wraps content, so that the fuzzer meets a decompressor too.
func gzipped(content []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(content)
	w.Close()
	return out.Bytes()
}

func FuzzOpen(f *testing.F) {
	f.Add(plainPackage(tar.Header{Name: "./usr/", Typeflag: tar.TypeDir}, tar.Header{Name: "./usr/a", Typeflag: tar.TypeReg}))
	compressed := []byte("!<arch>\n")
	compressed = append(compressed, member("debian-binary", []byte("2.0\n"))...)
	compressed = append(compressed, member("control.tar.gz", gzipped(control(stanza)))...)
	f.Add(append(compressed, member("data.tar.gz", gzipped(archive()))...))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		name := filepath.Join(dir, fmt.Sprintf("%x.deb", md5.Sum(content)))
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(name)
		d, err := deb.Open(name)
		if err != nil {
			return
		}
		defer d.Close()
		data, err := d.Data()
		if err != nil {
			return
		}
		defer data.Close()
		deb.Walk(data, func(name string, h *tar.Header, content io.Reader) error {
			if strings.HasPrefix(name, "/") || strings.Contains("/"+name+"/", "/../") {
				t.Errorf("path %q leaves the package", name)
			}
			_, err := io.Copy(io.Discard, content)
			return err
		})
	})
}

func FuzzParseStanza(f *testing.F) {
	f.Add([]byte(stanza))
	f.Add([]byte("A:\n b\n\nC: d\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := deb.ParseStanza(text)
		if err != nil {
			return
		}
		again, err := deb.ParseStanza([]byte(s.String()))
		if err != nil || again.String() != s.String() {
			t.Errorf("%q reads as %q, which reads as %q (%v)", text, s, again, err)
		}
	})
}
