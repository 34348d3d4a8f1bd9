package operations

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/internal/fault"
)

// prepareSwitch completes a site switchover: the other site stops writing first, and
// this one has all of it before it begins.
func (p *promotion) prepareSwitch(now overview.Overview, op *Operation, announce, promote Step) error {
	op.Name, op.Title = "promote-site", fmt.Sprintf("switch the writes over from site %s to site %s, with nothing lost", p.other, p.Site)
	op.Again += " --planned"
	if p.Force != "" {
		return fault.New(fault.Usage, "a site switchover needs both sites; --force-site gives one up")
	}
	if missing := p.missing(now); len(missing) > 0 {
		return fault.New(fault.Failed, "a site switchover needs both sites well: %s", strings.Join(missing, "; ")).
			WithMend("if site %s is lost: slipway promote-site %s", p.other, p.Site)
	}
	op.Steps = []Step{
		demotion(p.cluster, now, p.other, p.Site),
		{What: fmt.Sprintf("see that %s has all that site %s has", p.lead, p.other), Do: p.compare},
		announce, promote,
	}
	return nil
}

// missing is what keeps the two sites from a switchover.
func (p *promotion) missing(now overview.Overview) (missing []string) {
	for _, site := range []string{p.other, p.Site} {
		d, err := databaseOf(now, site)
		switch {
		case err != nil:
			missing = append(missing, err.Error())
		case d.Leader() == "":
			missing = append(missing, "nobody leads site "+site)
		case d.Paused:
			missing = append(missing, "Patroni of site "+site+" is paused")
		case now.Word(d.Leader()) == nil:
			missing = append(missing, "the agent of "+d.Leader()+" does not answer")
		}
	}
	return missing
}

// demotion is the step that has a site follow another one.
func demotion(c *Cluster, now overview.Overview, site, to string) Step {
	d, _ := databaseOf(now, site)
	lead := d.Leader()
	return Step{
		What: fmt.Sprintf("stop the writes at site %s in good order, and have it follow site %s", site, to),
		Done: standsBy(now, site),
		Do: func(ctx context.Context, say func(string)) error {
			return c.Act(ctx, lead, database.DemoteSite.Name, database.DemoteSiteArgs{To: to}, nil, say)
		},
	}
}

// compare waits until the site that is to be promoted has all of the other's log.
func (p *promotion) compare(ctx context.Context, say func(string)) error {
	limited, cancel := context.WithTimeout(ctx, heardLimit)
	defer cancel()
	for {
		furthest, asked, err := p.furthest(limited)
		if err == nil {
			var at uint64
			if at, err = p.position(limited, p.lead); err == nil && at >= furthest {
				p.atLeast = lsnText(furthest)
				say(fmt.Sprintf("the log of site %s ends at %s (as %s say); %s has all of it", p.other, p.atLeast, strings.Join(asked, ", "), p.lead))
				return nil
			}
			if err == nil {
				err = fmt.Errorf("%s has the log up to %s, and that of site %s ends at %s", p.lead, lsnText(at), p.other, lsnText(furthest))
			}
		}
		if !pause(limited) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Failed, "site %s is not known to have all of site %s: %w", p.Site, p.other, err).
				WithMend("nobody takes writes now; run the same command again, or have site %s take them again: slipway promote-site %s", p.other, p.other)
		}
	}
}

// furthest is the end of the other site's log: the most that any of its nodes has.
func (p *promotion) furthest(ctx context.Context) (most uint64, asked []string, err error) {
	for _, n := range p.cluster.Plan.DatabaseNodes(p.other) {
		at, one := p.position(ctx, n.Name)
		if one != nil {
			err = one
			continue
		}
		most, asked = max(most, at), append(asked, n.Name)
	}
	// A quorum of a site's nodes has every commit; with fewer, one might be missing.
	if nodes := len(p.cluster.Plan.DatabaseNodes(p.other)); len(asked)*2 <= nodes {
		return 0, nil, cmp.Or(err, error(fmt.Errorf("no node of site %s tells how far its log goes", p.other)))
	}
	return most, asked, nil
}

func (p *promotion) position(ctx context.Context, node string) (uint64, error) {
	var result database.PositionResult
	if err := p.cluster.Ask(ctx, node, database.Position.Name, struct{}{}, &result); err != nil {
		return 0, err
	}
	var high, low uint32
	if _, err := fmt.Sscanf(result.At, "%X/%X", &high, &low); err != nil {
		return 0, fmt.Errorf("%s says that its log ends at %.40q", node, result.At)
	}
	return uint64(high)<<32 | uint64(low), nil
}

func lsnText(at uint64) string { return fmt.Sprintf("%X/%X", uint32(at>>32), uint32(at)) }

// pause waits a little before the next look; false if there is to be none.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(lookAgain):
		return true
	}
}

// announce makes the plan by which the site takes the writes, unless it is there, and
// hands it to everybody who answers. The others hear of it from those.
func (p *promotion) announce(ctx context.Context, say func(string)) error {
	c := p.cluster
	var next *plan.Plan
	if c.Plan.WritableSite() != p.Site {
		copied := *c.Plan
		copied.Sites = slices.Clone(copied.Sites)
		next = &copied
		if err := next.Promote(p.Site, c.Plan.Generation+1); err != nil {
			return err
		}
		if next.Apart++; p.Planned {
			next.Apart = 0
		}
	}
	signed, err := p.publish(next)
	if err != nil {
		return err
	}
	if next != nil {
		c.Plan = next
	}
	return handOut(ctx, c, signed, p.Site, say)
}

// handOut gives a plan to all nodes. At least one of the site has to take it.
func handOut(ctx context.Context, c *Cluster, signed plan.Signed, site string, say func(string)) error {
	var mu sync.Mutex
	var group sync.WaitGroup
	var failed error
	took := map[string]int{}
	for _, n := range c.Plan.Nodes {
		group.Go(func() {
			limited, cancel := context.WithTimeout(ctx, lookTime)
			defer cancel()
			err := c.Give(limited, n.Name, signed)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				say("has not got the plan: " + err.Error())
				if n.Site == site {
					failed = err
				}
				return
			}
			took[n.Site]++
		})
	}
	group.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if took[site] == 0 {
		return failed
	}
	return nil
}

// fenced waits until the other site has stopped PostgreSQL, or is a standby, by the
// word of its own nodes: as this site sees it, a link that is cut looks the same.
func (p *promotion) fenced(ctx context.Context, say func(string)) error {
	return p.until(ctx, fenceLimit, func(now overview.Overview) string {
		for _, name := range answeringAt(p.cluster.Plan, now, p.other) {
			if g := now.Word(name).Generation; g < p.cluster.Plan.Generation {
				return fmt.Sprintf("%s goes by the plan of generation %d yet", name, g)
			}
		}
		if writes(now, p.other) {
			return "site " + p.other + " takes writes yet"
		}
		if standsBy(now, p.other) {
			return ""
		}
		// A report that begins anew says nothing of the database.
		for _, name := range answeringAt(p.cluster.Plan, now, p.other) {
			var result database.ProbeSiteResult
			if err := p.cluster.Ask(ctx, name, database.ProbeSite.Name, database.ProbeSiteArgs{Site: p.other}, &result); err != nil {
				return err.Error()
			}
			if len(result.Databases) > 0 {
				return "PostgreSQL of " + strings.Join(result.Databases, ", ") + " runs yet"
			}
		}
		return ""
	})
}

// promote has the site's leader be the primary.
func (p *promotion) promote(ctx context.Context, say func(string)) error {
	c := p.cluster
	err := p.until(ctx, heardLimit, func(now overview.Overview) string {
		d, err := databaseOf(now, p.Site)
		if err != nil {
			return err.Error()
		}
		if p.lead = d.Leader(); p.lead == "" {
			return "nobody leads site " + p.Site
		}
		if w := now.Word(p.lead); w == nil || w.Generation < c.Plan.Generation {
			return p.lead + " does not go by the newest plan yet"
		}
		return ""
	})
	if err != nil {
		return err
	}
	return c.Act(ctx, p.lead, database.PromoteSite.Name, database.PromoteSiteArgs{Turn: c.Plan.Turn, AtLeast: p.atLeast}, nil, say)
}

// until looks until there is nothing to wait for.
func (p *promotion) until(ctx context.Context, limit time.Duration, waits func(overview.Overview) string) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		now, err := p.cluster.Look(limited)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		why := "nobody was asked"
		if err == nil {
			if why = waits(now); why == "" {
				return nil
			}
		}
		if !pause(limited) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Failed, "after %s, %s", limit, why).WithMend("see slipway status; then run the same command again")
		}
	}
}

// left is what is missing until the site takes the writes in good order, and whatever
// answers of the others follows it.
func (p *promotion) left(now overview.Overview) (missing []string) {
	c := p.cluster
	if c.Plan.WritableSite() != p.Site {
		return []string{"the plan has site " + c.Plan.WritableSite() + " take the writes"}
	}
	if !writes(now, p.Site) {
		return []string{"site " + p.Site + " takes no writes"}
	}
	for _, name := range behind(c.Plan, now) {
		missing = append(missing, name+" does not go by the newest plan yet")
	}
	d, err := databaseOf(now, p.Site)
	if err != nil {
		return append(missing, err.Error())
	}
	s, err := c.Plan.Site(p.Site)
	if err != nil {
		return append(missing, err.Error())
	}
	missing = append(missing, led(c.Plan, now, s, d.Leader(), databaseNodes(c.Plan, now, s))...)
	for _, site := range c.Plan.DatabaseSites() {
		if site == p.Site || len(answeringAt(c.Plan, now, site)) == 0 {
			continue
		}
		if writes(now, site) {
			missing = append(missing, "SITE "+site+" TAKES WRITES TOO")
		} else if p.Planned && !standsBy(now, site) {
			missing = append(missing, "site "+site+" does not follow yet")
		}
	}
	return missing
}

// DemoteSite has a site's database take no more writes and follow another one.
func DemoteSite(c *Cluster, publish Publish, site string) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		if err := twoSites(c.Plan, site); err != nil {
			return nil, err
		}
		op := &Operation{Name: "demote-site", Again: "slipway demote-site " + site, Patience: 10 * time.Minute}
		op.Check = func(now overview.Overview) (missing []string) {
			if !standsBy(now, site) {
				missing = append(missing, "site "+site+" is not seen to be a standby yet")
			}
			return missing
		}
		if to := c.Plan.WritableSite(); to != site {
			// By the plan it is a standby: its nodes only have to hear of that.
			op.Title = fmt.Sprintf("have site %s follow site %s", site, to)
			op.Steps = []Step{{
				What: "hand the newest plan to all nodes that answer",
				Done: len(behind(c.Plan, now)) == 0,
				Do: func(ctx context.Context, say func(string)) error {
					signed, err := publish(nil)
					if err != nil {
						return err
					}
					return handOut(ctx, c, signed, site, say)
				},
			}}
			return op, nil
		}
		others := slices.DeleteFunc(c.Plan.DatabaseSites(), func(s string) bool { return s == site || !standsBy(now, s) })
		if len(others) == 0 {
			return nil, fault.New(fault.Failed, "no other site is well that could take the writes").WithMend("see slipway status")
		}
		to := others[0]
		if d, err := databaseOf(now, site); err != nil || d.Leader() == "" {
			return nil, cmp.Or(err, error(fault.New(fault.Failed, "nobody leads site %s", site)))
		}
		op.Title = fmt.Sprintf("have site %s take no more writes and follow site %s", site, to)
		op.Steps = []Step{demotion(c, now, site, to)}
		op.Warnings = []string{fmt.Sprintf("no site takes writes afterwards, until: slipway promote-site %s --planned", to)}
		return op, nil
	}
}
