package sandbox

import (
	"encoding/json"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// The builder and a session's first process talk over a socket that keeps
// message boundaries (SOCK_SEQPACKET): JSON, and open files beside it. The first
// request holds the Setup, all others a Spawn.

// setup is what the first process needs to make the root.
type setup struct {
	Stage string // an empty directory of the host, to mount on
	Root  string
	Lower []string
	Upper string
	Work  string
	Binds []Bind
	Date  int64
}

// spawn asks for a command. Three files come with it: stdin, stdout, stderr;
// with Terminal none, and the answer brings a pseudo-terminal's master.
type spawn struct {
	ID       int
	Args     []string
	Env      []string
	Dir      string
	Terminal bool
}

// answer is what the first process says: Ready after the setup, Started with a
// terminal, Exited at a command's end, or an error.
type answer struct {
	ID      int
	Ready   bool   `json:",omitempty"`
	Started bool   `json:",omitempty"`
	Exited  bool   `json:",omitempty"`
	Status  uint32 `json:",omitempty"`
	Error   string `json:",omitempty"`
	Mend    string `json:",omitempty"`
	Missing bool   `json:",omitempty"` // the error is the host's lack
}

// maxMessage bounds a message; the kernel's own limit is near it.
const maxMessage = 192 << 10

// send writes a message with open files.
func send(c *net.UnixConn, message any, files ...int) error {
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(text) > maxMessage {
		return fmt.Errorf("command of %d bytes is longer than %d", len(text), maxMessage)
	}
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	_, _, err = c.WriteMsgUnix(text, rights, nil)
	return err
}

// receive reads a message and the files that came with it.
func receive(c *net.UnixConn, message any) ([]int, error) {
	text, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*8))
	n, rn, _, _, err := c.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, os.ErrClosed
	}
	var files []int
	controls, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil {
		return nil, err
	}
	for _, control := range controls {
		fds, err := unix.ParseUnixRights(&control)
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
		}
		files = append(files, fds...)
	}
	return files, json.Unmarshal(text[:n], message)
}
