//go:build !long

package mirror_test

// How often the tests of faults do their worst; long_test.go has the numbers of the long run.
const (
	flips  = 40 // bits that are flipped, one at a time
	rounds = 2  // carry-overs in which every command is killed again and again
)
