package report

import (
	"bytes"
	"encoding/xml"
	"flag"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/drill/checker"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
)

var (
	record = flag.Bool("record", false, "write the golden file anew, and fail")
	show   = flag.String("show", "", "write the page to this file, to look at")
)

const s = time.Second

// drilled is a drill of two rounds, in the second of which something was lost.
func drilled() *drill.Result {
	r := &drill.Result{
		Format: 1, Cluster: "shop", Version: "0.4", Began: time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC), Seed: 42, ScheduleFormat: 1, Length: 260 * s,
		Rounds: []drill.Round{
			{Round: schedule.Round{Number: 1, Fault: "power-cut", Target: schedule.Primary, Hold: 30 * s}, Hit: []string{"a-db1"}, Primary: "a-db1",
				Injected: 40 * s, Healed: 70 * s, Served: 61 * s, Whole: 110 * s, Gap: checker.Gap{Start: 39800 * time.Millisecond, End: 61 * s}},
			{Round: schedule.Round{Number: 2, Fault: "partition", Target: schedule.Holder, Hold: 30 * s}, Hit: []string{"a-lb1"}, Primary: "a-db2",
				Injected: 160 * s, Healed: 200 * s, Served: 164 * s, Whole: 215 * s, Gap: checker.Gap{Start: 160 * s, End: 164 * s}},
		},
		Verdict: checker.Verdict{Counts: checker.Counts{Acknowledged: 4711, Failed: 93, Unknown: 12, Lost: 3}, Claims: []checker.Claim{
			{Name: "nothing-lost", What: "Every insert that was acknowledged is there, on the primary and on every replica.", Evidence: []string{"missing on [a-db1]: insert 7 <b>&"}, Found: 3},
			{Name: "one-writer", What: "At no time two servers accepted writes, and timelines never went back.", Held: true, Evidence: []string{}},
		}},
		Picture: drill.Picture{
			Nodes: []string{"a-db1", "a-db2", "a-db3", "a-lb1", "a-lb2"}, VIPs: []string{"database"},
			Writers: []drill.Stretch{{Node: "a-db1", From: 0, To: 39800 * time.Millisecond}, {Node: "a-db2", From: 61 * s, To: 160 * s}, {Node: "a-db2", From: 164 * s, To: 260 * s}},
			Holders: []drill.Stretch{{Node: "a-lb1", VIP: "database", From: 0, To: 160 * s}, {Node: "a-lb2", VIP: "database", From: 163 * s, To: 260 * s}},
		},
	}
	for i := range 261 {
		n := 18 + i*7%9
		if i > 39 && i < 61 || i > 160 && i < 164 {
			n = 0
		}
		r.Picture.Answers = append(r.Picture.Answers, n)
	}
	return r
}

func TestTheTableSaysWhatHappened(t *testing.T) {
	const golden = "testdata/table.txt"
	got := Text(drilled())
	if *record {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Fatal("recorded; look at it, and run without -record")
	}
	want, err := os.ReadFile(golden)
	if err != nil || got != string(want) {
		t.Errorf("%v; got:\n%s\nwant:\n%s", err, got, want)
	}
}

func TestThePageStandsAloneAndIsWellFormed(t *testing.T) {
	var page bytes.Buffer
	r := drilled()
	if err := HTML(&page, r); err != nil {
		t.Fatal(err)
	}
	if *show != "" {
		if err := os.WriteFile(*show, page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text := page.String()
	if found := regexp.MustCompile(`(?i)<script|<link|<img|<iframe|\bsrc=|\bhref=|url\(|@import|https?://|\bon[a-z]+=`).FindString(text); found != "" {
		t.Errorf("it needs something else, or a program: %q", found)
	}
	for _, want := range []string{`<html lang="en">`, "prefers-color-scheme: dark", "FAILED", "seed 42", "4711 operations", "insert 7 &lt;b&gt;&amp;", "and 2 more", "no write was acknowledged for 21.2 s"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not there", want)
		}
	}
	// Each picture has a title and a description, and lies within its view box.
	pictures := regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(text, -1)
	if len(pictures) != 3 {
		t.Errorf("%d pictures", len(pictures))
	}
	for _, p := range pictures {
		if !regexp.MustCompile(`role="img" aria-labelledby="(\S+)-title \S+-words">\s*<title id="\S+-title">[^<]+</title>\s*<desc id="\S+-words">[^<]+</desc>`).MatchString(p) {
			t.Errorf("no title, or no description: %.300s", p)
		}
		d := xml.NewDecoder(strings.NewReader(p))
		for {
			_, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%v in %s", err, p)
			}
		}
	}
	for _, p := range []Picture{draw(r, "x", "x", window{0, r.Length}), draw(r, "x", "x", window{30 * s, 100 * s}), draw(r, "x", "x", window{})} {
		for _, b := range p.Boxes {
			if b.X < labelWidth || b.X+b.W > pictureWidth+1 || b.Y < 0 || b.Y+b.H > p.Height || b.W < 0 || b.H < 0 {
				t.Errorf("out of the picture: %+v", b)
			}
		}
	}
}

func TestADrillWithoutRoundsIsShownToo(t *testing.T) {
	var page bytes.Buffer
	if err := HTML(&page, &drill.Result{Cluster: "shop"}); err != nil || Text(&drill.Result{}) == "" {
		t.Error(err)
	}
}

func TestTheMedianIsInTheMiddle(t *testing.T) {
	r := &drill.Result{}
	for _, gap := range []time.Duration{9 * s, 1 * s, 4 * s, 2 * s} {
		r.Rounds = append(r.Rounds, drill.Round{Round: schedule.Round{Fault: "crash"}, Gap: checker.Gap{End: gap}, Healed: s, Whole: gap + s})
	}
	got := Summarize(r)
	if len(got) != 1 || got[0] != (Summary{Fault: "crash", Rounds: 4, Shortest: s, Median: 3 * s, Longest: 9 * s, Rejoin: 9 * s}) {
		t.Errorf("%+v", got)
	}
}
