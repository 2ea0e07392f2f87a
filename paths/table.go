package paths

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Table is what was seen.
type Table struct{ results []*result }

// Failed tells whether anything was not as expected.
func (t *Table) Failed() bool {
	return slices.ContainsFunc(t.results, func(r *result) bool { return len(r.failures) > 0 })
}

// NotRun says why scenarios were left out.
func (t *Table) NotRun() (why []string) {
	for _, r := range t.results {
		if r.notRun != "" {
			why = append(why, r.name+": "+r.notRun)
		}
	}
	return why
}

var head = []string{"cause", "what was seen", "time to notice", "time to resume", "bytes re-shipped", "shipped, of at least", "as expected"}

// String is the table as Markdown.
func (t *Table) String() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(head)
	line(slices.Repeat([]string{"---"}, len(head)))
	for _, r := range t.results {
		line(r.cells())
	}
	return b.String()
}

// line is the row for the log.
func (r *result) line() string { return r.name + ": " + strings.Join(r.cells()[1:], " | ") }

func (r *result) cells() []string {
	if r.notRun != "" {
		return []string{r.cause, r.notRun, "", "", "", "", ""}
	}
	return []string{r.cause, r.seen(), seconds(r.notice), r.resumes(), kib(r.again()), kib(r.shipped) + " / " + kib(r.must), r.verdict()}
}

func (r *result) seen() string {
	classes := map[string]int{}
	for _, l := range r.losses {
		classes[l.class]++
	}
	saw := "no disconnect"
	if len(classes) > 0 {
		saw = "disconnects: " + counts(classes)
	}
	if len(r.vain) > 0 {
		saw += "; tries in vain: " + counts(r.vain)
	}
	return fmt.Sprintf("%s; longest lag %.1f s, longest round trip %.0f ms", saw, r.lag, r.rtt)
}

func counts(m map[string]int) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%d %s", m[k], k))
	}
	return strings.Join(parts, ", ")
}

func (r *result) resumes() string {
	text := seconds(r.resume)
	switch {
	case r.limit == 0 || r.resume == 0:
	case r.resume <= r.limit:
		text += fmt.Sprintf(" (limit %v: met)", r.limit)
	default:
		text += fmt.Sprintf(" (limit %v: MISSED)", r.limit)
	}
	return text
}

func (r *result) verdict() string {
	if len(r.failures) == 0 {
		return "yes"
	}
	return "NO: " + strings.ReplaceAll(strings.Join(r.failures, "; "), "\n", " ")
}

func seconds(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func kib(n int64) string { return fmt.Sprintf("%d KiB", n>>10) }
