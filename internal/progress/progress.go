// Package progress is how long work reports how far it is: one small interface
// that stages write to, with a bar for terminals and plain lines elsewhere.
package progress

// Reporter hands out tasks. It is safe for use by several goroutines.
type Reporter interface {
	// Start announces a task. total is its size in the given unit, 0 if not known.
	Start(name string, total int64, unit Unit) Task
}

// Unit is what a task counts.
type Unit int

const (
	Items Unit = iota
	Bytes
)

// Task is one piece of work under way. It is safe for use by several goroutines.
type Task interface {
	// Add says that n more units are done.
	Add(n int64)
	// Detail names what is being worked on, such as a package.
	Detail(what string)
	// Done ends the task; err is nil on success. Later calls do nothing.
	Done(err error)
}

// None reports nothing.
var None Reporter = none{}

type none struct{}

func (none) Start(string, int64, Unit) Task { return none{} }
func (none) Add(int64)                      {}
func (none) Detail(string)                  {}
func (none) Done(error)                     {}
