package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/drill"
)

// Measures of a picture, in units of its view box.
const (
	pictureWidth = 1000.0
	labelWidth   = 130.0
	rightMargin  = 18.0 // half of the axis's last label
	laneHeight   = 20.0
	laneGap      = 6.0
	headHeight   = 22.0 // of a group's heading
	answersLane  = 56.0
	axisHeight   = 26.0
)

// Box is a rectangle with words for whoever points at it, or reads it aloud.
type Box struct {
	X, Y, W, H float64
	Class      string
	Words      string
	Label      string // written into it, where it fits
}

// Label is text at a place.
type Label struct {
	X, Y  float64
	Class string
	Text  string
}

// Picture is a timeline, laid out.
type Picture struct {
	ID            string
	Width, Height float64
	Title, Words  string
	Boxes         []Box
	Labels        []Label
	Ticks         []Label // their X is also that of a line over the whole height
	Top, Bottom   float64 // of these lines
}

// window is the stretch of time that a picture shows.
type window struct{ from, to time.Duration }

func (w window) x(t time.Duration) float64 {
	share := float64(min(max(t, w.from), w.to)-w.from) / float64(w.to-w.from)
	return labelWidth + share*(pictureWidth-labelWidth-rightMargin)
}

func (w window) shows(from, to time.Duration) bool { return to >= w.from && from <= w.to }

// clock is a moment since the beginning, as axis labels and words have it.
func clock(t time.Duration) string {
	s := int(t.Round(time.Second) / time.Second)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// draw lays out a stretch of a drill.
func draw(r *drill.Result, id, title string, w window) Picture {
	if w.to <= w.from {
		w.to = w.from + time.Second
	}
	p := Picture{ID: id, Width: pictureWidth, Title: title, Top: headHeight - 6}
	y := p.Top
	heading := func(text string) {
		p.Labels = append(p.Labels, Label{X: 0, Y: y + headHeight - 7, Class: "heading", Text: text})
		y += headHeight
	}
	lane := func(name string, boxes []Box) {
		p.Labels = append(p.Labels, Label{X: 8, Y: y + laneHeight - 6, Class: "lane", Text: name})
		p.Boxes = append(p.Boxes, Box{X: labelWidth, Y: y, W: pictureWidth - labelWidth - rightMargin, H: laneHeight, Class: "ground"})
		for _, b := range boxes {
			b.Y, b.H = y, laneHeight
			p.Boxes = append(p.Boxes, b)
		}
		y += laneHeight + laneGap
	}
	stretch := func(from, to time.Duration, class, words, label string) Box {
		// One that is short shows all the same.
		x := w.x(from)
		b := Box{X: x, W: math.Max(w.x(to)-x, 2), Class: class, Words: words}
		if float64(len(label))*6.6 < b.W {
			b.Label = label
		}
		return b
	}
	heading("Faults")
	var boxes []Box
	for _, round := range r.Rounds {
		if w.shows(round.Injected, round.Healed) {
			words := fmt.Sprintf("round %d: %s of %s, from %s to %s", round.Number, round.Fault, strings.Join(round.Hit, ", "), clock(round.Injected), clock(round.Healed))
			boxes = append(boxes, stretch(round.Injected, round.Healed, "fault", words, round.Fault))
		}
	}
	lane("", boxes)
	heading("Who acknowledged writes")
	for _, node := range writers(r) {
		lane(node, stretches(r.Picture.Writers, node, "", w, stretch, "writer", "acknowledged writes"))
	}
	for _, vip := range r.Picture.VIPs {
		if holders := holders(r, vip); len(holders) > 0 {
			heading("Who held the virtual address " + vip)
			for _, node := range holders {
				lane(node, stretches(r.Picture.Holders, node, vip, w, stretch, "holder", "held "+vip))
			}
		}
	}
	heading("Writes acknowledged through the virtual address, by second")
	p.answers(r.Picture.Answers, w, y)
	y += answersLane
	p.Bottom = y
	// Gaps lie over the ground of all lanes, and under what is in them.
	var ground, gaps, above []Box
	for _, b := range p.Boxes {
		if b.Class == "ground" {
			ground = append(ground, b)
		} else {
			above = append(above, b)
		}
	}
	alone := w.to-w.from < r.Length
	for _, round := range r.Rounds {
		if g := round.Gap; g.Length() > time.Second && w.shows(g.Start, g.End) {
			b := stretch(g.Start, g.End, "gap", fmt.Sprintf("round %d: no write was acknowledged for %s, from %s", round.Number, gapText(round), clock(g.Start)), "")
			b.Y, b.H = p.Top, p.Bottom-p.Top
			gaps = append(gaps, b)
			if text := "gap " + gapText(round); alone || float64(len(text))*6.6 < b.W {
				p.Labels = append(p.Labels, Label{X: b.X + b.W/2, Y: p.Top - 4, Class: "gaplabel", Text: text})
			}
		}
	}
	p.Boxes = slices.Concat(ground, gaps, above)
	p.axis(w)
	p.Height = p.Bottom + axisHeight
	p.Words = describe(r, w)
	return p
}

func stretches(all []drill.Stretch, node, vip string, w window, box func(from, to time.Duration, class, words, label string) Box, class, did string) (boxes []Box) {
	for _, s := range all {
		if s.Node == node && s.VIP == vip && w.shows(s.From, s.To) {
			boxes = append(boxes, box(s.From, s.To, class, fmt.Sprintf("%s %s, from %s to %s", node, did, clock(s.From), clock(s.To)), ""))
		}
	}
	return boxes
}

func writers(r *drill.Result) []string { return seen(r.Picture.Nodes, r.Picture.Writers, "") }
func holders(r *drill.Result, vip string) []string {
	return seen(r.Picture.Nodes, r.Picture.Holders, vip)
}

// seen are the nodes that have a stretch, in the cluster's order.
func seen(nodes []string, all []drill.Stretch, vip string) (names []string) {
	for _, node := range nodes {
		if slices.ContainsFunc(all, func(s drill.Stretch) bool { return s.Node == node && s.VIP == vip }) {
			names = append(names, node)
		}
	}
	return names
}

// mostBars is how many bars of answers a picture has room for.
const mostBars = 280

// answers draws how many writes were acknowledged in each second, or in the average
// second of each of the stretches that there is room for.
func (p *Picture) answers(answers []int, w window, y float64) {
	first, last := int(w.from/time.Second), min(int(w.to/time.Second), len(answers)-1)
	if last < first {
		return
	}
	per := (last-first)/mostBars + 1
	most := 1.0
	var bars []float64
	for at := first; at <= last; at += per {
		sum := 0
		for _, n := range answers[at:min(at+per, last+1)] {
			sum += n
		}
		bars = append(bars, float64(sum)/float64(min(per, last+1-at)))
		most = math.Max(most, bars[len(bars)-1])
	}
	for i, n := range bars {
		from := time.Duration(first+i*per) * time.Second
		x := w.x(from)
		h := n / most * (answersLane - 8)
		if width := w.x(from+time.Duration(per)*time.Second) - x; width > 0 && h > 0 {
			p.Boxes = append(p.Boxes, Box{X: x, Y: y + answersLane - h, W: math.Max(width-0.5, 0.5), H: h, Class: "answers", Words: fmt.Sprintf("%s: %.0f writes a second", clock(from), n)})
		}
	}
	p.Labels = append(p.Labels, Label{X: 8, Y: y + 18, Class: "lane", Text: fmt.Sprintf("up to %.0f/s", most)})
}

// axis puts ticks at round times.
func (p *Picture) axis(w window) {
	step := time.Hour
	for _, s := range []time.Duration{1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800} {
		if (w.to-w.from)/(s*time.Second) <= 11 {
			step = s * time.Second
			break
		}
	}
	for t := (w.from + step - 1) / step * step; t <= w.to; t += step {
		p.Ticks = append(p.Ticks, Label{X: w.x(t), Y: p.Bottom + 18, Text: clock(t)})
	}
}

// describe is the picture in words.
func describe(r *drill.Result, w window) string {
	var words []string
	for _, round := range r.Rounds {
		if w.shows(round.Injected, round.Healed) {
			words = append(words, fmt.Sprintf("At %s %s of %s; no write was acknowledged for %s.", clock(round.Injected), round.Fault, strings.Join(round.Hit, ", "), gapText(round)))
		}
	}
	for _, s := range r.Picture.Writers {
		if w.shows(s.From, s.To) {
			words = append(words, fmt.Sprintf("%s acknowledged writes from %s to %s.", s.Node, clock(s.From), clock(s.To)))
		}
	}
	return strings.Join(words, " ")
}
