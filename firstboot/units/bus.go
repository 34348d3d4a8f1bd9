package units

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// answerTime is how long systemd may take to answer. Under emulation and in the
// midst of a boot it takes seconds; a node where it takes longer is lost anyway.
const answerTime = 25 * time.Second

// Bus asks over D-Bus.
type Bus struct {
	dial     func(context.Context) (*dbus.Conn, error)
	fallback Manager

	mu   sync.Mutex
	conn *dbus.Conn // nil: not connected
	end  func()     // ends the connection's context
}

// NewBus asks the systemd of this machine, and the fallback where that one's
// socket does not answer.
func NewBus(fallback Manager) *Bus {
	return &Bus{dial: dbus.NewSystemdConnectionContext, fallback: fallback}
}

// Close ends the connection; the next question makes a new one.
func (b *Bus) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hangUp()
}

func (b *Bus) hangUp() {
	if b.conn != nil {
		b.conn.Close()
		b.end()
		b.conn = nil
	}
}

// call makes a connection. One ends with the context that it is made with, and
// must outlive the question that it is made for; yet a systemd that accepts and
// says nothing must not hold up the agent.
func (b *Bus) call(ctx context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	limit := time.AfterFunc(answerTime, end)
	defer limit.Stop()
	defer context.AfterFunc(ctx, end)()
	conn, err := b.dial(life)
	if err != nil {
		end()
		return err
	}
	b.conn, b.end = conn, end
	return nil
}

// Units implements Manager.
func (b *Bus) Units(ctx context.Context, names []string) ([]Unit, error) {
	var units []Unit
	err := b.ask(ctx, func(ctx context.Context, conn *dbus.Conn) (err error) {
		units, err = listed(ctx, conn, names)
		return err
	})
	if err != nil && ctx.Err() == nil {
		return b.fallback.Units(ctx, names)
	}
	return units, err
}

// Starting implements Manager.
func (b *Bus) Starting(ctx context.Context) bool {
	var state string
	err := b.ask(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		property, err := conn.SystemStateContext(ctx)
		if err == nil {
			state, _ = property.Value.Value().(string)
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		return b.fallback.Starting(ctx)
	}
	return !started(state)
}

// ask puts a question over the connection that is open. systemd closes it when
// it executes itself anew, which an old connection notices only when it is
// used: then the question is put once more over a new one.
func (b *Bus) ask(ctx context.Context, question func(context.Context, *dbus.Conn) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		if err := answer(ctx, b.conn, question); err == nil {
			return nil
		}
		b.hangUp()
	}
	if err := b.call(ctx); err != nil {
		return err
	}
	err := answer(ctx, b.conn, question)
	if err != nil {
		b.hangUp()
	}
	return err
}

func answer(ctx context.Context, conn *dbus.Conn, question func(context.Context, *dbus.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return question(ctx, conn)
}

// listed asks for all units at once, and for what went wrong with those alone
// that do not run.
func listed(ctx context.Context, conn *dbus.Conn, names []string) ([]Unit, error) {
	list, err := conn.ListUnitsByNamesContext(ctx, names)
	if err != nil {
		return nil, err
	}
	units := make([]Unit, len(list))
	for i, l := range list {
		u := Unit{Name: l.Name, Load: l.LoadState, Active: l.ActiveState, Sub: l.SubState, Queued: l.JobId != 0}
		if u.Load == "loaded" && u.Rest() {
			p, err := conn.GetAllPropertiesContext(ctx, u.Name)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", u.Name, err)
			}
			u.Result, _ = p["Result"].(string) // a target has none
			u.FileState, _ = p["UnitFileState"].(string)
			held, _ := p["ConditionResult"].(bool)
			looked, _ := p["ConditionTimestampMonotonic"].(uint64)
			// A condition that was never looked at does not hold either.
			u.Unmet = !held && looked != 0
		}
		units[i] = u
	}
	return units, nil
}
