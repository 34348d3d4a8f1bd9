package checker

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
)

// linearizable looks for an order of each register's operations that explains all
// answers and in which no operation comes before one that had ended when it began.
// Registers are independent of each other, so each is judged alone (Herlihy and
// Wing, locality).
func linearizable(ops []history.Op, limit time.Duration) *Claim {
	c := claim("linearizable", "Reads and writes of registers through the virtual address are linearizable.")
	registers := map[string][]history.Op{}
	for _, o := range ops {
		// What failed has no effect, and so has a read that nobody heard the answer of.
		if o.Key == "" || o.Outcome == history.Failed || o.Kind == history.Read && o.Outcome == history.Unknown {
			continue
		}
		registers[o.Key] = append(registers[o.Key], o)
	}
	for _, key := range slices.Sorted(maps.Keys(registers)) {
		var in []porcupine.Operation
		for i, o := range registers[key] {
			end := int64(o.Completed)
			if o.Outcome == history.Unknown {
				end = math.MaxInt64 // it may still come
			}
			in = append(in, porcupine.Operation{ClientId: i, Input: o, Output: o, Call: int64(o.Invoked), Return: end})
		}
		switch result, info := porcupine.CheckOperationsVerbose(register, in, limit); result {
		case porcupine.Illegal:
			c.against("register %s: %s", key, stuck(registers[key], info))
		case porcupine.Unknown:
			c.against("register %s: whether its %d operations can be ordered could not be decided within %v", key, len(in), limit)
		}
	}
	return c
}

// register is the model: its state is the value, 0 to begin with.
var register = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, input, _ any) (bool, any) {
		now, o := state.(int64), input.(history.Op)
		unknown := o.Outcome == history.Unknown
		switch o.Kind {
		case history.Read:
			return now == o.Value, now
		case history.Write:
			return true, o.Value
		case history.Add:
			return unknown || now+o.Expect == o.Value, now + o.Expect
		case history.CAS:
			if now == o.Expect {
				return unknown || o.Applied, o.Value
			}
			return unknown || !o.Applied, now
		}
		return false, now
	},
	Equal:             func(a, b any) bool { return a == b },
	DescribeOperation: func(input, _ any) string { return input.(history.Op).String() },
	DescribeState:     func(state any) string { return fmt.Sprint(state) },
}

// evidenceBefore is how many of the operations that fit are shown before the one
// that does not.
const evidenceBefore = 4

// stuck tells how far an order was found: the end of the longest, and the
// operation that ended first of those which have no place in it.
func stuck(ops []history.Op, info porcupine.LinearizationInfo) string {
	var longest []porcupine.Operation
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	placed := map[int]bool{}
	var tail []string
	for i, p := range longest {
		placed[p.ClientId] = true
		if i >= len(longest)-evidenceBefore {
			tail = append(tail, p.Input.(history.Op).String())
		}
	}
	var left *history.Op
	for i, o := range ops {
		if !placed[i] && o.Outcome == history.Acknowledged && (left == nil || o.Completed < left.Completed) {
			left = &o
		}
	}
	if left == nil {
		return "its operations cannot be ordered"
	}
	if len(tail) == 0 {
		return "no order explains: " + left.String()
	}
	return fmt.Sprintf("no order explains: %s; after: %s", left, strings.Join(tail, "; "))
}
