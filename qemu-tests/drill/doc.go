// Package drill hurts a cluster while clients work on it, gets it back, and judges
// what they saw.
//
// In go a cluster (a Ground: what its nodes say, the frames on its switch), its
// clients (package load), the faults (package faults) and their schedule (package
// schedule); out come a Result, with the verdict of package checker, and a history
// on disk. Package report shows it. The method is that of Jepsen
// (https://jepsen.io): clients, a nemesis, a history, a checker.
package drill
