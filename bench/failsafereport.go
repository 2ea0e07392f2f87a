package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// FailsafeResult is what RunFailsafe measured. Its JSON form is only ever added to.
type FailsafeResult struct {
	Size      int64              `json:"size"`
	Rounds    int                `json:"rounds"`
	Seconds   int                `json:"seconds"`
	Scenarios []FailsafeScenario `json:"scenarios"`
}

// FailsafeScenario holds what was measured in all rounds of one scenario.
type FailsafeScenario struct {
	Name    string         `json:"name"`
	About   string         `json:"about"`
	Rows    []*FailsafeRow `json:"rows"`
	Goals   []FailsafeGoal `json:"goals"`
	Skipped string         `json:"skipped,omitempty"` // why nothing was measured
}

// FailsafeRow is one value over the rounds.
type FailsafeRow struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
}

// FailsafeGoal is what the median of a row is to reach, at least or at most.
type FailsafeGoal struct {
	Of      string  `json:"of"`
	Goal    float64 `json:"goal"`
	Most    bool    `json:"at_most"`
	Median  float64 `json:"median"`
	Reached bool    `json:"reached"`
}

// row is the row of a name, made when first wanted.
func (m *FailsafeScenario) row(name, unit string) *FailsafeRow {
	i := slices.IndexFunc(m.Rows, func(r *FailsafeRow) bool { return r.Name == name })
	if i < 0 {
		i = len(m.Rows)
		m.Rows = append(m.Rows, &FailsafeRow{Name: name, Unit: unit})
	}
	return m.Rows[i]
}

func (r *FailsafeRow) add(value float64) { r.Values = append(r.Values, value) }

func (m *FailsafeScenario) atLeast(row string, goal float64) {
	m.Goals = append(m.Goals, FailsafeGoal{Of: row, Goal: goal})
}

func (m *FailsafeScenario) atMost(row string, goal float64) {
	m.Goals = append(m.Goals, FailsafeGoal{Of: row, Goal: goal, Most: true})
}

func (m *FailsafeScenario) summarise() {
	for _, r := range m.Rows {
		if len(r.Values) > 0 {
			r.Median, r.Min, r.Max = median(r.Values), slices.Min(r.Values), slices.Max(r.Values)
		}
	}
	for i := range m.Goals {
		g := &m.Goals[i]
		g.Median = m.row(g.Of, "").Median
		g.Reached = g.Median >= g.Goal
		if g.Most {
			g.Reached = g.Median <= g.Goal
		}
	}
}

// brief tells the last round.
func (m *FailsafeScenario) brief() string {
	var parts []string
	for _, r := range m.Rows {
		parts = append(parts, fmt.Sprintf("%s %s", r.Name, strings.TrimSpace(figure(r.Values[len(r.Values)-1])+" "+r.Unit)))
	}
	return strings.Join(parts, "; ")
}

// figure has as many digits as mean something.
func figure(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// Print writes the tables for people.
func (r FailsafeResult) Print(w io.Writer) {
	fmt.Fprintf(w, "a volume of %d MiB, %d rounds\n", r.Size>>20, r.Rounds)
	for _, s := range r.Scenarios {
		s.print(w)
	}
}

func (m FailsafeScenario) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s: %s\n", m.Name, m.About)
	if m.Skipped != "" {
		fmt.Fprintf(w, "  not measured: %s\n", m.Skipped)
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "median\tmin\tmax\tunit\t  of\n")
	for _, r := range m.Rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t  %s\n", figure(r.Median), figure(r.Min), figure(r.Max), r.Unit, r.Name)
	}
	t.Flush()
	for _, g := range m.Goals {
		reached, bound := "reached", "at least"
		if !g.Reached {
			reached = "NOT reached"
		}
		if g.Most {
			bound = "at most"
		}
		fmt.Fprintf(w, "  %s: %s; goal %s %s: %s\n", g.Of, figure(g.Median), bound, figure(g.Goal), reached)
	}
}
