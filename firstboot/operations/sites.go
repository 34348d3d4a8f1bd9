package operations

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Publish signs a plan as the newest one and keeps it in the administrator's store;
// it sets the plan's generation. nil returns the newest one as it is.
type Publish func(p *plan.Plan) (plan.Signed, error)

// Promotion is how a site is promoted.
type Promotion struct {
	Site string
	// Planned is a site switchover: both sites answer, and nothing is lost.
	Planned bool
	// Force names the other site, which may be alive and is not asked.
	Force string
	// Ask says that somebody is there who could type that name.
	Ask bool
}

// lookAgain is the time between two looks at what is waited for.
const lookAgain = time.Second

// PromoteSite has a site's database take writes, instead of the other one's. It is
// refused while anything of a site answers that is not known to be a standby.
func PromoteSite(c *Cluster, publish Publish, o Promotion) Prepare {
	return func(ctx context.Context, now overview.Overview) (*Operation, error) {
		p := &promotion{Promotion: o, cluster: c, publish: publish, again: "slipway promote-site " + o.Site}
		return p.prepare(ctx, now)
	}
}

// promotion is one as it is prepared and done.
type promotion struct {
	Promotion
	cluster *Cluster
	publish Publish
	lead    string   // of the site; "" where that is not known yet
	other   string   // the site that takes writes, or did
	reached []string // nodes of a site that is given up which have answered here
	again   string
	atLeast string // how far the site's log has to go
}

func (p *promotion) prepare(ctx context.Context, now overview.Overview) (*Operation, error) {
	c := p.cluster
	if err := twoSites(c.Plan, p.Site); err != nil {
		return nil, err
	}
	p.other = p.rival(now)
	if err := p.led(now); err != nil {
		return nil, err
	}
	if p.Force != "" && p.Force != p.other {
		return nil, fault.New(fault.Usage, "the site that may be alive is %s, not %q; nothing was done", p.other, p.Force)
	}
	op := &Operation{Name: "promote-site", Title: fmt.Sprintf("have site %s take the writes, instead of site %s", p.Site, p.other), Again: p.again, Patience: 10 * time.Minute}
	planned := Step{
		What: fmt.Sprintf("name site %s as the writable one in the plan, and hand the plan to all nodes that answer", p.Site),
		Done: c.Plan.WritableSite() == p.Site && len(behind(c.Plan, now)) == 0,
		Do:   p.announce,
	}
	promoted := writes(now, p.Site)
	promote := Step{What: "promote site " + p.Site, Done: promoted, Do: p.promote}
	if p.lead != "" {
		promote.What = fmt.Sprintf("promote %s, and with it site %s", p.lead, p.Site)
	}
	op.Check = func(now overview.Overview) []string { return p.left(now) }
	switch {
	case promoted && c.Plan.WritableSite() == p.Site:
		op.Steps = []Step{planned, promote}
		return op, nil
	case p.Planned || p.Force == "" && p.quiet(now):
		p.Planned = true
		return op, p.prepareSwitch(now, op, planned, promote)
	}
	signs, err := p.signs(ctx, now)
	if err != nil {
		return nil, err
	}
	op.Steps = []Step{planned, promote}
	if len(signs) == 0 {
		op.Warnings = []string{fmt.Sprintf("nothing of site %s answers, here or at site %s. What it acknowledged and had not sent yet is missing afterwards; should it still be running where nobody sees it, keep it off: it gives way when it hears of the plan, and not before", p.other, p.Site)}
		return op, nil
	}
	if p.Force == "" && !p.Ask {
		return nil, fault.New(fault.Failed, "site %s is not known to be lost: %s", p.other, strings.Join(signs, "; ")).
			WithMend("to switch over with nothing lost: %s --planned; if site %s must be given up all the same: %s --force-site %s", p.again, p.other, p.again, p.other)
	}
	op.Word = p.other
	op.Warnings = append([]string{fmt.Sprintf("SITE %s IS ALIVE. What it has acknowledged, and site %s has not got, will be missing (kept aside at site %s). To lose nothing: %s --planned", p.other, p.Site, p.other, p.again)}, signs...)
	p.reached = answeringAt(c.Plan, now, p.other)
	if len(p.reached) == 0 {
		op.Warnings = append(op.Warnings, fmt.Sprintf("no agent of site %s answers here, so it cannot be fenced from here: BOTH SITES TAKE WRITES until its nodes hear of the plan from the others. Switch it off if you can", p.other))
		return op, nil
	}
	op.Steps = slices.Insert(op.Steps, 1, Step{What: fmt.Sprintf("wait until site %s has fenced itself", p.other), Do: p.fenced})
	for _, n := range c.Plan.DatabaseNodes(p.other) {
		if !slices.Contains(p.reached, n.Name) {
			op.Warnings = append(op.Warnings, fmt.Sprintf("the agent of %s does not answer here, so it cannot be fenced from here. If no other node of site %s reaches it, and it takes writes, IT GOES ON until it hears of the plan. Switch it off if you can", n.Name, p.other))
		}
	}
	return op, nil
}

// led finds out who leads the site. Nobody needs to yet where the other one has stopped
// its writes for this: there is no way but on then.
func (p *promotion) led(now overview.Overview) error {
	d, err := databaseOf(now, p.Site)
	if err == nil && d.Demoting != "" {
		return fault.New(fault.Failed, "site %s is being demoted", p.Site).
			WithMend("if nobody is at it any more: slipway demote-site %s; then: %s", p.Site, p.again)
	}
	p.lead = d.Leader()
	answers := slices.ContainsFunc(p.cluster.Plan.DatabaseNodes(p.Site), func(n plan.Node) bool { return now.Word(n.Name) != nil })
	if p.lead != "" || answers && p.Force == "" && p.quiet(now) {
		return nil
	}
	return cmp.Or(err, error(fault.New(fault.Failed, "nobody leads the database of site %s", p.Site).WithMend("see slipway status")))
}

// quiet reports whether the other site has stepped aside.
func (p *promotion) quiet(now overview.Overview) bool { return standsBy(now, p.other) || p.aside(now) }

// aside reports whether the other site takes no writes because the plan has this one
// take them: each of its database nodes that answers goes by that plan. They have
// stopped until this site writes, and tell nothing of a database.
func (p *promotion) aside(now overview.Overview) bool {
	c := p.cluster
	if c.Plan.Turn == 0 || c.Plan.WritableSite() != p.Site || writes(now, p.other) {
		return false
	}
	answers := false
	for _, n := range c.Plan.DatabaseNodes(p.other) {
		w := now.Word(n.Name)
		if w != nil && w.Generation < c.Plan.Turn {
			return false
		}
		answers = answers || w != nil
	}
	return answers
}

// twoSites makes sure that there is a site to promote, and another one.
func twoSites(p *plan.Plan, site string) error {
	if _, err := p.Site(site); err != nil {
		return err
	}
	names := p.DatabaseSites()
	if !slices.Contains(names, site) || len(names) < 2 {
		return fault.New(fault.Usage, "the sites with databases are %s; this takes two", strings.Join(names, ", "))
	}
	return nil
}

// rival is the site that takes writes beside this one, or was to.
func (p *promotion) rival(now overview.Overview) string {
	c := p.cluster
	others := slices.DeleteFunc(c.Plan.DatabaseSites(), func(s string) bool { return s == p.Site })
	for _, s := range others {
		if writes(now, s) {
			return s
		}
	}
	if w := c.Plan.WritableSite(); w != p.Site {
		return w
	}
	for _, s := range others {
		if d, err := databaseOf(now, s); err != nil || !d.Standby {
			return s // not known to be a standby
		}
	}
	return others[0]
}

// writes reports whether a site is seen to take writes.
func writes(now overview.Overview, site string) bool { return slices.Contains(now.Writable, site) }

// standsBy reports whether a site is known to be a standby.
func standsBy(now overview.Overview, site string) bool {
	d, err := databaseOf(now, site)
	return err == nil && d.Standby && d.Leader() != "" && !writes(now, site)
}

// answeringAt are the nodes of a site that answer here; "" are those of all sites.
func answeringAt(p *plan.Plan, now overview.Overview, site string) (names []string) {
	for _, n := range p.Nodes {
		if site == "" || n.Site == site {
			if now.Word(n.Name) != nil {
				names = append(names, n.Name)
			}
		}
	}
	return names
}

// behind are the nodes that answer and go by an older plan.
func behind(p *plan.Plan, now overview.Overview) (names []string) {
	for _, name := range answeringAt(p, now, "") {
		if now.Word(name).Generation < p.Generation {
			names = append(names, name)
		}
	}
	return names
}

// signs of life are whatever answers of sites that are not known to be standbys,
// here or at the site that is to be promoted.
func (p *promotion) signs(ctx context.Context, now overview.Overview) (signs []string, err error) {
	c := p.cluster
	witnesses := databaseNodes(c.Plan, now, plan.Site{Name: p.Site})
	for _, site := range c.Plan.DatabaseSites() {
		if site == p.Site || standsBy(now, site) {
			continue
		}
		for _, name := range answeringAt(c.Plan, now, site) {
			signs = append(signs, "the agent of "+name+" answers here")
		}
		for _, name := range witnesses {
			// It tries all agents of the site too: what its report says of them may be older
			// than the loss.
			var result database.ProbeSiteResult
			if err := c.Ask(ctx, name, database.ProbeSite.Name, database.ProbeSiteArgs{Site: site}, &result); err != nil {
				return nil, fmt.Errorf("%s cannot tell whether site %s is alive: %w", name, site, err)
			}
			for _, a := range result.Answers {
				signs = append(signs, fmt.Sprintf("%s answers %s", a, name))
			}
		}
	}
	return signs, nil
}
