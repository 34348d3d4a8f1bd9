package apt

import (
	"fmt"
	"strings"

	"pault.ag/go/debian/version"
)

// Relation is one package named in a relationship field.
type Relation struct {
	Name    string
	Arch    string // qualifier after the colon: "any", "native", an architecture, or ""
	Op      string // <<, <=, =, >=, >> or "" for any version
	Version version.Version
	raw     string
}

// Clause is a list of alternatives, any of which satisfies it.
type Clause []Relation

// String writes the relation as it stands in a control file.
func (r Relation) String() string {
	name := r.Name
	if r.Arch != "" {
		name += ":" + r.Arch
	}
	if r.Op == "" {
		return name
	}
	return fmt.Sprintf("%s (%s %s)", name, r.Op, r.raw)
}

// String writes the clause as it stands in a control file.
func (c Clause) String() string {
	parts := make([]string, len(c))
	for i, r := range c {
		parts[i] = r.String()
	}
	return strings.Join(parts, " | ")
}

// Allows says whether a package or provision of this version meets the
// relation's version condition.
func (r Relation) Allows(v version.Version) bool {
	if r.Op == "" {
		return true
	}
	c := version.Compare(v, r.Version)
	switch r.Op {
	case "<<":
		return c < 0
	case "<=":
		return c <= 0
	case "=":
		return c == 0
	case ">=":
		return c >= 0
	default: // ">>"; ParseRelations lets no other pass
		return c > 0
	}
}

// ParseRelations parses a relationship field of a binary package, such as
// Depends (Debian Policy 7.1).
func ParseRelations(s string) ([]Clause, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	clauses := make([]Clause, 0, strings.Count(s, ",")+1)
	for part := range strings.SplitSeq(s, ",") {
		if strings.TrimSpace(part) == "" {
			continue // a trailing comma is common and harmless
		}
		clause := make(Clause, 0, 1)
		for alt := range strings.SplitSeq(part, "|") {
			r, err := parseRelation(strings.TrimSpace(alt))
			if err != nil {
				return nil, err
			}
			clause = append(clause, r)
		}
		clauses = append(clauses, clause)
	}
	return clauses, nil
}

func parseRelation(s string) (Relation, error) {
	name, condition, versioned := strings.Cut(s, "(")
	r := Relation{}
	r.Name, r.Arch, _ = strings.Cut(strings.TrimSpace(name), ":")
	if !ValidName(r.Name) {
		return r, fmt.Errorf("relation %q: bad package name", clip([]byte(s)))
	}
	if !versioned {
		return r, nil
	}
	condition, rest, closed := strings.Cut(condition, ")")
	if !closed || strings.TrimSpace(rest) != "" {
		return r, fmt.Errorf("relation %q: want NAME (OPERATOR VERSION)", clip([]byte(s)))
	}
	condition = strings.TrimSpace(condition)
	i := 0
	for i < len(condition) && strings.IndexByte("<>=", condition[i]) >= 0 {
		i++
	}
	r.Op, r.raw = condition[:i], strings.TrimSpace(condition[i:])
	switch r.Op {
	case "<<", "<=", "=", ">=", ">>":
	case "<": // obsolete spellings, of which Policy 7.1 says what they mean
		r.Op = "<="
	case ">":
		r.Op = ">="
	default:
		return r, fmt.Errorf("relation %q: operator %q is none of <<, <=, =, >=, >>", clip([]byte(s)), r.Op)
	}
	var err error
	if r.Version, err = version.Parse(r.raw); err != nil {
		return r, fmt.Errorf("relation %q: %w", clip([]byte(s)), err)
	}
	return r, nil
}

// ValidName says whether s can be the name of a package. It is loose: Policy 5.6.7 wants lower case, which
// virtual packages do not always keep to.
func ValidName(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || strings.IndexByte("+-._", c) < 0) {
			return false
		}
	}
	return true
}
