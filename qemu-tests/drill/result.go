package drill

import (
	"slices"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/drill/checker"
	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
)

// Format is the version of a result's layout; fields are only ever added.
const Format = 1

// Result is what came of a drill. Times count from Began.
type Result struct {
	Format  int       `json:"format"`
	Cluster string    `json:"cluster"`
	Version string    `json:"version"` // of slipway
	Began   time.Time `json:"began"`
	// Seed and ScheduleFormat give the same rounds again.
	Seed           uint64          `json:"seed"`
	ScheduleFormat int             `json:"schedule_format"`
	Length         time.Duration   `json:"length_ns"`
	Rounds         []Round         `json:"rounds"`
	Skipped        int             `json:"skipped"` // rounds that were not begun
	Verdict        checker.Verdict `json:"verdict"`
	// Outcome is "held" or "failed", for programs.
	Outcome string `json:"outcome"`
	// Problem is why the drill ended before its time; "" if it did not.
	Problem string  `json:"problem,omitempty"`
	Picture Picture `json:"picture"`
}

// Round is a round of the schedule and what came of it.
type Round struct {
	schedule.Round
	Hit      []string      `json:"hit"`         // nodes that the fault hit
	Primary  string        `json:"primary"`     // before the fault
	Injected time.Duration `json:"injected_ns"` // when the fault was begun
	Healed   time.Duration `json:"healed_ns"`   // when it was over
	Served   time.Duration `json:"served_ns"`   // when a write that was asked for after the fault had begun was acknowledged; 0: none was
	Whole    time.Duration `json:"whole_ns"`    // when all nodes were well again, without help; 0: they were not
	Gap      checker.Gap   `json:"gap"`         // the longest stretch without an acknowledged write around it
	// Problem is what did not go as it should; "" if all did.
	Problem string `json:"problem,omitempty"`
}

// Picture is what the timeline of a report shows.
type Picture struct {
	Nodes []string `json:"nodes"`
	VIPs  []string `json:"vips"`
	// Writers are stretches in which a node acknowledged writes.
	Writers []Stretch `json:"writers"`
	// Holders are stretches in which a node had a virtual address, by the frames it sent
	// or else by its own word.
	Holders []Stretch `json:"holders"`
	// Answers is how many writes were acknowledged in each second.
	Answers []int `json:"answers"`
}

// Stretch is a node and a time.
type Stretch struct {
	Node string        `json:"node"`
	VIP  string        `json:"vip,omitempty"`
	From time.Duration `json:"from_ns"`
	To   time.Duration `json:"to_ns"`
}

// Held says whether everything held: every claim, every round, to the end.
func (r Result) Held() bool {
	return r.Problem == "" && r.Verdict.Held() && !slices.ContainsFunc(r.Rounds, func(r Round) bool { return r.Problem != "" })
}

// apart is the pause after which a stretch counts as ended.
const apart = 5 * time.Second

// picture works out the timeline.
func picture(nodes, vips []string, ops []history.Op, a checker.Addresses, length time.Duration) Picture {
	p := Picture{Nodes: nodes, VIPs: vips, Writers: []Stretch{}, Holders: []Stretch{}, Answers: make([]int, int(length/time.Second)+1)}
	writes := slices.DeleteFunc(slices.Clone(ops), func(o history.Op) bool { return !o.Wrote() })
	slices.SortStableFunc(writes, func(a, b history.Op) int { return int(a.Completed - b.Completed) })
	for _, o := range writes {
		p.Writers = extend(p.Writers, Stretch{Node: o.Server, From: o.Completed, To: o.Completed}, apart)
		if second := int(o.Completed / time.Second); o.Direct == "" && second < len(p.Answers) {
			p.Answers[second]++
		}
	}
	for _, vip := range vips {
		if frames := a.Frames[vip]; len(frames) > 0 {
			for _, s := range frames {
				p.Holders = extend(p.Holders, Stretch{Node: s.Node, VIP: vip, From: s.At, To: s.At}, apart)
			}
			continue
		}
		for _, s := range a.Samples {
			for _, node := range s.Holders[vip] {
				p.Holders = extend(p.Holders, Stretch{Node: node, VIP: vip, From: s.At, To: s.At}, 2*apart)
			}
		}
	}
	return p
}

// extend adds a moment to the node's last stretch, or begins another.
func extend(all []Stretch, s Stretch, apart time.Duration) []Stretch {
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Node == s.Node && all[i].VIP == s.VIP {
			if s.From-all[i].To <= apart {
				all[i].To = max(all[i].To, s.To)
				return all
			}
			break
		}
	}
	return append(all, s)
}
