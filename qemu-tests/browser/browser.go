// Package browser is a person at a real Chromium without a screen (Chrome DevTools
// Protocol, through chromedp), who uses the pages of brokers and gateways.
//
// In: where the host that people type is reached, and the certificates that are shown
// there. Out: pages that were waited for, pictures of them, and what is in the pictures.
package browser

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/slipwayhq/slipway/firstboot/pki"
)

// How long one thing may take to happen, and how long something may be tried, on machines
// that may be emulated.
const (
	patience  = 3 * time.Minute
	soon      = patience / 6
	loginTime = 15 * time.Minute
)

// Browser is one browser of one person.
type Browser struct {
	testing.TB
	host string
	ctx  context.Context
	out  string
}

// Start starts a browser that ends with the test. It reaches host, with each port, where
// routes say ("443": "127.0.0.1:8443"), and believes there the given certificates (PEM),
// beside those that are well known. Pictures are kept in out, unless that is "".
func Start(t testing.TB, host string, routes map[string]string, out string, certificates ...string) *Browser {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("no chromium: apt-get install chromium")
	}
	var keys, rules []string
	for _, text := range certificates {
		cert, err := pki.ParseCertificate("shown to people", text)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
		keys = append(keys, base64.StdEncoding.EncodeToString(sum[:]))
	}
	for port, to := range routes {
		rules = append(rules, fmt.Sprintf("MAP %s:%s %s", host, port, to))
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.WindowSize(1280, 900),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("host-resolver-rules", strings.Join(rules, ",")),
		chromedp.Flag("ignore-certificate-errors-spki-list", strings.Join(keys, ",")),
		chromedp.Flag("force-color-profile", "srgb"),
	)
	allocated, stop := chromedp.NewExecAllocator(t.Context(), options...)
	ctx, cancel := chromedp.NewContext(allocated)
	t.Cleanup(func() { cancel(); stop() })
	b := &Browser{t, host, ctx, out}
	if err := chromedp.Run(ctx); err != nil { // what is run first gives the browser its lifetime
		t.Fatal(err)
	}
	return b
}

// In is the same browser, bound to a subtest.
func (b *Browser) In(t testing.TB) *Browser { return &Browser{t, b.host, b.ctx, b.out} }

// Does has the browser do something.
func (b *Browser) Does(what string, actions ...chromedp.Action) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		last, end := context.WithTimeout(b.ctx, 10*time.Second)
		defer end()
		var text, where string
		chromedp.Run(last, chromedp.Location(&where), chromedp.Text("body", &text, chromedp.ByQuery))
		b.Fatalf("%s: %v; the browser is at %s: %s", what, err, where, text)
	}
}

// tries has the browser do something that may not be possible right now.
func (b *Browser) tries(within time.Duration, actions ...chromedp.Action) error {
	ctx, cancel := context.WithTimeout(b.ctx, within)
	defer cancel()
	return chromedp.Run(ctx, actions...)
}

// Types has the person click into the middle of the desktop and type a line there.
func (b *Browser) Types(line string) error {
	return b.tries(soon, chromedp.WaitVisible(`body[data-state="connected"]`, chromedp.ByQuery),
		chromedp.Click("canvas", chromedp.ByQuery), chromedp.KeyEvent(line+kb.Enter))
}

// OpensAgain has a person who is logged in go to the list and open a desktop, as
// somebody does who is left with a page that does not help.
func (b *Browser) OpensAgain(desktop string) error {
	return b.tries(soon, chromedp.Navigate("https://"+b.host+"/desktops"), chromedp.Click(open(desktop), chromedp.ByQuery))
}

// open is the button that opens a desktop.
func open(desktop string) string { return fmt.Sprintf(`button[aria-label="Open %s"]`, desktop) }

// Keep takes a picture of the page, and keeps it.
func (b *Browser) Keep(name string) image.Image {
	b.Helper()
	var data []byte
	b.Does("take a picture", chromedp.CaptureScreenshot(&data))
	if b.out != "" {
		err := os.MkdirAll(b.out, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(b.out, name+".png"), data, 0o644)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	picture, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		b.Fatal(err)
	}
	return picture
}

// LogIn logs a person in at the brokers, and tries again where that fails for another
// reason than the password: it is hashed hundreds of thousands of times, for which an
// emulated broker may take longer than the balancer waits.
func (b *Browser) LogIn(name, password string) {
	b.Helper()
	const in, refused = `form[action="/logout"]`, `.problem`
	there := func(what string) (yes bool) {
		if err := b.tries(patience, chromedp.Evaluate("document.querySelector('"+what+"') !== null", &yes)); err != nil {
			return false
		}
		return yes
	}
	for deadline := time.Now().Add(loginTime); ; {
		err := b.tries(patience, chromedp.Navigate("https://"+b.host+"/"), chromedp.WaitVisible("#id_password,"+in, chromedp.ByQuery))
		if err == nil && !there(in) {
			b.Keep("login")
			err = b.tries(patience, chromedp.SendKeys("#id_username", name), chromedp.SendKeys("#id_password", password), chromedp.Submit("#id_password"),
				chromedp.WaitVisible(in+","+refused, chromedp.ByQuery))
		}
		switch {
		case err == nil && there(in):
			b.Keep("desktops")
			return
		case err == nil && there(refused):
			b.Keep("refused")
			b.Fatalf("%s cannot log in with that password", name)
		case time.Now().After(deadline):
			b.Keep("no-login")
			b.Fatalf("%s cannot log in: %v", name, err)
		}
		time.Sleep(time.Second)
	}
}

// Open opens a desktop from the list.
func (b *Browser) Open(desktop string) {
	b.Helper()
	b.Does("open "+desktop, chromedp.Click(open(desktop), chromedp.ByQuery))
}

// background is what the desktop's session paints (overlays/desktop).
var background = color.RGBA{0x2f, 0x6e, 0xa5, 0xff}

// SeesDesktop waits until the page shows a desktop and its pixels are there.
func (b *Browser) SeesDesktop(name string) {
	b.Helper()
	b.Does("be connected to the desktop", chromedp.WaitVisible(`body[data-state="connected"]`, chromedp.ByQuery))
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		seen := share(b.Keep(name), background)
		if seen > 0.15 {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%.0f %% of the picture have the colour of the desktop", 100*seen)
		}
	}
}

// share is how much of a picture has a colour, from 0 to 1.
func share(p image.Image, want color.RGBA) float64 {
	n, of := 0, 0
	for y := p.Bounds().Min.Y; y < p.Bounds().Max.Y; y += 4 {
		for x := p.Bounds().Min.X; x < p.Bounds().Max.X; x += 4 {
			r, g, b, _ := p.At(x, y).RGBA()
			near := func(a uint32, b uint8) bool { d := int(a>>8) - int(b); return d > -12 && d < 12 }
			if of++; near(r, want.R) && near(g, want.G) && near(b, want.B) {
				n++
			}
		}
	}
	return float64(n) / float64(max(of, 1))
}
