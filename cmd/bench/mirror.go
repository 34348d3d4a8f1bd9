package main

import (
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/slipwayhq/slipway/builder/mirror/serve"
)

// news is what an update brings: a package with all that it depends on.
const news = "mariadb-server"

// mirrors carries what the six roles need, and an image, to an isolated side: a full carry-over, then an update of
// it. The peers are aptly and skopeo. They know no media, so what they publish is copied to a directory and from
// there to the other side, the update with rsync. All take packages from one server on this machine.
func (b *bench) mirrors() error {
	say("carrying a mirror over")
	dir := b.path("mirror")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	image := filepath.Join(mkdir(dir), "image")
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// The peak memory of a process begins at what its parent ever had, and an image is made in memory.
	if _, err := b.run(self, "-image", image); err != nil {
		return err
	}
	source, err := b.source(dir)
	if err != nil {
		return err
	}
	if _, err := b.run("sh", "-c", `gpg --batch --yes --dearmor -o "$1/source.gpg" "$1/source.asc"`, "sh", dir); err != nil {
		return err
	}

	site, cache := filepath.Join(dir, "site"), filepath.Join(dir, "cache")
	ours := func(n string, fresh []string, create ...string) (sample, error) {
		for _, name := range append(fresh, "media-"+n) {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return sample{}, err
			}
		}
		if _, err := os.Stat(site); err != nil {
			if err := b.newSite(site, filepath.Join(dir, "site.asc")); err != nil {
				return sample{}, err
			}
		}
		media := filepath.Join(dir, "media-"+n)
		made, err := b.run(append([]string{b.slipway, "--cache", cache, "mirror"}, append(create, "--site", site, "--no-layers", "--image", "acme/agent:1=oci:"+image,
			"--mirror", source[n]+"/debian", "--mirror-key", filepath.Join(dir, "source.asc"), "-o", media)...)...)
		if err != nil {
			return sample{}, err
		}
		taken, err := b.run(b.slipway, "mirror", "import", "--store", filepath.Join(dir, "store"), "--key", filepath.Join(dir, "site.asc"), media)
		return sample{made.seconds + taken.seconds, made.cpu + taken.cpu, max(made.peak, taken.peak)}, err
	}
	theirs := func(n string) (sample, error) {
		return b.run(b.path("aptly-carry"), filepath.Join(dir, "aptly"), n, source[n], filepath.Join(dir, "source.gpg"), image)
	}

	full, err := b.median(
		func() (sample, error) { return ours("1", []string{"cache", "store", "site"}, "create") },
		func() (sample, error) { return theirs("1") })
	if err != nil {
		return err
	}
	receipt := filepath.Join(dir, "receipt")
	if _, err := b.run(b.slipway, "mirror", "receipt", "--store", filepath.Join(dir, "store"), "-o", receipt); err != nil {
		return err
	}
	// An update that is repeated finds its packages in the caches, so there is but one.
	updated, err := ours("2", nil, "update", "--package", news, "--receipt", receipt)
	if err != nil {
		return err
	}
	theirUpdate, err := theirs("2")
	if err != nil {
		return err
	}
	media := filepath.Join(dir, "media-1")
	verify, err := b.median(
		func() (sample, error) {
			return b.run(b.slipway, "mirror", "verify", "--key", filepath.Join(dir, "site.asc"), media)
		},
		func() (sample, error) {
			return b.run("sh", "-c", `find "$1" -type f -exec sha256sum {} + >/dev/null`, "sh", media)
		})
	if err != nil {
		return err
	}
	const peer = "aptly, skopeo, cp"
	b.compare("carrying six roles over", full[0].seconds, peer, full[1].seconds, "s", 0)
	b.compare("processor time of it", full[0].cpu, peer, full[1].cpu, "s", 0)
	b.compare("media of it", mib(treeSize(media)), peer, mib(treeSize(filepath.Join(dir, "aptly/media-1"))), "MiB", 0)
	b.compare("carrying an update over", updated.seconds, peer, theirUpdate.seconds, "s", 0)
	b.compare("processor time of it", updated.cpu, peer, theirUpdate.cpu, "s", 0)
	b.compare("media of it", mib(treeSize(filepath.Join(dir, "media-2"))), peer, mib(treeSize(filepath.Join(dir, "aptly/media-2"))), "MiB", 0)
	b.compare("verifying the volumes", verify[0].seconds, "sha256sum", verify[1].seconds, "s", 0)
	b.compare("processor time of it", verify[0].cpu, "sha256sum", verify[1].cpu, "s", 0)
	b.compare("peak memory of create and import", mib(full[0].peak), peer, mib(full[1].peak), "MiB", 300)
	b.compare("peak memory of verify", mib(verify[0].peak), "", 0, "MiB", 300)
	return nil
}

// writeImage makes an image of 96 MiB as an OCI image layout.
func writeImage(dir string) error {
	img, err := random.Image(32<<20, 3)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config.OS, config.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	_, err = layout.Write(dir, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}))
	return err
}

// source makes the two states of the archive that everybody takes packages from, and returns where they are served.
func (b *bench) source(dir string) (map[string]string, error) {
	site, key := filepath.Join(dir, "source-site"), filepath.Join(dir, "source.asc")
	if err := b.newSite(site, key); err != nil {
		return nil, err
	}
	source := map[string]string{}
	for i, more := range [][]string{nil, {"--package", news}} {
		n := strconv.Itoa(i + 1)
		store, media := filepath.Join(dir, "source-"+n), filepath.Join(dir, "source-media")
		for _, argv := range [][]string{
			append([]string{"--cache", b.cache("warm"), "mirror", "create", "--site", site, "--no-layers", "-o", media}, more...),
			{"mirror", "import", "--store", store, "--key", key, media},
		} {
			if _, err := b.run(append([]string{b.slipway}, argv...)...); err != nil {
				return nil, err
			}
		}
		if err := os.RemoveAll(media); err != nil {
			return nil, err
		}
		server, err := serve.New(filepath.Join(store, "public"), serve.Options{})
		if err != nil {
			return nil, err
		}
		l, err := (&net.ListenConfig{}).Listen(b.ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		go server.Serve(context.WithoutCancel(b.ctx), l, "", "") // it ends with this process
		source[n] = "http://" + l.Addr().String()
	}
	return source, nil
}

// newSite makes a site's keys, and writes the public one to a file.
func (b *bench) newSite(dir, public string) error {
	if _, err := b.run(b.slipway, "mirror", "key", "generate", "--site", dir, "--name", "bench"); err != nil {
		return err
	}
	_, err := b.run("sh", "-c", `"$1" mirror key public --site "$2" >"$3"`, "sh", b.slipway, dir, public)
	return err
}

// treeSize is the sum of the sizes of the files below a directory.
func treeSize(dir string) (sum int64) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			sum += size(path)
		}
		return err
	})
	return sum
}
