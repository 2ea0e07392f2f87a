package campaign

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Table sums up a campaign.
type Table struct{ rows []*row }

// row sums up a place.
type row struct {
	*place
	trials, found, corrected, harmless, wronglyGood, equal int
	broken                                                 int            // trials that did not come to their end
	ways                                                   map[string]int // how else it was told
	readOnly                                               map[string]int // classes
	costs                                                  []int64
	took                                                   time.Duration
}

func (r *row) add(t *result, err error) {
	if r.ways == nil {
		r.ways, r.readOnly = map[string]int{}, map[string]int{}
	}
	r.trials++
	count := func(n *int, is bool) {
		if is {
			*n++
		}
	}
	count(&r.found, t.found)
	count(&r.corrected, t.corrected)
	count(&r.harmless, t.harmless && !t.found)
	count(&r.wronglyGood, t.wronglyGood)
	count(&r.equal, t.equal && err == nil)
	count(&r.broken, err != nil)
	if t.readOnly != "" {
		r.readOnly[t.readOnly]++
	}
	if t.other != "" {
		r.ways[t.other]++
	}
	if t.found {
		r.costs = append(r.costs, t.cost)
	}
}

// missed tells whether anything went wrong there.
func (r *row) missed() bool {
	return r.found+r.harmless < r.trials || r.wronglyGood > 0 || r.equal < r.trials || r.broken > 0
}

// Missed tells whether a flip was not found, or what was found could not be put right.
func (t *Table) Missed() bool { return slices.ContainsFunc(t.rows, (*row).missed) }

func counts(m map[string]int) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, m[k]))
	}
	return strings.Join(parts, "; ")
}

func (r *row) cells() []string {
	slices.Sort(r.costs)
	median, most := int64(0), int64(0)
	if n := len(r.costs); n > 0 {
		median, most = r.costs[n/2], r.costs[n-1]
	}
	other := counts(r.ways)
	if r.broken > 0 {
		other = strings.TrimPrefix(other+fmt.Sprintf("; NOT ENDED %d", r.broken), "; ")
	}
	n := func(i int) string { return fmt.Sprint(i) }
	return []string{r.number, r.title, n(r.trials), n(r.found), n(r.harmless), n(r.corrected), counts(r.readOnly), other,
		n(r.wronglyGood), n(r.equal), fmt.Sprintf("%d / %d", median, most), fmt.Sprintf("%.0f", r.took.Seconds())}
}

// String is the row for the log.
func (r *row) String() string { return r.name + ": " + strings.Join(r.cells()[2:], " | ") }

var head = []string{"", "place", "trials", "found", "of no consequence", "corrected by itself", "read-only", "other outcome",
	"wrongly good", "equal after repair", "bytes shipped, median / max", "seconds"}

// String is the table as Markdown.
func (t *Table) String() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(head)
	line(slices.Repeat([]string{"---"}, len(head)))
	for _, r := range t.rows {
		line(r.cells())
	}
	return b.String()
}
