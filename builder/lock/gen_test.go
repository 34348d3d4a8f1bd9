package lock_test

import (
	"os"
	"testing"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/profile"
)

func TestGen(t *testing.T) {
	out := os.Getenv("GENLOCK")
	if out == "" {
		return
	}
	d, err := apt.LoadDistribution("../../profiles/distribution.yaml")
	if err != nil {
		t.Fatal(err)
	}
	src, _ := apt.MachineSources("/")
	loc, err := apt.Mirrors(d, nil, "", src)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.Open("/tmp/lt/cache")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := apt.Load(t.Context(), c, d, loc, apt.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	set, err := profile.Load("../../profiles")
	if err != nil {
		t.Fatal(err)
	}
	want := lock.Want{Sets: []lock.Set{
		{Name: set.Base.Role, File: set.Base.File(), Packages: set.Base.Packages},
		{Name: set.Tools.Role, File: set.Tools.File(), Extends: set.Base.Role, Packages: set.Tools.Packages},
	}}
	for _, p := range set.Roles {
		want.Sets = append(want.Sets, lock.Set{Name: p.Role, File: p.File(), Extends: set.Base.Role, Packages: p.Packages})
	}
	l, err := lock.Resolve(t.Context(), c, a, want, nil, nil, fetch.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.WriteFile(out); err != nil {
		t.Fatal(err)
	}
	r, err := lock.Read(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Check(want); err != nil {
		t.Fatal(err)
	}
	l2, err := lock.Resolve(t.Context(), c, a, want, r, nil, fetch.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(l2 == r, lock.Diff(nil, l))
	rep, err := lock.Drift(t.Context(), c, a, want, r, fetch.Options{})
	t.Log(rep, err, rep.None())
	if os.Getenv("GENFETCH") != "" {
		if err := fetch.Fetch(t.Context(), c, loc, r.Items(), fetch.Options{}); err != nil {
			t.Fatal(err)
		}
	}
}
