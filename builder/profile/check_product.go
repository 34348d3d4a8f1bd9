package profile

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/manifest"
)

var (
	// imageName is a repository with or without a tag, as the "OCI Distribution
	// Specification" ("Pulling manifests") has them, without the name of a registry.
	imageName = regexp.MustCompile(`^[a-z0-9]+([._/-][a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$`)
	userName  = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	fileMode  = regexp.MustCompile(`^0[0-7]{3}$`)
)

// maxSetup bounds how long a set-up may take, in seconds.
const maxSetup = 24 * 60 * 60

func checkImages(doc *document, p *Profile) error {
	for i, dir := range p.Debs {
		if !inProject(dir) {
			return doc.errorAt(doc.find("debs", i), fmt.Sprintf("debs[%d]", i), "%q is not a path below the project's directory", dir).
				WithMend("write it as in payload/acme")
		}
	}
	seen := map[string]bool{}
	for i, im := range p.Images {
		field := fmt.Sprintf("images[%d]", i)
		if !imageName.MatchString(im.Name) {
			return doc.errorAt(doc.find("images", i, "name"), field+".name", "%q is not the name of an image", im.Name).
				WithMend("write it as in acme/portal or acme/portal:2, in lower case and without a registry")
		}
		repository, _, _ := strings.Cut(im.Name, ":")
		if seen[repository] {
			return doc.errorAt(doc.find("images", i, "name"), field+".name", "%s is listed twice", repository).WithMend("remove one")
		}
		seen[repository] = true
		if problem := im.problem(); problem != "" {
			return doc.errorAt(doc.find("images", i), field, "%s", problem).
				WithMend("name one of go, registry, layout and tarball; docs/payload.md shows each")
		}
	}
	return nil
}

// problem says what is wrong with where an image comes from.
func (im Image) problem() string {
	sources := 0
	for _, s := range []string{im.Go, im.Registry, im.Layout, im.Tarball} {
		if s != "" {
			sources++
		}
	}
	switch {
	case sources != 1:
		return fmt.Sprintf("it has %d places to come from", sources)
	case im.Go != "" && (!strings.HasPrefix(im.Go, "./") || !inProject(im.Go[2:])):
		return fmt.Sprintf("go: %q is not a package of the project, such as ./service", im.Go)
	case slices.Contains(strings.Split(im.Go, "/"), "vendor"):
		return fmt.Sprintf("go: %q: Go takes no command from a directory named vendor", im.Go)
	case im.Layout != "" && !inProject(im.Layout):
		return fmt.Sprintf("layout: %q is not a path below the project's directory", im.Layout)
	case im.Tarball != "" && !inProject(im.Tarball):
		return fmt.Sprintf("tarball: %q is not a path below the project's directory", im.Tarball)
	}
	return ""
}

// inProject reports whether a path is clean and stays below the project.
func inProject(p string) bool {
	return p != "" && p != "." && path.Clean(p) == p && !path.IsAbs(p) && p != ".." && !strings.HasPrefix(p, "../") && !strings.ContainsAny(p, "\x00\n ")
}

func checkProduct(doc *document, p *Profile) error {
	product := p.Product
	if product.User != "" && !userName.MatchString(product.User) {
		return doc.errorAt(doc.find("product", "user"), "product.user", "%q is not the name of a user", product.User)
	}
	for i, unit := range product.Units {
		if !slices.Contains(p.Services, unit) {
			return doc.errorAt(doc.find("product", "units", i), fmt.Sprintf("product.units[%d]", i), "%q is none of the role's services", unit).
				WithMend("list it under services too: the node is ready once it runs")
		}
	}
	if c := product.Setup.Command; len(c) > 0 && !cleanAbsolute(c[0]) {
		return doc.errorAt(doc.find("product", "setup", "command", 0), "product.setup.command", "%q is not the absolute path of a program", c[0])
	}
	if t := product.Setup.Timeout; t < 0 || t > maxSetup {
		return doc.errorAt(doc.find("product", "setup", "timeout"), "product.setup.timeout", "%d is not a number of seconds from 1 to %d", t, maxSetup)
	}
	if err := checkShared(doc, p); err != nil {
		return err
	}
	if problem := healthProblem(product.Health); problem != "" {
		return doc.errorAt(doc.find("product", "health", "url"), "product.health.url", "%s", problem).
			WithMend("write it as in https://localhost/health")
	}
	if product.Stack != "" && !cleanAbsolute(product.Stack) {
		return doc.errorAt(doc.find("product", "stack"), "product.stack", "%q is not a clean absolute path below /", product.Stack).
			WithMend("lay the Compose file in an overlay, and write where it stands in the appliance")
	}
	return nil
}

func checkShared(doc *document, p *Profile) error {
	seen := map[string]bool{}
	for i, f := range p.Product.Shared {
		field := fmt.Sprintf("product.shared[%d]", i)
		kept := slices.ContainsFunc(p.State, func(dir string) bool { return strings.HasPrefix(f.Path, dir+"/") })
		switch {
		case !cleanAbsolute(f.Path):
			return doc.errorAt(doc.find("product", "shared", i, "path"), field+".path", "%q is not a clean absolute path below /", f.Path)
		case seen[f.Path]:
			return doc.errorAt(doc.find("product", "shared", i, "path"), field+".path", "%s is listed twice", f.Path).WithMend("remove one")
		case !kept:
			return doc.errorAt(doc.find("product", "shared", i, "path"), field+".path", "%s is below none of the role's state directories, so the next version would not have it", f.Path).
				WithMend("list its directory under state")
		case f.User != "" && !userName.MatchString(f.User):
			return doc.errorAt(doc.find("product", "shared", i, "user"), field+".user", "%q is not the name of a user", f.User)
		case f.Mode != "" && !fileMode.MatchString(f.Mode):
			return doc.errorAt(doc.find("product", "shared", i, "mode"), field+".mode", "%q is not a mode in octal, such as \"0640\"", f.Mode)
		}
		for j, unit := range f.Restart {
			if !unitName.MatchString(unit) {
				return doc.errorAt(doc.find("product", "shared", i, "restart", j), fmt.Sprintf("%s.restart[%d]", field, j), "%q is not a systemd unit with its suffix", unit)
			}
		}
		seen[f.Path] = true
	}
	return nil
}

// healthProblem says what is wrong with a question about health.
func healthProblem(h manifest.Health) string {
	if h.URL == "" {
		return ""
	}
	u, err := url.Parse(h.URL)
	switch {
	case err != nil:
		return fmt.Sprintf("%q is not a URL", h.URL)
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Sprintf("%q is neither http nor https", h.URL)
	case u.Hostname() != "localhost" || u.User != nil:
		return fmt.Sprintf("%q does not ask the node itself: its host is not localhost", h.URL)
	}
	return ""
}
