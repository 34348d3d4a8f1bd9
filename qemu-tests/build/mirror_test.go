//go:build long

package buildtest

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/mirror"
)

// carried is a mirror that came from volumes.
type carried struct {
	dir   string // for everything
	store string
	image v1.Image // acme/agent:1 of it
}

// carryOver makes a bundle of the project with what clients need beside it, and takes it in on another side.
func carryOver(t *testing.T, flags ...string) carried {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("network namespaces and Debian trees are made here: run it as root")
	}
	dir := tempDir(t, 0)
	c := carried{dir: dir, store: filepath.Join(dir, "store")}
	img, err := random.Image(1<<20, 3)
	must(t, err)
	config, err := img.ConfigFile()
	must(t, err)
	config.OS, config.Architecture = "linux", "amd64"
	c.image, err = mutate.ConfigFile(img, config)
	must(t, err)
	_, err = layout.Write(c.path("image"), mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: c.image}))
	must(t, err)

	site, media, key := c.path("site"), c.path("media"), c.path("site.asc")
	runner{}.succeed(t, "mirror", "key", "generate", "--site", site, "--name", "plant-7")
	must(t, os.WriteFile(key, []byte(runner{}.succeed(t, "mirror", "key", "public", "--site", site).stdout), 0o644))
	runner{}.succeed(t, append([]string{"mirror", "create", "--site", site, "-o", media, "--image", "acme/agent:1=oci:" + c.path("image")}, flags...)...)
	runner{}.succeed(t, "mirror", "import", "--store", c.store, "--key", key, media)
	runner{}.succeed(t, "mirror", "verify", "--store", c.store)
	must(t, os.RemoveAll(media))
	return c
}

func (c carried) path(name string) string { return filepath.Join(c.dir, name) }

// url is the archive as a directory.
func (c carried) url() string { return "file://" + c.store + "/public/debian" }

// alone begins scripts that have no network but their own loopback, where the mirror answers.
const alone = `set -eu
ip link set lo up
if ip route get 192.0.2.1 2>/dev/null; then echo "there is a way out" >&2; exit 1; fi
rm -f up; mkfifo up
"$SLIPWAY" mirror serve --store store --listen 127.0.0.1:8080 --access-log access.log >up &
read -r said <up
`

// isolated runs a shell script in namespaces of its own, in the mirror's directory, and returns what it prints. It
// ends with all that it started.
func (c carried) isolated(t *testing.T, r runner, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", alone+script)
	cmd.Dir = c.dir
	cmd.Env = append(r.command(t.Context()).Env, "SLIPWAY="+slipway, "PROJECT="+project, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out[max(0, len(out)-6000):])
	}
	return string(out)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestADryRunTellsWhatIsThenMade compares what create says before and after, and has it take no number.
func TestADryRunTellsWhatIsThenMade(t *testing.T) {
	dir := tempDir(t, 0)
	site, media := filepath.Join(dir, "site"), filepath.Join(dir, "media")
	runner{}.succeed(t, "mirror", "key", "generate", "--site", site, "--name", "plant-7")
	create := func(flags ...string) (r mirror.Result) {
		said := runner{}.succeed(t, append([]string{"mirror", "create", "--site", site, "--no-layers", "--volume-size", "300MiB", "-o", media, "--json"}, flags...)...)
		must(t, json.Unmarshal([]byte(said.stdout), &r))
		return r
	}
	planned := create("--dry-run")
	assertEmpty(t, media)
	made := create()
	if planned.Bundle != "" || len(made.Bundle) != 64 || made.Download != 0 {
		t.Errorf("planned %+v\nmade %+v", planned, made)
	}
	if len(made.Volumes) < 2 || len(planned.Volumes) != len(made.Volumes) {
		t.Fatalf("planned %+v\nmade %+v", planned, made)
	}
	// Signed indices carry the date, and which volume a file is on follows from its SHA-256: those
	// few small files may change places.
	const dated = 1 << 20
	var moved mirror.Volume
	for i, v := range made.Volumes {
		was := planned.Volumes[i]
		moved.Files, moved.Size = moved.Files+v.Files-was.Files, moved.Size+v.Size-was.Size
		if v.Path != was.Path || v.Number != was.Number || max(v.Size, was.Size)-min(v.Size, was.Size) > dated {
			t.Errorf("volume %+v was planned as %+v", v, was)
		}
	}
	if moved != (mirror.Volume{}) {
		t.Errorf("planned %+v\nmade %+v", planned, made)
	}
	all := made
	if all.Bundle, all.Date, all.Download, all.Volumes = "", planned.Date, planned.Download, planned.Volumes; !reflect.DeepEqual(planned, all) {
		t.Errorf("planned %+v\nmade %+v", planned, made)
	}
	for _, v := range made.Volumes {
		var size int64
		must(t, filepath.WalkDir(v.Path, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				st, err := d.Info()
				must(t, err)
				size += st.Size()
			}
			return err
		}))
		if size < v.Size || size > 300<<20 {
			t.Errorf("volume %d has %d bytes, %d of files were announced, 300 MiB are allowed", v.Number, size, v.Size)
		}
	}
}

// TestAnIsolatedSiteBuildsTheSameBytes builds where there is no network, with the program and the project that came on
// the media: from the mirror's packages, and from its layers; locks there; and builds a role that was changed there.
func TestAnIsolatedSiteBuildsTheSameBytes(t *testing.T) {
	runner{}.succeed(t, "build", "--all", "--format", "qcow2", "--output", tempDir(t, 0))
	const role = "balancer"
	online := tempDir(t, 0)
	runner{}.succeed(t, "build", role, "mirror", "dispatcher", "--format", "qcow2", "--output", online)
	want := hashes(t, online)
	c := carryOver(t, "--package", "tree")
	c.isolated(t, runner{}, `install -m 755 store/public/slipway/slipway slipway
		mkdir project && tar -xf store/public/slipway/project.tar -C project`)
	const noGo = `PATH=/usr/bin:/bin:/usr/sbin:/sbin
		if command -v go >&2; then exit 1; fi
		`

	const secure = "127.0.0.1:8443"
	authority := c.path("tls.pem")
	if out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=mirror", "-addext", "subjectAltName=IP:127.0.0.1",
		"-keyout", c.path("tls.key"), "-out", authority).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	serveTLS := `"$SLIPWAY" mirror serve --store store --listen ` + secure + ` --tls-cert tls.pem --tls-key tls.key >up &
		read -r said <up
		`
	layers := " --layers file://" + c.store + "/public"
	for name, how := range map[string]struct{ cache, roles, flags string }{
		"packages over HTTP":      {programsOnly(t), role, "--mirror http://127.0.0.1:8080/debian"},
		"packages over HTTPS":     {programsOnly(t), role, "--mirror https://" + secure + "/debian"},
		"packages of a directory": {programsOnly(t), role, "--mirror " + c.url()},
		// Nothing is cached, and nothing can be made: there is no Go, and there are no packages. The role mirror has the command in it, dispatcher an image
		// of a program of the project.
		"layers of a directory": {c.path("empty"), role + " mirror dispatcher", "--mirror http://127.0.0.1:9/debian" + layers},
	} {
		out := tempDir(t, 0)
		c.isolated(t, runner{cache: how.cache}, serveTLS+noGo+`export SSL_CERT_FILE=`+authority+`
			./slipway --project project build `+how.roles+` --format qcow2 --output `+out+` `+how.flags)
		got := hashes(t, out)
		for _, role := range strings.Fields(how.roles) {
			if image := role + ".qcow2"; got[image] == "" || got[image] != want[image] {
				t.Errorf("with %s %s is %s, online it is %s", name, image, got[image], want[image])
			}
		}
	}

	// A lock that is made there chooses the same packages, and says who signed for them.
	before, err := lock.Read(filepath.Join(project, "images.lock"))
	must(t, err)
	for _, url := range []string{c.url(), "http://127.0.0.1:8080/debian", "https://" + secure + "/debian"} {
		locked := filepath.Join(tempDir(t, 0), "images.lock")
		c.isolated(t, runner{cache: c.path("empty")}, serveTLS+`export SSL_CERT_FILE=`+authority+`
			./slipway --project project lock --lock `+locked+` --mirror `+url+` --mirror-key site.asc`)
		after, err := lock.Read(locked)
		must(t, err)
		if !slices.Equal(before.Items(), after.Items()) {
			t.Errorf("the lock that was made from %s holds other packages", url)
		}
		for i, s := range after.Suites {
			if s.InRelease == before.Suites[i].InRelease {
				t.Errorf("%s of %s is locked as upstream signed it, not as the site did", s.Name, url)
			}
		}
	}

	// The site changes a role: a package that was carried for it goes in. Layers are made anew; the agent came on the media.
	out := tempDir(t, 0)
	c.isolated(t, runner{cache: c.path("fresh")}, noGo+`cd project
		sed -i 's/^packages:$/&\n  - tree/' profiles/`+role+`.yaml
		../slipway lock --mirror `+c.url()+` --mirror-key ../site.asc
		../slipway build `+role+` --format qcow2 --output `+out+` --mirror `+c.url()+layers)
	if said := (runner{}).succeed(t, "sbom", filepath.Join(out, role+".qcow2")); !strings.Contains(said.stdout, "pkg:deb/debian/tree@") {
		t.Error("the package that the site added is not in the image")
	}
}

// TestRealClientsLiveOnTheMirrorAlone makes Debian 13 out of the mirror with debootstrap and mmdebstrap, and has the
// apt and the verifiers of Debian 12 and 13 and Docker use it, with no other network.
func TestRealClientsLiveOnTheMirrorAlone(t *testing.T) {
	for _, tool := range []string{"debootstrap", "mmdebstrap", "gpg", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is needed: %v", tool, err)
		}
	}
	sources, err := apt.MachineSources("/")
	must(t, err)
	d, err := apt.LoadDistribution(filepath.Join(project, "profiles/distribution.yaml"))
	must(t, err)
	online, err := apt.Mirrors(d, nil, os.Getenv("SLIPWAY_MIRROR"), sources)
	must(t, err)
	c := carryOver(t, "--no-layers", "--bootstrap", "--package", "sqv", "--package", "docker-cli")

	// Debian 12 is not on the mirror; its tree is made before the network goes.
	if out, err := exec.CommandContext(t.Context(), "mmdebstrap", "--quiet", "--variant=apt", "--include=gpgv", "bookworm", c.path("tree12"), online["main"][0]).CombinedOutput(); err != nil {
		t.Fatalf("mmdebstrap: %v\n%s", err, out)
	}
	l, err := lock.Read(filepath.Join(project, "images.lock"))
	must(t, err)
	var names []string
	for _, p := range l.Packages {
		names = append(names, p.Name)
	}
	must(t, os.WriteFile(c.path("names"), []byte(strings.Join(names, "\n")+"\n"), 0o644))

	t.Run("debootstrap", func(t *testing.T) {
		c.isolated(t, runner{}, `gpg --dearmor <site.asc >site.gpg
			debootstrap --variant=minbase --keyring="$PWD/site.gpg" trixie tree http://127.0.0.1:8080/debian
			chroot tree dpkg --audit
			rm -rf tree`)
	})
	t.Run("mmdebstrap", func(t *testing.T) {
		c.isolated(t, runner{}, `mmdebstrap --quiet --variant=apt --include=sqv,docker.io,docker-cli --aptopt='APT::Install-Recommends "false"' trixie tree13 \
			"deb [signed-by=$PWD/site.asc] http://127.0.0.1:8080/debian trixie main" \
			"deb [signed-by=$PWD/site.asc] http://127.0.0.1:8080/debian trixie-updates main" \
			"deb [signed-by=$PWD/site.asc] http://127.0.0.1:8080/debian-security trixie-security main"
			chroot tree13 dpkg --audit`)
	})
	for _, tree := range []string{"tree12", "tree13"} {
		t.Run("apt and the verifier of "+tree, func(t *testing.T) {
			// Every package of the lock is planned onto an empty machine: what apt wants beside it is on the mirror.
			said := c.isolated(t, runner{}, `tree=`+tree+`
			mkdir -p $tree/site $tree/proc; cp site.asc names $tree/site; cp -r store/public/debian/dists $tree/site/
			mount -t proc proc $tree/proc
			rm -rf $tree/etc/apt/sources.list $tree/etc/apt/sources.list.d/*
			key=$(sed 's/^$/./; s/^/ /' site.asc)
			for s in "debian|trixie trixie-updates" "debian-security|trixie-security"; do
				printf 'Types: deb\nURIs: http://127.0.0.1:8080/%s\nSuites: %s\nComponents: main\nSigned-By:\n%s\n\n' "${s%|*}" "${s#*|}" "$key"
			done >$tree/etc/apt/sources.list.d/mirror.sources
			gpg --dearmor <site.asc >$tree/site/site.gpg
			: >$tree/site/status
			chroot $tree sh -euc '
				cat /etc/debian_version; apt-get --version | head -1
				cd /site/dists/trixie
				if command -v sqv >/dev/null; then sqv --version; sqv --keyring /site/site.asc Release.gpg Release
				else gpgv --version | head -1; gpgv --keyring /site/site.gpg InRelease; gpgv --keyring /site/site.gpg Release.gpg Release; fi
				apt-get -o APT::Sandbox::User=root -o APT::Update::Error-Mode=any update
				apt-get -o Dir::State::status=/site/status -s --no-install-recommends install $(cat /site/names) | tail -1
				apt-get -o APT::Sandbox::User=root --download-only --reinstall -y install base-files'`)
			t.Log(said)
			if strings.Contains(said, "W: ") || strings.Contains(said, "E: ") {
				t.Errorf("apt warns:\n%s", said)
			}
		})
	}
	t.Run("docker", func(t *testing.T) {
		digest, err := c.image.Digest()
		must(t, err)
		manifest, err := c.image.Manifest()
		must(t, err)
		said := c.isolated(t, runner{}, `mount --bind tree13 tree13 # dockerd asks for a root that is a mount
			cd tree13
			mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t tmpfs tmpfs dev; mount -t tmpfs tmpfs run
			for d in null zero full random urandom; do touch dev/$d; mount --bind /dev/$d dev/$d; done
			mount -t tmpfs tmpfs sys/fs/cgroup; mkdir sys/fs/cgroup/devices; mount -t cgroup -o devices cgroup sys/fs/cgroup/devices || { umount sys/fs/cgroup; mount -t cgroup2 cgroup2 sys/fs/cgroup; }
			chroot . sh -euc '
				dockerd --storage-driver=vfs --iptables=false --ip6tables=false --bridge=none --host=unix:///run/docker.sock >/run/docker.log 2>&1 &
				daemon=$!
				until [ -S /run/docker.sock ] && docker version >/dev/null 2>&1; do kill -0 $daemon || { cat /run/docker.log; exit 1; }; sleep 0.2; done
				docker pull 127.0.0.1:8080/acme/agent:1
				docker pull 127.0.0.1:8080/acme/agent@`+digest.String()+`
				docker image inspect 127.0.0.1:8080/acme/agent:1'`)
		t.Log(said)
		var inspected []struct {
			ID          string `json:"Id"`
			RepoDigests []string
		}
		must(t, json.Unmarshal([]byte(said[strings.Index(said, "[\n"):]), &inspected))
		if len(inspected) != 1 || inspected[0].ID != manifest.Config.Digest.String() || !slices.Contains(inspected[0].RepoDigests, "127.0.0.1:8080/acme/agent@"+digest.String()) {
			t.Errorf("Docker pulled %+v, want %s", inspected, digest)
		}
	})
}
