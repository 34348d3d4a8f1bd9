package rehearsal

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func written(count int) (rows []row) {
	for n := 1; n <= count; n++ {
		rows = append(rows, row{N: n, At: time.Unix(int64(n), 0), What: fmt.Sprintf("row %d", n)})
	}
	return rows
}

func TestWhatIsBackIsComparedRowByRow(t *testing.T) {
	const made = 50
	all := written(100)
	unknown := &row{N: 101, What: "row 101"}
	for _, c := range []struct {
		why     string
		back    []row
		unknown *row
		lost    int
		want    string
	}{
		{"all is back", all, nil, 0, ""},
		{"the end is lost", all[:90], nil, 10, ""},
		{"one that was not answered is there", append(slices.Clone(all), *unknown), unknown, 0, ""},
		{"one that nobody wrote is there", append(slices.Clone(all), *unknown), nil, 0, "row 101 of what is back"},
		{"one in the middle is lost", slices.Delete(slices.Clone(all), 70, 71), nil, 0, "row 71 of what is back is 72"},
		{"one was changed", slices.Replace(slices.Clone(all), 3, 4, row{N: 4, At: all[3].At, What: "another"}), nil, 0, "row 4 of what is back"},
		{"one has another time", slices.Replace(slices.Clone(all), 3, 4, row{N: 4, At: all[3].At.Add(1), What: all[3].What}), nil, 0, "row 4 of what is back"},
		{"only the backup is back", all[:made], nil, 50, "the archive was of no use"},
		{"less than the backup is back", all[:made-5], nil, 55, "5 rows that were acknowledged before the backup had ended are lost"},
		{"nothing is back", nil, nil, 100, "50 rows that were acknowledged before"},
	} {
		var r Result
		r.ledger(all, c.unknown, c.back, made)
		got := strings.Join(r.Problems, "; ")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) || r.Lost != c.lost {
			t.Errorf("%s: %q, %d lost", c.why, got, r.Lost)
		}
		if c.lost > 0 && r.Restored > 0 && r.LostSeconds != float64(c.lost) {
			t.Errorf("%s: the last %.1f s are lost", c.why, r.LostSeconds)
		}
	}
	var r Result
	if r.ledger(written(30), nil, written(30), 15); r.Held() {
		t.Error("15 rows are enough")
	}
}

func TestTablesAreCompared(t *testing.T) {
	before := []Table{{Name: "a", Rows: 2, Checksum: "x"}, {Name: "b", Rows: 0, Checksum: "y"}}
	for _, c := range []struct {
		now  []Table
		want string
	}{
		{before, ""},
		{before[:1], "the table b is not back"},
		{[]Table{{Name: "a", Rows: 2, Checksum: "z"}, before[1]}, "the table a is not what it was"},
		{append(slices.Clone(before), Table{Name: "c"}), "nobody has made the table c"},
	} {
		r := Result{Tables: slices.Clone(before)}
		r.sameTables(c.now)
		if got := strings.Join(r.Problems, "; "); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
		if text := r.Text(); strings.Contains(text, "DID NOT HOLD") != (c.want != "") || !strings.Contains(text, "a                         2 rows") {
			t.Errorf("the text is\n%s", text)
		}
	}
}
