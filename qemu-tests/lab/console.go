package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// SerialLog is everything that the first serial port has said, over all boots.
func (m *Machine) SerialLog() string {
	data, err := os.ReadFile(m.path(serialLog))
	if err != nil {
		return ""
	}
	return string(data)
}

// BootLog is what the serial port has said since the last power on, Reboot or Reset.
func (m *Machine) BootLog() string {
	m.mu.Lock()
	mark := m.mark
	m.mu.Unlock()
	all := m.SerialLog()
	return all[min(int(mark), len(all)):]
}

// WaitForConsole waits until a line of this boot's serial log matches.
func (m *Machine) WaitForConsole(ctx context.Context, pattern string) error {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return fault.New(fault.Usage, "console pattern: %w", err)
	}
	return m.poll(ctx, fmt.Sprintf("the serial console to show %q", pattern), func(context.Context) (bool, string) {
		return re.MatchString(plain(m.BootLog())), "it has not"
	})
}

func (m *Machine) logSize() int64 {
	st, err := os.Stat(m.path(serialLog))
	if err != nil {
		return 0
	}
	return st.Size()
}

func (m *Machine) setMark(at int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mark = at
}

// escape matches the control sequences of ECMA-48, 5.4 that boot loaders and systemd send.
var escape = regexp.MustCompile(`\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[ -/]*[0-~])`)

// plain is console text without control sequences and carriage returns.
func plain(text string) string {
	return strings.ReplaceAll(escape.ReplaceAllString(text, ""), "\r", "")
}

// tail is the end of the serial log, for error messages.
func (m *Machine) tail(lines int) string {
	all := strings.Split(strings.TrimSpace(plain(m.SerialLog())), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return "the serial console ends with:\n  " + strings.Join(all, "\n  ")
}

// Serial connects to the first serial port, as a person at a terminal would.
// One connection at a time gets an answer.
func (m *Machine) Serial() (net.Conn, error) {
	// The directory's path may be longer than a socket address may be.
	dir, err := os.Open(m.vm.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), serialSocket))
}

// Screenshot saves the screen as a PNG file.
func (m *Machine) Screenshot(ctx context.Context, path string) error {
	const dump = "screen.ppm" // what every version of QEMU can write
	if err := m.QMP(ctx, "screendump", map[string]any{"filename": dump}, nil); err != nil {
		return err
	}
	defer os.Remove(m.path(dump))
	f, err := os.Open(m.path(dump))
	if err != nil {
		return err
	}
	defer f.Close()
	picture, err := decodePPM(f)
	if err != nil {
		return fmt.Errorf("screenshot of %s: %w", m.vm.Name, err)
	}
	return atomicfile.Write(path, 0o644, func(out *os.File) error { return png.Encode(out, picture) })
}

// maxScreen bounds a screen's width and height.
const maxScreen = 4096

// decodePPM reads the binary form of PPM with 8 bits a colour (Netpbm, "PPM Format Specification").
func decodePPM(r io.Reader) (image.Image, error) {
	in := bufio.NewReader(r)
	var magic string
	var width, height, depth int
	if _, err := fmt.Fscan(in, &magic, &width, &height, &depth); err != nil {
		return nil, fmt.Errorf("PPM header: %w", err)
	}
	if magic != "P6" || depth != 255 || width < 1 || height < 1 || width > maxScreen || height > maxScreen {
		return nil, fmt.Errorf("PPM header %s %d %d %d is not a screen's", magic, width, height, depth)
	}
	if _, err := in.ReadByte(); err != nil { // one white space ends the header
		return nil, fmt.Errorf("PPM header: %w", err)
	}
	picture := image.NewRGBA(image.Rect(0, 0, width, height))
	row := make([]byte, 3*width)
	for y := range height {
		if _, err := io.ReadFull(in, row); err != nil {
			return nil, fmt.Errorf("PPM row %d of %d: %w", y, height, err)
		}
		for x := range width {
			picture.SetRGBA(x, y, color.RGBA{row[3*x], row[3*x+1], row[3*x+2], 255})
		}
	}
	return picture, nil
}

// SendKey presses keys together and lets them go; names are QEMU's qcodes, such
// as "ret", "ctrl", "alt", "f2".
func (m *Machine) SendKey(ctx context.Context, keys ...string) error {
	pressed := make([]map[string]string, len(keys))
	for i, k := range keys {
		pressed[i] = map[string]string{"type": "qcode", "data": k}
	}
	return m.QMP(ctx, "send-key", map[string]any{"keys": pressed}, nil)
}

// screenText reads the text of a virtual terminal through the guest agent, one
// line of the screen a line.
func (m *Machine) screenText(ctx context.Context, tty int) (string, error) {
	// vcsa starts with the numbers of rows and columns, one byte each (vcs(4)).
	raw, err := m.ReadFile(ctx, fmt.Sprintf("/dev/vcsa%d", tty))
	if err != nil {
		return "", err
	}
	return decodeScreen(raw)
}

// WaitForScreen waits until a virtual terminal shows a text, on one line or broken
// over several between words.
func (m *Machine) WaitForScreen(ctx context.Context, tty int, text string) error {
	oneLine := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	return m.poll(ctx, fmt.Sprintf("terminal %d to show %q", tty, text), func(ctx context.Context) (bool, string) {
		screen, err := m.screenText(ctx, tty)
		if err != nil {
			return false, firstLine(err.Error())
		}
		return strings.Contains(oneLine(screen), oneLine(text)), "it shows:\n" + screen
	})
}

func decodeScreen(raw []byte) (string, error) {
	if len(raw) < 4 || len(raw) < 4+2*int(raw[0])*int(raw[1]) || raw[1] == 0 {
		return "", fmt.Errorf("virtual terminal: %d bytes are not a screen", len(raw))
	}
	rows, columns := int(raw[0]), int(raw[1])
	var text bytes.Buffer
	for y := range rows {
		line := make([]byte, columns)
		for x := range columns {
			line[x] = raw[4+2*(y*columns+x)] // each character is followed by its attribute
		}
		text.Write(bytes.TrimRight(line, " \x00"))
		text.WriteByte('\n')
	}
	return strings.TrimRight(text.String(), "\n") + "\n", nil
}

// keepTime bounds the wait for the journal of a guest that may hang.
const keepTime = 20 * time.Second

// Keep saves what a person needs who was not there: the serial log and, as far
// as the machine still shows and answers, a screenshot and the journal of this
// boot. It returns the paths of what it saved.
func (m *Machine) Keep(ctx context.Context, dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	name := func(what string) string { return filepath.Join(dir, m.vm.Name+"-"+what) }
	kept := []string{name("serial.log")}
	if err := atomicfile.WriteBytes(kept[0], 0o644, []byte(m.SerialLog())); err != nil {
		return nil, err
	}
	if !m.Running() {
		return kept, nil
	}
	if err := m.Screenshot(ctx, name("screen.png")); err != nil {
		return kept, err
	}
	kept = append(kept, name("screen.png"))
	ctx, cancel := context.WithTimeout(ctx, keepTime)
	defer cancel()
	journal, err := m.Exec(ctx, "systemctl --failed --no-pager; journalctl --boot --no-pager --output=short-monotonic")
	if err != nil {
		return kept, nil // a guest that does not answer is what the screenshot shows
	}
	kept = append(kept, name("journal.txt"))
	return kept, atomicfile.WriteBytes(kept[2], 0o644, []byte(journal.Stdout))
}
