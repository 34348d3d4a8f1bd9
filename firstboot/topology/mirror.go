package topology

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// mirror reads where packages and images come from.
func (v value) mirror() *plan.Mirror {
	o := v.object("mirror")
	var m plan.Mirror
	if v, ok := o.get("node"); ok {
		m.Node, _ = v.text()
	}
	if v, ok := o.get("url"); ok {
		if text, ok := v.text(); ok {
			m.URL = v.web(text, true)
		}
	}
	if v, ok := o.get("registry"); ok {
		if text, ok := v.text(); ok {
			m.Registry = v.web(text, false)
		}
	}
	if v, ok := o.need("key", "paste what \"slipway mirror key public\" prints, after \"key: |\""); ok {
		m.Key = v.publicKey()
	}
	if v, ok := o.get("ca"); ok {
		m.CA = v.authority()
	}
	return &m
}

// web reads a URL of the web, with a path or without; "" if it is none.
func (v value) web(text string, path bool) string {
	const example = "https://mirror.example.org"
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || len(text) > 1000:
		v.fail("write it as in "+example, "%q is no URL of http or https", short(text))
		return ""
	case u.User != nil:
		v.fail("write it as in "+example, "a name or password has no place here: every node's files would hold it")
		return ""
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery || strings.ContainsAny(text, " \"'\\;{}\t\r\n"):
		v.fail("write it as in "+example, "%q has more than a host and a path", short(text))
		return ""
	case !path && strings.Trim(u.Path, "/") != "":
		v.fail("write "+short(u.Scheme+"://"+u.Host), "a registry has no path")
		return ""
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			v.fail("ports are 1 to 65535", "%q has no port that can be", short(text))
			return ""
		}
	}
	if !hostOrAddress(u.Hostname()) {
		v.fail("give the machine's DNS name or address", "%q is no host", short(u.Hostname()))
		return ""
	}
	return strings.TrimRight(u.Scheme+"://"+u.Host+u.Path, "/")
}

// publicKey reads OpenPGP keys.
func (v value) publicKey() string {
	text, ok := v.text()
	if !ok {
		return ""
	}
	const mend = "paste what \"slipway mirror key public\" prints, after \"key: |\""
	switch {
	case strings.Contains(text, "PRIVATE KEY"):
		v.fail(mend+"; and make a new key: whoever has read this file can have your nodes install anything", "this is a secret key")
		return ""
	case !strings.HasPrefix(strings.TrimSpace(text), "-----BEGIN PGP PUBLIC KEY BLOCK-----"):
		v.fail(mend, "this is no OpenPGP key in ASCII armour")
		return ""
	}
	if _, err := sign.ParseRing([]byte(text)); err != nil {
		v.fail(mend, "the key cannot be read: %s", short(err.Error()))
		return ""
	}
	return strings.TrimSpace(text) + "\n"
}

// authority reads certificates.
func (v value) authority() string {
	text, ok := v.text()
	if !ok {
		return ""
	}
	const mend = "paste the authority's certificate, PEM, after \"ca: |\""
	certificates, err := pki.ParseAuthorities(text)
	if err != nil {
		v.fail(mend, "%v", err)
		return ""
	}
	var out strings.Builder
	for _, cert := range certificates {
		if !cert.IsCA {
			v.fail("paste the one that signed it", "%s is no authority's certificate", short(cert.Subject.String()))
			return ""
		}
		out.WriteString(pki.EncodeCertificate(cert.Raw))
	}
	return out.String()
}

// mirror checks that there is one place for the mirror, and somebody who serves it.
func (c *checker) mirror() {
	m := c.Mirror
	for i, n := range c.Nodes {
		if n.Role == mirror && (m == nil || m.Node != n.Name) {
			c.wrong(at("nodes", i)+".role", "write \"mirror: {node: "+short(n.Name)+", key: …}\", or take the node out", "nothing is to be had from the mirror %s", short(n.Name))
		}
	}
	if m == nil {
		return
	}
	given := func(key string) bool { return c.lines["mirror."+key] > 0 }
	switch {
	case given("node") && given("url"):
		c.wrong("mirror.url", "keep one of them", "a node of the cluster serves the mirror, or another machine")
	case !given("node") && !given("url"):
		c.wrong("mirror", "write \"node: NAME\" or \"url: https://…\"", "it does not say where the mirror is")
	case given("node"):
		for _, key := range []string{"registry", "ca"} {
			if given(key) {
				c.wrong("mirror."+key, "take it out", "a node of the cluster serves images too, and the cluster's own authority vouches for it")
			}
		}
		c.serves(m.Node)
	case m.URL != "":
		secure := func(u string) bool { return strings.HasPrefix(u, "https:") }
		if given("ca") && !secure(m.URL) && !secure(m.Registry) {
			c.wrong("mirror.ca", "write https, or take it out", "without TLS there is nothing that it could vouch for")
		}
		if strings.HasPrefix(m.Registry, "http:") {
			c.doubt("mirror.registry", "write https", "nothing signs images: over http, whoever is on the way can exchange them")
		}
	}
}

// serves checks the node that serves the mirror.
func (c *checker) serves(name string) {
	var names []string
	for _, n := range c.Nodes {
		if n.Role == mirror {
			names = append(names, n.Name)
		}
	}
	n, ok := c.Node(name)
	switch {
	case name == "" || ok && n.Role == mirror:
	case ok:
		c.wrong("mirror.node", "name a node with the role "+mirror, "%s is a %s", short(name), short(n.Role))
	case len(names) == 0:
		c.wrong("mirror.node", "add a node with the role "+mirror, "there is no node %q", short(name))
	default:
		c.unknown("mirror.node", "node", name, names)
	}
}

// planMirror is the mirror as nodes reach it: by address, since a site without a
// network may be without DNS.
func (t *Topology) planMirror() *plan.Mirror {
	if t.Mirror == nil {
		return nil
	}
	m := *t.Mirror
	if n, ok := t.Node(m.Node); ok {
		m.URL = "https://" + host(n.Address())
	}
	if m.Registry == "" && strings.HasPrefix(m.URL, "https:") {
		if u, err := url.Parse(m.URL); err == nil {
			m.Registry = u.Scheme + "://" + u.Host
		}
	}
	return &m
}

// host is an address in a URL (RFC 3986, 3.2.2).
func host(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}
