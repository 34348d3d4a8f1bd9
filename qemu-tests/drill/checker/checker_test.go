package checker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
)

// world is a database that behaves: what clients saw of it is a history in which
// everything holds, with a failover from a-db1 to a-db2 in the middle and
// operations of which nobody knows whether they were done.
func world(seed uint64) Input {
	random := rand.New(rand.NewPCG(seed, 0))
	registers := map[string]int64{}
	var ops []history.Op
	var there []int64
	now := time.Duration(0)
	for i := range 600 {
		now += time.Duration(random.Int64N(int64(50*time.Millisecond))) + 1
		server, timeline := "a-db1", 1
		if i >= 300 {
			server, timeline = "a-db2", 2
		}
		// An operation takes effect now and was under way around that.
		o := history.Op{
			Process: i % 7, Outcome: history.Acknowledged, Server: server, Timeline: timeline,
			Invoked: max(0, now-time.Duration(random.Int64N(int64(80*time.Millisecond)))), Completed: now + time.Duration(random.Int64N(int64(80*time.Millisecond))),
		}
		if i >= 300 {
			// The failover itself takes a while.
			o.Invoked, o.Completed = o.Invoked+20*time.Second, o.Completed+20*time.Second
		}
		done := true
		switch chance := random.IntN(100); {
		case chance < 4:
			o.Outcome, done = history.Unknown, random.IntN(2) == 0
		case chance < 8:
			o.Outcome, done = history.Failed, false
		}
		o.Value = int64(i + 1)
		switch key := fmt.Sprintf("r%d-%d", i/60, i%2); i % 6 {
		case 0, 1:
			o.Kind = history.Insert
			if done {
				there = append(there, o.Value)
			}
		case 2:
			o.Kind, o.Key = history.Write, key
			if done {
				registers[key] = o.Value
			}
		case 3:
			o.Kind, o.Key, o.Value = history.Read, key, registers[key]
		case 4:
			o.Kind, o.Key, o.Expect = history.CAS, key, registers[key]
			if random.IntN(3) == 0 {
				o.Expect = -1
			}
			if o.Applied = done && o.Expect == registers[key]; o.Applied {
				registers[key] = o.Value
			}
		case 5:
			o.Kind, o.Key, o.Expect = history.Add, key, 1000
			if done {
				registers[key] += 1000
			}
			o.Value = registers[key]
		}
		ops = append(ops, o)
	}
	in := Input{Ops: ops, Primary: "a-db2", Minimum: 100, Final: map[string][]int64{}}
	for _, node := range []string{"a-db1", "a-db2", "a-db3"} {
		in.Final[node] = slices.Clone(there)
	}
	return in
}

func TestACorrectHistoryIsFoundCorrect(t *testing.T) {
	for seed := range uint64(20) {
		v := Check(world(seed))
		for _, c := range v.Claims {
			if !c.Held {
				t.Errorf("seed %d: %s: %q", seed, c.Name, c.Evidence)
			}
		}
		if v.Counts.Unknown == 0 || v.Counts.Failed == 0 || v.Counts.Acknowledged < 400 {
			t.Errorf("seed %d: %+v: it is no test of unknown and failed operations", seed, v.Counts)
		}
	}
}

// find is the place of the first operation that is as wanted, from a place on.
func find(ops []history.Op, from int, want func(history.Op) bool) int {
	return from + slices.IndexFunc(ops[from:], want)
}

func acknowledged(kind history.Kind) func(history.Op) bool {
	return func(o history.Op) bool {
		return o.Kind == kind && o.Outcome == history.Acknowledged && (kind != history.CAS || o.Applied)
	}
}

func TestWhatIsPlantedIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		plant func(in *Input) (evidence string)
		fails []string
	}{
		"a lost write": {func(in *Input) string {
			lost := in.Ops[find(in.Ops, 100, acknowledged(history.Insert))]
			for node, values := range in.Final {
				in.Final[node] = slices.DeleteFunc(values, func(v int64) bool { return v == lost.Value })
			}
			return lost.String()
		}, []string{"nothing-lost"}},
		"a write that one replica has lost": {func(in *Input) string {
			lost := in.Ops[find(in.Ops, 100, acknowledged(history.Insert))]
			in.Final["a-db3"] = slices.DeleteFunc(in.Final["a-db3"], func(v int64) bool { return v == lost.Value })
			return "missing on [a-db3]: " + lost.String()
		}, []string{"nothing-lost", "same"}},
		"something that nobody wrote": {func(in *Input) string {
			for node := range in.Final {
				in.Final[node] = append(in.Final[node], 99999)
			}
			return "99999 is there, and nobody inserted it"
		}, []string{"nothing-else"}},
		"a failed write that came back": {func(in *Input) string {
			failed := in.Ops[find(in.Ops, 0, func(o history.Op) bool { return o.Kind == history.Insert && o.Outcome == history.Failed })]
			for node := range in.Final {
				in.Final[node] = append(in.Final[node], failed.Value)
			}
			return "although it had failed: " + failed.String()
		}, []string{"nothing-else"}},
		"a replica that has what the primary has not": {func(in *Input) string {
			unknown := history.Op{Kind: history.Insert, Value: 88888, Outcome: history.Unknown}
			in.Ops = append(in.Ops, unknown)
			in.Final["a-db1"] = append(in.Final["a-db1"], 88888)
			return "88888 is there on the primary, a-db2: false; on a-db1: true"
		}, []string{"same"}},
		"a second writer, whose write came through": {func(in *Input) string {
			o := in.Ops[len(in.Ops)-1]
			second := history.Op{Kind: history.Insert, Value: 77777, Direct: "a-db1", Server: "a-db1", Timeline: 1, Outcome: history.Acknowledged, Invoked: o.Completed + time.Second, Completed: o.Completed + 2*time.Second}
			in.Ops = append(in.Ops, second)
			for node := range in.Final {
				in.Final[node] = append(in.Final[node], 77777)
			}
			return second.String()
		}, []string{"one-writer"}},
		"two servers on one timeline": {func(in *Input) string {
			i := find(in.Ops, 400, acknowledged(history.Insert))
			in.Ops[i].Server = "a-db3"
			return in.Ops[i].String()
		}, []string{"one-writer"}},
		"an answer of nobody": {func(in *Input) string {
			i := find(in.Ops, 400, acknowledged(history.Insert))
			in.Ops[i].Server = ""
			return in.Ops[i].String()
		}, []string{"one-writer"}},
		"a stale read": {func(in *Input) string {
			// A read of the value before the last write, begun after that had ended.
			write := find(in.Ops, 100, acknowledged(history.Write))
			w := in.Ops[write]
			w.Key, w.Invoked, w.Completed = "stale", 0, time.Second
			newer := w
			newer.Value, newer.Invoked, newer.Completed = w.Value+1000, 2*time.Second, 3*time.Second
			stale := w
			stale.Kind, stale.Invoked, stale.Completed = history.Read, 4*time.Second, 5*time.Second
			in.Ops = append(in.Ops, w, newer, stale)
			return "no order explains: " + stale.String()
		}, []string{"linearizable"}},
		"an add that was forgotten": {func(in *Input) string {
			first := history.Op{Kind: history.Add, Key: "sum", Value: 5, Expect: 5, Outcome: history.Acknowledged, Server: "a-db1", Timeline: 1, Invoked: 0, Completed: time.Second}
			again := first
			again.Invoked, again.Completed = 2*time.Second, 3*time.Second
			in.Ops = append(in.Ops, first, again)
			return again.String()
		}, []string{"linearizable"}},
		"a comparison that applied on another value": {func(in *Input) string {
			write := history.Op{Kind: history.Write, Key: "cas", Value: 5, Outcome: history.Acknowledged, Server: "a-db1", Timeline: 1, Invoked: 0, Completed: time.Second}
			cas := write
			cas.Kind, cas.Expect, cas.Value, cas.Applied, cas.Invoked, cas.Completed = history.CAS, 4, 6, true, 2*time.Second, 3*time.Second
			in.Ops = append(in.Ops, write, cas)
			return cas.String()
		}, []string{"linearizable"}},
		"too few operations": {func(in *Input) string {
			in.Minimum = 10000
			return "10000 are the minimum"
		}, []string{"enough"}},
		"a primary that nobody could ask": {func(in *Input) string {
			delete(in.Final, in.Primary)
			return "what the primary holds is not known"
		}, []string{"nothing-lost"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := world(1)
			evidence := c.plant(&in)
			v := Check(in)
			var failed, said []string
			for _, c := range v.Claims {
				if !c.Held {
					failed, said = append(failed, c.Name), append(said, c.Evidence...)
				}
				if c.Held != (c.Found == 0) || c.Held != (len(c.Evidence) == 0) {
					t.Errorf("%s: held %t, %d found, %q", c.Name, c.Held, c.Found, c.Evidence)
				}
			}
			if !slices.Equal(failed, c.fails) || v.Held() {
				t.Errorf("failed %q, want %q: %q", failed, c.fails, said)
			}
			if lost := map[string]int{"a lost write": 1, "a write that one replica has lost": 1}[name]; v.Counts.Lost != lost {
				t.Errorf("%d lost, want %d", v.Counts.Lost, lost)
			}
			if !strings.Contains(strings.Join(said, "\n"), evidence) {
				t.Errorf("%q is not in the evidence:\n%s", evidence, strings.Join(said, "\n"))
			}
		})
	}
}

// What an operation of unknown outcome may do is anything, and at any later time;
// what nobody is known to have done is no excuse.
func TestUnknownOperationsExplainWhatTheyCan(t *testing.T) {
	write := history.Op{Kind: history.Write, Key: "x", Value: 5, Outcome: history.Unknown, Invoked: 0, Completed: time.Second}
	read := func(value int64, at time.Duration) history.Op {
		return history.Op{Kind: history.Read, Key: "x", Value: value, Outcome: history.Acknowledged, Invoked: at, Completed: at + time.Second, Server: "a-db1", Timeline: 1}
	}
	for name, c := range map[string]struct {
		ops  []history.Op
		held bool
	}{
		"done late":           {[]history.Op{write, read(0, 2*time.Second), read(5, 60*time.Second)}, true},
		"never done":          {[]history.Op{write, read(0, 2*time.Second), read(0, 60*time.Second)}, true},
		"done and undone":     {[]history.Op{write, read(5, 2*time.Second), read(0, 60*time.Second)}, false},
		"done before it was":  {[]history.Op{read(5, 0), func() history.Op { o := write; o.Invoked, o.Completed = 2*time.Second, 3*time.Second; return o }()}, false},
		"a failed one is not": {[]history.Op{func() history.Op { o := write; o.Outcome = history.Failed; return o }(), read(5, 2*time.Second)}, false},
	} {
		if got := linearizable(c.ops, registerTime); got.Held != c.held {
			t.Errorf("%s: held %t: %q", name, got.Held, got.Evidence)
		}
	}
}

func TestOnlyAHandfulOfEvidenceIsTold(t *testing.T) {
	in := world(1)
	for node := range in.Final {
		in.Final[node] = nil
	}
	c := Check(in).Claim("nothing-lost")
	if c.Held || len(c.Evidence) != mostEvidence || c.Found < 100 {
		t.Errorf("held %t, %d of %d told", c.Held, len(c.Evidence), c.Found)
	}
}

func seconds(s ...float64) (out []time.Duration) {
	for _, one := range s {
		out = append(out, time.Duration(one*float64(time.Second)))
	}
	return out
}

func TestTheGapIsBetweenTwoAnswersToWrites(t *testing.T) {
	var ops []history.Op
	for _, at := range seconds(1, 2, 3, 17.5, 18, 19, 21) {
		ops = append(ops, history.Op{Kind: history.Insert, Outcome: history.Acknowledged, Invoked: at - time.Millisecond, Completed: at})
	}
	// What does not count: reads, failures, and writes round the virtual address.
	ops = append(ops,
		history.Op{Kind: history.Read, Key: "x", Outcome: history.Acknowledged, Completed: 10 * time.Second},
		history.Op{Kind: history.Insert, Outcome: history.Unknown, Completed: 11 * time.Second},
		history.Op{Kind: history.Insert, Outcome: history.Acknowledged, Direct: "a-db2", Completed: 12 * time.Second},
		history.Op{Kind: history.CAS, Key: "x", Outcome: history.Acknowledged, Completed: 13 * time.Second})
	for _, c := range []struct {
		from, to float64
		want     Gap
	}{
		{4, 16, Gap{Start: 3 * time.Second, End: 17500 * time.Millisecond}},
		{2.5, 20, Gap{Start: 3 * time.Second, End: 17500 * time.Millisecond}},
		{18.2, 20, Gap{Start: 19 * time.Second, End: 21 * time.Second}},
		{22, 30, Gap{Start: 21 * time.Second, End: 30 * time.Second, Open: true}},
	} {
		if got := Longest(ops, seconds(c.from)[0], seconds(c.to)[0]); got != c.want {
			t.Errorf("from %v to %v: %+v, want %+v", c.from, c.to, got, c.want)
		}
	}
}
