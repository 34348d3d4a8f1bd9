package native

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

// network is the lab's own switch, with nodes in it that are namespaces of this machine:
// what faults do to frames there, they do here, and whoever sends from a virtual address is seen.
type network struct {
	t      *testing.T
	sw     *ether.Switch
	cables map[string]*os.File // by the node's name
}

// outside is where clients are.
const outside = "outside"

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{t: t, sw: ether.New(ether.Options{}), cables: map[string]*os.File{}}
	t.Cleanup(n.sw.Close)
	if err := n.plug(outside, "/proc/thread-self/ns/net", outside); err != nil {
		t.Fatalf("the nodes' network cards are made by the kernel's module tun (as root: modprobe tun): %v", err)
	}
	for _, words := range []string{"link set lo up", "address add 10.77.0.1/16 dev " + outside, "link set " + outside + " up"} {
		if out, err := exec.Command("ip", strings.Fields(words)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", words, err, out)
		}
	}
	return n
}

// start makes a node with a cable to the switch.
func (n *network) start(m *member.Member) *roletest.Node {
	n.t.Helper()
	return roletest.StartOn(n.t, m, func(namespace string) error { return n.plug(m.Self.Name, namespace, "eth0") })
}

// plug makes a card in a network namespace, and plugs it into the switch under a name.
func (n *network) plug(name, namespace, card string) error {
	cable, err := tap(namespace, card)
	if err != nil {
		return err
	}
	port, err := n.sw.Join(name+"/0", ether.PortConfig{VLAN: 1}, func(frame []byte) {
		cable.Write(frame) // a card that is down takes none
	})
	if err != nil {
		cable.Close()
		return err
	}
	n.cables[name] = cable
	n.t.Cleanup(func() { n.remove(name) })
	go func() {
		defer port.Close()
		frame := make([]byte, ether.MaxFrame)
		for {
			size, err := cable.Read(frame)
			if err != nil {
				return
			}
			port.Send(frame[:size])
		}
	}()
	return nil
}

// remove takes a card away for good.
func (n *network) remove(name string) {
	if cable := n.cables[name]; cable != nil {
		delete(n.cables, name)
		cable.Close()
	}
}

// carrier tells a node's card that its cable is in, or out.
func (n *network) carrier(name string, in bool) error {
	raw, err := n.cables[name].SyscallConn()
	if err != nil {
		return err
	}
	value, failed := map[bool]int{true: 1}[in], error(nil)
	err = raw.Control(func(fd uintptr) { failed = unix.IoctlSetPointerInt(int(fd), unix.TUNSETCARRIER, value) })
	if err == nil {
		err = failed
	}
	return err
}

// others are all nodes but some.
func (n *network) others(names []string) (others []string) {
	for name := range n.cables {
		if name != outside && !slices.Contains(names, name) {
			others = append(others, name)
		}
	}
	return others
}

// sever keeps what some nodes send from others, and join ends that.
func (n *network) sever(from, to []string) { pairs(from, to, n.sw.Block) }
func (n *network) join(from, to []string)  { pairs(from, to, n.sw.Unblock) }

func pairs(from, to []string, do func(from, to string)) {
	for _, a := range from {
		for _, b := range to {
			do(a, b)
		}
	}
}

// tap makes a card in a network namespace; what it sends is read from the file, and what
// is written there it receives (Linux, Documentation/networking/tuntap.rst).
func tap(namespace, card string) (cable *os.File, err error) {
	err = inside(namespace, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
		}
		request, err := unix.NewIfreq(card)
		if err == nil {
			request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("card %s: %w", card, err)
		}
		cable = os.NewFile(uintptr(fd), card)
		return nil
	})
	return cable, err
}

// inside does something in a network namespace, as do all programs that it starts. What it
// hands to other goroutines is not done there.
func inside(namespace string, do func() error) error {
	runtime.LockOSThread()
	back, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer back.Close()
	there, err := os.Open(namespace)
	if err == nil {
		err = unix.Setns(int(there.Fd()), unix.CLONE_NEWNET)
		there.Close()
	}
	if err == nil {
		err = do()
	}
	// A thread that cannot go back stays locked, so that nobody else gets it.
	if failed := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); failed != nil {
		return errors.Join(err, failed)
	}
	runtime.UnlockOSThread()
	return err
}
