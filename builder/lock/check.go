package lock

import (
	"slices"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Check says whether the lock answers what is wanted. If not, it returns an
// error of class Input that names the first set and package it fails for.
func (l *Lock) Check(want Want) error {
	const mend = "run `slipway lock`: it keeps the versions that are locked and adds what is missing"
	if want.Distribution != "" && want.Distribution != l.Distribution {
		return fault.New(fault.Input, "%s is of the distribution %s, the project asks for %s", FileName, l.Distribution, want.Distribution).WithMend(mend)
	}
	for _, w := range want.Sets {
		have, ok := l.Set(w.Name)
		if !ok {
			return fault.New(fault.Input, "%s is stale: it has no packages for %s (%s)", FileName, w.Name, w.File).WithMend(mend)
		}
		if have.Extends != w.Extends {
			return fault.New(fault.Input, "%s is stale: %s stands on %q now", FileName, w.Name, w.Extends).WithMend(mend)
		}
		wanted := sortedSet(w.Packages)
		for _, name := range wanted {
			if !slices.Contains(have.Packages, name) {
				return fault.New(fault.Input, "%s is stale: %s asks for %s, which the lock does not have in %s", FileName, w.File, name, w.Name).WithMend(mend)
			}
		}
		for _, name := range have.Packages {
			if !slices.Contains(wanted, name) {
				return fault.New(fault.Input, "%s is stale: it has %s for %s, which %s no longer asks for", FileName, name, w.Name, w.File).WithMend(mend)
			}
		}
	}
	return l.checkImages(want.Images, mend)
}
