package node

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/internal/atomicfile"
)

// Where the two states stand. An image version has a root file system of its
// own, and what was written to it is gone in the next version; so what was
// applied to it is remembered in it. What must outlive versions (the numbers of
// users, which commands ran) stands in a state directory.
const (
	KeptPath  = "/var/lib/slipway/state.json"
	LocalPath = "/etc/slipway/applied.json"
)

// stateFormat is the layout's version.
const stateFormat = 1

// State remembers what was applied. It holds no secret, only salted hashes, and
// is readable by root alone nevertheless.
//
// A record is saved at once after its deed: a power cut between the two has
// the deed done again, which every step allows for.
type State struct {
	file string

	Format int    `json:"format"`
	Salt   string `json:"salt"`
	// Applied maps what was done to the hash of what was asked for.
	Applied map[string]Record `json:"applied"`
	// Users are the accounts that the agent made, or gave keys to.
	Users map[string]Account `json:"users,omitempty"`
	// Groups are the numbers of the groups that the agent made.
	Groups map[string]int `json:"groups,omitempty"`
}

// Record is one thing that was applied.
type Record struct {
	Hash   string    `json:"hash"`
	At     time.Time `json:"at"`
	Result string    `json:"result"` // ok, or what went wrong
}

// Account is what must stay the same for a user in every version.
type Account struct {
	UID  int      `json:"uid"`
	GID  int      `json:"gid"`
	Made bool     `json:"made"`           // the agent made it, so it may lock it
	Keys []string `json:"keys,omitempty"` // authorized keys that the agent put there
}

// OpenState reads a state of the node. One that is damaged is set aside and
// begun anew: everything is then applied once more.
func OpenState(n *Node, path string) (*State, error) {
	s := &State{file: n.Path(path), Applied: map[string]Record{}, Users: map[string]Account{}, Groups: map[string]int{}}
	data, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, s.begin()
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, s); err != nil || s.Format != stateFormat || s.Applied == nil || s.Users == nil || s.Groups == nil {
		if err := os.Rename(s.file, s.file+".damaged"); err != nil {
			return nil, err
		}
		*s = State{file: s.file, Applied: map[string]Record{}, Users: map[string]Account{}, Groups: map[string]int{}}
		return s, s.begin()
	}
	return s, nil
}

func (s *State) begin() error {
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return err
	}
	s.Format, s.Salt = stateFormat, hex.EncodeToString(salt)
	return nil
}

// Save writes the state.
func (s *State) Save() error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.file), 0o755); err != nil {
		return err
	}
	if err := atomicfile.WriteBytes(s.file, 0o600, append(data, '\n')); err != nil {
		return fmt.Errorf("keeping what was applied: %w", err)
	}
	return nil
}

// Hash is the salted hash of what is asked for.
func (s *State) Hash(input ...any) string {
	h := sha256.New()
	h.Write([]byte(s.Salt))
	if err := json.NewEncoder(h).Encode(input); err != nil {
		return "" // equals no stored hash, so the deed is done again
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Is reports whether what was applied under name is input.
func (s *State) Is(name string, input ...any) bool {
	r, ok := s.Applied[name]
	return ok && r.Hash == s.Hash(input...)
}

// Done remembers that input was applied under name, with err as its result. What was
// done is on all disks first: otherwise a power cut could leave the record of a command
// without what the command wrote, and it would never run again.
func (s *State) Done(name string, err error, input ...any) error {
	r := Record{Hash: s.Hash(input...), At: time.Now().UTC().Truncate(time.Second), Result: "ok"}
	if err != nil {
		r.Result = "failed"
	}
	s.Applied[name] = r
	unix.Sync()
	return s.Save()
}
