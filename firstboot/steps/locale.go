package steps

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/node"
)

// Locale sets the language of messages, as far as the image has it, and the
// console's keyboard.
type Locale struct{}

func (Locale) Name() string { return "locale" }

func (Locale) Apply(ctx context.Context, n *node.Node) error {
	c := &n.User.Config
	if want := c.Locale; want.Given && !want.Off() {
		if err := setLocale(ctx, n, want.Text); err != nil {
			return err
		}
	}
	k := c.Keyboard
	if k == nil {
		return nil
	}
	for name, value := range map[string]string{"layout": k.Layout, "model": k.Model, "variant": k.Variant, "options": k.Options} {
		if !keyboardWord.MatchString(value) {
			return fmt.Errorf("keyboard.%s may only hold letters, digits and any of _ - : ,", name)
		}
	}
	if k.Layout == "" {
		return fmt.Errorf("keyboard needs a layout, such as us")
	}
	model := k.Model
	if model == "" {
		model = "pc105"
	}
	content := fmt.Sprintf("XKBMODEL=%q\nXKBLAYOUT=%q\nXKBVARIANT=%q\nXKBOPTIONS=%q\nBACKSPACE=\"guess\"\n", model, k.Layout, k.Variant, k.Options)
	changed, err := n.Ensure("/etc/default/keyboard", 0o644, content)
	if err != nil || !changed {
		return err
	}
	if !n.Has("setupcon") {
		return fmt.Errorf("the image cannot set a keyboard layout: it lacks the package console-setup")
	}
	_, err = n.Command(ctx, "setupcon", "--save", "--keyboard-only")
	return err
}

var keyboardWord = regexp.MustCompile(`^[A-Za-z0-9_:,()-]*$`)

func setLocale(ctx context.Context, n *node.Node, want string) error {
	out, err := n.Command(ctx, "locale", "-a")
	if err != nil {
		return err
	}
	// locale -a writes C.utf8 for what everybody else calls C.UTF-8.
	norm := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "-", "")) }
	for _, have := range strings.Fields(out) {
		if norm(have) == norm(want) {
			_, err := n.Ensure("/etc/locale.conf", 0o644, "LANG="+want+"\n")
			return err
		}
	}
	return fmt.Errorf("the image has no locale %q; it has %s", want, strings.Join(strings.Fields(out), ", "))
}
