package inspect

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Bytes writes a size for people: three significant figures and a binary unit.
func Bytes(n int64) string {
	if n < 0 {
		return "-" + Bytes(-n)
	}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 999.5 && unit < 4 {
		value /= 1024
		unit++
	}
	digits := 2
	if value >= 99.95 {
		digits = 0
	} else if value >= 9.995 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %ciB", digits, value, "KMGTP"[unit])
}

func signed(n int64) string {
	if n > 0 {
		return "+" + Bytes(n)
	}
	return Bytes(n)
}

// Text writes the image for people. packages adds the list of packages.
func (im *Image) Text(w io.Writer, packages bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "%s: %s, %s, a disk of %s\n", im.Path, im.Format, Bytes(im.FileSize), Bytes(im.DiskSize))
	for _, p := range im.Partitions {
		fmt.Fprintf(t, "partition %d\t%s\t%s\tat %s\n", p.Number, p.Name, Bytes(p.Size), Bytes(p.Start))
	}
	fmt.Fprintf(t, "starts\t%s\n", im.bootText())
	for _, v := range im.Versions {
		fmt.Fprintf(t, "\nversion %s: %s (%s)\n", v.Version, v.Role.Name, v.Role.Summary)
		fmt.Fprintf(t, "created\t%s\n", v.Created.UTC().Format("2006-01-02 15:04:05 MST"))
		fmt.Fprintf(t, "kernel\t%s\n", v.Kernel)
		fmt.Fprintf(t, "lock\t%s\n", v.Lock)
		fmt.Fprintf(t, "built by\tslipway %s\n", v.Builder)
		for _, l := range v.Layers {
			fmt.Fprintf(t, "layer %s\t%s\t%d packages\tsha256 %s%s\n", l.Name, Bytes(l.Size), v.packagesIn(l.Name), l.Digest, v.verifiedText())
		}
		fmt.Fprintf(t, "services\t%s\n", strings.Join(v.Role.Services, " "))
		fmt.Fprintf(t, "state\t%s\n", strings.Join(v.Role.State, " "))
		if !packages {
			continue
		}
		fmt.Fprintln(t)
		for _, p := range v.Packages {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Name, p.Version, p.Layer, Bytes(p.InstalledSize))
		}
	}
	return t.Flush()
}

func (im *Image) bootText() string {
	if im.Boot.Try != "" {
		return fmt.Sprintf("%s on trial, %d starts left; else %s", im.Boot.Try, im.Boot.Tries, im.Boot.Good)
	}
	return im.Boot.Good
}

func (v *Version) packagesIn(layer string) (n int) {
	for _, p := range v.Packages {
		if p.Layer == layer {
			n++
		}
	}
	return n
}

func (v *Version) verifiedText() string {
	if v.Verified {
		return " verified"
	}
	return ""
}

// Text writes the difference for people, one fact a line.
func (d *Difference) Text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for i, s := range []Side{d.A, d.B} {
		fmt.Fprintf(t, "%c  %s\t%s\t%s\n", "ab"[i], s.Path, strings.TrimSpace(s.Role+" "+s.Version), Bytes(s.Size))
	}
	if d.None() {
		fmt.Fprintln(t, "nothing differs")
	}
	for _, l := range d.Layers {
		if !l.Same {
			fmt.Fprintf(t, "layer %s\t%s\t-> %s\t%s\n", l.Name, Bytes(l.From), Bytes(l.To), signed(l.To-l.From))
		}
	}
	for _, p := range d.Packages {
		switch {
		case p.From == "":
			fmt.Fprintf(t, "+ %s\t\t%s\t%s\n", p.Name, p.To, signed(p.Delta))
		case p.To == "":
			fmt.Fprintf(t, "- %s\t%s\t\t%s\n", p.Name, p.From, signed(p.Delta))
		default:
			fmt.Fprintf(t, "~ %s\t%s\t-> %s\t%s\n", p.Name, p.From, p.To, signed(p.Delta))
		}
	}
	for _, f := range d.Files {
		mark := map[string]string{"added": "+", "removed": "-", "changed": "~"}[f.Change]
		fmt.Fprintf(t, "%s /%s\t%s\t%s\n", mark, f.Path, strings.Join(f.What, ", "), signed(f.To-f.From))
	}
	return t.Flush()
}
