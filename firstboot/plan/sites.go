package plan

import "github.com/slipwayhq/slipway/internal/fault"

// Promote makes a site the one whose database takes writes. The site that did
// before, and those that replicated it, replicate this one then. Turn, the plan's
// generation to be, tells this decision from earlier ones.
//
// A plan only ever takes a site's right to write away: its nodes fence themselves
// when they hear of it. What makes a site take writes is asked of it besides (package
// role/database, action "promote-site"), so that no node does on its own.
func (p *Plan) Promote(site string, turn int64) error {
	to, err := p.Site(site)
	if err != nil {
		return err
	}
	if len(p.DatabaseNodes(site)) == 0 {
		return fault.New(fault.Input, "site %s has no database", site)
	}
	former := p.WritableSite()
	for i := range p.Sites {
		s := &p.Sites[i]
		switch {
		case s.Name == to.Name:
			s.StandbyOf = ""
		case len(p.DatabaseNodes(s.Name)) > 0 && (s.Name == former || s.StandbyOf == former || s.StandbyOf == ""):
			s.StandbyOf = to.Name
		}
	}
	p.Writable, p.Turn = to.Name, turn
	return nil
}

// WritableSite is the site whose database takes writes, by the plan; "" if no site
// has a database.
func (p *Plan) WritableSite() string {
	for _, s := range p.Sites {
		if s.StandbyOf == "" && len(p.DatabaseNodes(s.Name)) > 0 {
			return s.Name
		}
	}
	return ""
}

// DatabaseSites are the sites that have databases, by name.
func (p *Plan) DatabaseSites() []string {
	var names []string
	for _, s := range p.Sites {
		if len(p.DatabaseNodes(s.Name)) > 0 {
			names = append(names, s.Name)
		}
	}
	return names
}

// Keep takes over from the plan before what no topology says: which sites' etcd has
// formed, and which site takes writes, if that was decided against the topology and
// the site is still there.
func (p *Plan) Keep(last *Plan) error {
	if last == nil {
		return nil
	}
	for i, s := range p.Sites {
		if was, err := last.Site(s.Name); err == nil && was.Scope == s.Scope {
			p.Sites[i].Formed = was.Formed
		}
	}
	if last.Writable == "" || len(p.DatabaseNodes(last.Writable)) == 0 {
		return nil
	}
	p.Apart = last.Apart
	return p.Promote(last.Writable, last.Turn)
}
