package operations

import (
	"cmp"
	"context"
	"fmt"
	"maps"
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
		demotion(p.cluster, now, p.other, p.Site, p.quiet(now)),
		{What: fmt.Sprintf("see that site %s has all that site %s has", p.Site, p.other), Do: p.compare},
		announce, promote,
	}
	return nil
}

// missing is what keeps the two sites from a switchover.
func (p *promotion) missing(now overview.Overview) (missing []string) {
	for _, site := range []string{p.other, p.Site} {
		d, err := databaseOf(now, site)
		switch {
		case p.quiet(now) && (site == p.other || d.Leader() == ""):
			// The writes have stopped already, by an earlier run. It goes on as soon as it can.
		case err != nil:
			missing = append(missing, err.Error())
		case d.Demoting != "" && now.Word(d.Demoting) != nil:
			// Another run was interrupted; this one goes on.
		case d.Demoting != "":
			missing = append(missing, "the agent of "+d.Demoting+" does not answer, which was being demoted")
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

// demotion is the step that has a site follow another one. One that was interrupted is
// for the node that was at it.
func demotion(c *Cluster, now overview.Overview, site, to string, done bool) Step {
	d, _ := databaseOf(now, site)
	node := d.Leader()
	if node == "" && d != nil {
		node = d.Demoting
	}
	return Step{
		What: fmt.Sprintf("stop the writes at site %s in good order, and have it follow site %s", site, to),
		Done: done,
		Do: func(ctx context.Context, say func(string)) error {
			return c.Act(ctx, node, database.DemoteSite.Name, database.DemoteSiteArgs{To: to}, nil, say)
		},
	}
}

// compare waits until the site that is to be promoted has all of the other's log.
func (p *promotion) compare(ctx context.Context, say func(string)) error {
	limited, cancel := context.WithTimeout(ctx, roundLimit)
	defer cancel()
	var wrong error
	for {
		end, err := p.compared(limited)
		if err == nil {
			p.atLeast = lsnText(end)
			say(fmt.Sprintf("the log goes on to %s; site %s has all of it", p.atLeast, p.Site))
			return nil
		}
		if limited.Err() == nil && (wrong == nil || err.Error() != wrong.Error()) {
			wrong = err
			say("waiting: " + err.Error())
		}
		if !pause(limited) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Failed, "site %s is not known to have all of site %s: %w", p.Site, p.other, cmp.Or(wrong, err)).
				WithMend("nobody takes writes now; run the same command again, or have site %[1]s take them again: slipway promote-site %[1]s; to give up what site %[2]s lacks: slipway promote-site %[2]s --force-site %[1]s", p.other, p.Site)
		}
	}
}

// compared is the end of the log, which this site has, or why that is not known.
func (p *promotion) compared(ctx context.Context) (end uint64, err error) {
	own, mute := p.readings(ctx, p.Site)
	if len(own) == 0 {
		return 0, mute
	}
	others, silent := p.readings(ctx, p.other)
	end, err = p.end(own, others, silent)
	if err != nil {
		return 0, err
	}
	// Before anybody leads, it will be the one with the most.
	has := slices.MaxFunc(own, func(a, b reading) int { return cmp.Compare(a.at, b.at) })
	if p.lead != "" {
		i := slices.IndexFunc(own, func(r reading) bool { return r.node == p.lead })
		if i < 0 {
			return 0, mute
		}
		has = own[i]
	}
	if has.at < end {
		return 0, fmt.Errorf("%s has the log up to %s, and it goes on to %s", has.node, lsnText(has.at), lsnText(end))
	}
	return end, nil
}

// end is where the log ends which the site has to have: where the last primary stopped,
// as its site has noted, or else the most that any node of the other site has. These
// have to be all: a primary that was alone has commits that nobody else has.
func (p *promotion) end(own, others []reading, silent error) (most uint64, err error) {
	for _, r := range own {
		if r.stopped > 0 && r.turn == p.cluster.Plan.Turn {
			return r.stopped, nil // nobody else was promoted since
		}
	}
	noted := false
	for _, r := range others {
		if r.primary {
			return 0, fmt.Errorf("%s takes writes yet", r.node)
		}
		most = max(most, r.at, r.stopped)
		noted = noted || r.stopped > 0
	}
	if silent != nil && !noted {
		return 0, fmt.Errorf("where the log of site %s ends is known only when all of its nodes tell, as it is not noted where its primary stopped: %w", p.other, silent)
	}
	return most, nil
}

// reading is what a node tells of its log.
type reading struct {
	node        string
	at, stopped uint64 // stopped is 0 where that is not noted
	turn        int64
	primary     bool
}

// readings are those of the nodes of a site that tell, and why one does not.
func (p *promotion) readings(ctx context.Context, site string) (list []reading, silent error) {
	nodes := p.cluster.Plan.DatabaseNodes(site)
	all, errs := make([]reading, len(nodes)), make([]error, len(nodes))
	var group sync.WaitGroup
	for i, n := range nodes {
		group.Go(func() { all[i], errs[i] = p.reading(ctx, n.Name) })
	}
	group.Wait()
	for i, err := range errs {
		switch name := nodes[i].Name; {
		case err == nil:
			list = append(list, all[i])
		case fault.Of(err) == fault.Network: // names the node
			silent = err
		default:
			silent = fmt.Errorf("%s: %w", name, err)
		}
	}
	return list, silent
}

func (p *promotion) reading(ctx context.Context, node string) (r reading, err error) {
	var result database.PositionResult
	if err := p.cluster.Ask(ctx, node, database.Position.Name, struct{}{}, &result); err != nil {
		return r, err
	}
	r = reading{node: node, turn: result.Turn, primary: result.Primary}
	if r.at, err = parseLSN(result.At); err == nil && result.Stopped != "" {
		r.stopped, err = parseLSN(result.Stopped)
	}
	return r, err
}

// parseLSN reads a place in the log (PostgreSQL's pg_lsn).
func parseLSN(text string) (uint64, error) {
	var high, low uint32
	if _, err := fmt.Sscanf(text, "%X/%X", &high, &low); err != nil {
		return 0, fmt.Errorf("says that its log ends at %.40q", text)
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
	return handOut(ctx, c, signed, p.Site, p.reached, say)
}

// handOut gives a plan to all nodes: once to each, and again to those that did not take
// it, until one of the site has, and all of those that must. The others hear of it from
// these.
func handOut(ctx context.Context, c *Cluster, signed plan.Signed, site string, must []string, say func(string)) error {
	limited, cancel := context.WithTimeout(ctx, roundLimit)
	defer cancel()
	why := map[string]error{} // of those who have not taken it
	for _, n := range c.Plan.Nodes {
		why[n.Name] = nil
	}
	for {
		give(limited, c, signed, why, say)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		has := func(n plan.Node) bool { _, lacks := why[n.Name]; return !lacks }
		lacks := slices.DeleteFunc(slices.Clone(c.Plan.Nodes), func(n plan.Node) bool { return has(n) || !slices.Contains(must, n.Name) })
		at := slices.DeleteFunc(slices.Clone(c.Plan.Nodes), func(n plan.Node) bool { return n.Site != site })
		if !slices.ContainsFunc(at, has) {
			lacks = append(lacks, at...)
		}
		if len(lacks) == 0 {
			return nil
		}
		if !pause(limited) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Failed, "after %s, %s has not got the plan: %w", roundLimit, lacks[0].Name, why[lacks[0].Name]).
				WithMend("see slipway status; then run the same command again")
		}
	}
}

// give gives a plan once to each of those who have not taken it, and takes them off the
// list or puts down why not.
func give(ctx context.Context, c *Cluster, signed plan.Signed, why map[string]error, say func(string)) {
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, name := range slices.Sorted(maps.Keys(why)) {
		group.Go(func() {
			limited, cancel := context.WithTimeout(ctx, lookTime)
			defer cancel()
			err := c.Give(limited, name, signed)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				delete(why, name)
				return
			}
			if before := why[name]; before == nil || before.Error() != err.Error() {
				say("has not got the plan: " + err.Error())
			}
			why[name] = err
		})
	}
	group.Wait()
}

// fenced waits until the other site has stopped PostgreSQL, or is a standby, by the
// word of its own nodes: as this site sees it, a link that is cut looks the same. Of a
// node that has answered before, silence is no word.
func (p *promotion) fenced(ctx context.Context, say func(string)) error {
	return p.until(ctx, func(now overview.Overview) string {
		for _, name := range p.reached {
			w := now.Word(name)
			if w == nil {
				return name + " answers no more: whether PostgreSQL has stopped there is not known"
			}
			if w.Generation < p.cluster.Plan.Generation {
				return fmt.Sprintf("%s goes by the plan of generation %d yet", name, w.Generation)
			}
		}
		if writes(now, p.other) {
			return "site " + p.other + " takes writes yet"
		}
		if standsBy(now, p.other) {
			return ""
		}
		// A report that begins anew says nothing of the database.
		for _, name := range p.reached {
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
	err := p.until(ctx, func(now overview.Overview) string {
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
func (p *promotion) until(ctx context.Context, waits func(overview.Overview) string) error {
	limited, cancel := context.WithTimeout(ctx, roundLimit)
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
			return fault.New(fault.Failed, "after %s, %s", roundLimit, why).WithMend("see slipway status; then run the same command again")
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
					return handOut(ctx, c, signed, site, nil, say)
				},
			}}
			return op, nil
		}
		others := slices.DeleteFunc(c.Plan.DatabaseSites(), func(s string) bool { return s == site || !standsBy(now, s) })
		if len(others) == 0 {
			return nil, fault.New(fault.Failed, "no other site is well that could take the writes").WithMend("see slipway status")
		}
		to := others[0]
		if d, err := databaseOf(now, site); err != nil || d.Leader() == "" && d.Demoting == "" {
			return nil, cmp.Or(err, error(fault.New(fault.Failed, "nobody leads site %s", site)))
		}
		op.Title = fmt.Sprintf("have site %s take no more writes and follow site %s", site, to)
		op.Steps = []Step{demotion(c, now, site, to, standsBy(now, site))}
		op.Warnings = []string{fmt.Sprintf("no site takes writes afterwards, until: slipway promote-site %s --planned", to)}
		return op, nil
	}
}
