//go:build long

package mirror_test

// How often the tests of faults do their worst.
const (
	flips  = 1000
	rounds = 200
)
