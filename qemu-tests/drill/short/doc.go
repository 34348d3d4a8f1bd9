// Package short is the drill of `make long`: three faults, once each, on the
// smallest cluster in virtual machines. `make drill` runs the whole set. It is all
// tests.
package short
