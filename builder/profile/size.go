package profile

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes. Its text form is a number and a binary unit, such as
// "4GiB".
type Size int64

// Binary units (IEC 80000-13).
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

var units = []struct {
	name string
	size Size
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}

// ParseSize reads "30GiB" or "30 GiB". A number without a unit is refused, and so
// are decimal units: whether "4G" means 2^32 or 4·10^9 should not need guessing.
func ParseSize(text string) (Size, error) {
	number := strings.TrimRight(text, "TGMKiB ")
	unit := strings.TrimSpace(text[len(number):])
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || number == "" {
		return 0, fmt.Errorf("%q is not a size; write a whole number and a unit, such as 4GiB or 512MiB", text)
	}
	for _, u := range units {
		if u.name == unit {
			if n > math.MaxInt64/int64(u.size) {
				return 0, fmt.Errorf("%q is larger than any disk", text)
			}
			return Size(n) * u.size, nil
		}
	}
	return 0, fmt.Errorf("%q has no known unit; the units are B, KiB, MiB, GiB and TiB", text)
}

// String writes the size in the largest unit that divides it.
func (s Size) String() string {
	for _, u := range units {
		if s != 0 && s%u.size == 0 {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	return "0B"
}

// UnmarshalText reads the text form.
func (s *Size) UnmarshalText(text []byte) error {
	v, err := ParseSize(string(text))
	if err != nil {
		return err
	}
	*s = v
	return nil
}

// MarshalText writes the text form.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
