package bench

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// LiveResult is what RunLive measured. Its JSON form is only ever added to.
type LiveResult struct {
	Size      int64             `json:"size"`
	Seconds   int               `json:"seconds"`
	Pairs     int               `json:"pairs"`
	Tools     map[string]string `json:"tools"` // versions
	Scenarios []LiveScenario    `json:"scenarios"`
}

// LiveScenario holds the runs of all exports under one load.
type LiveScenario struct {
	Name       string          `json:"name"`
	About      string          `json:"about"`
	Unit       string          `json:"unit"`           // of values
	Rate       int             `json:"rate,omitempty"` // requests a second, where they are paced
	Contenders []LiveContender `json:"contenders"`
	Goals      []GoalReached   `json:"goals"`
	Skipped    []Skipped       `json:"skipped,omitempty"`
}

// LiveContender is one export.
type LiveContender struct {
	Name   string       `json:"name"`
	Runs   []LiveSample `json:"runs"`
	Median float64      `json:"median"`
	Min    float64      `json:"min"`
	Max    float64      `json:"max"`
	P99    float64      `json:"p99_us"`      // median
	CPU    float64      `json:"cpu_seconds"` // median, all processes but the client
	Peak   int64        `json:"peak_bytes"`  // of the export
	Mirror int64        `json:"mirror_peak_bytes,omitempty"`
}

// LiveSample is one run.
type LiveSample struct {
	Value    float64  `json:"value"` // in the scenario's unit
	Measured Measured `json:"measured"`
	Server   Usage    `json:"server"` // from its start to its end
	Mirror   Usage    `json:"mirror"`
	Lag      *Lag     `json:"lag,omitempty"`
	Compared bool     `json:"compared"` // the mirror was read and found equal to the primary
}

// GoalReached is a ratio that we want to reach, and what it was.
type GoalReached struct {
	Of          string  `json:"of"`
	To          string  `json:"to"`
	Goal        float64 `json:"goal"`
	OfMedians   float64 `json:"of_medians"`
	MedianPairs float64 `json:"median_of_pairs"` // of the ratios within each round
	MinPairs    float64 `json:"min_of_pairs"`
	MaxPairs    float64 `json:"max_of_pairs"`
	Reached     bool    `json:"reached"`
}

func (s *LiveSample) brief(scenario *liveScenario) string {
	text := fmt.Sprintf("%.0f %s, p99 %.0f µs", s.Value, scenario.unit, s.Measured.P99Micros)
	if s.Lag != nil && scenario.load.writes() {
		text += fmt.Sprintf("; lag %.1f s, then %.1f s; drained in %.1f s", s.Lag.ThirdSeconds, s.Lag.LastSeconds, s.Lag.DrainSeconds)
	}
	return text
}

func (m *LiveScenario) summarise(s *liveScenario) {
	for i := range m.Contenders {
		m.Contenders[i].summarise()
	}
	for _, g := range s.goals {
		of, to := m.contender(g.of), m.contender(g.to)
		if of == nil || to == nil || of.Median == 0 || to.Median == 0 {
			continue
		}
		r := GoalReached{Of: of.Name, To: to.Name, Goal: g.least, OfMedians: of.Median / to.Median}
		var pairs []float64
		for i := range min(len(of.Runs), len(to.Runs)) {
			pairs = append(pairs, of.Runs[i].Value/to.Runs[i].Value)
		}
		r.MedianPairs, r.MinPairs, r.MaxPairs = median(pairs), slices.Min(pairs), slices.Max(pairs)
		r.Reached = r.OfMedians >= g.least
		if s.lowerIsBetter() {
			r.Reached = r.OfMedians <= g.least
		}
		m.Goals = append(m.Goals, r)
	}
}

// contender finds one by its name; of qemu-nbd the mode that is the best here.
func (m *LiveScenario) contender(name string) *LiveContender {
	var found *LiveContender
	for i := range m.Contenders {
		c := &m.Contenders[i]
		qemu := name == bestQEMU && strings.HasPrefix(c.Name, "qemu-nbd ")
		if c.Name == name || qemu && (found == nil || c.Median > found.Median) {
			found = c
		}
	}
	return found
}

func (c *LiveContender) summarise() {
	var values, p99, cpu []float64
	for _, r := range c.Runs {
		values = append(values, r.Value)
		p99 = append(p99, r.Measured.P99Micros)
		cpu = append(cpu, r.Server.CPUSeconds+r.Mirror.CPUSeconds)
		c.Peak, c.Mirror = max(c.Peak, r.Server.PeakBytes), max(c.Mirror, r.Mirror.PeakBytes)
	}
	if len(values) > 0 {
		c.Median, c.Min, c.Max, c.P99, c.CPU = median(values), slices.Min(values), slices.Max(values), median(p99), median(cpu)
	}
}

// Print writes the tables for people.
func (r LiveResult) Print(w io.Writer) {
	fmt.Fprintf(w, "volumes of %d MiB, runs of %d s, %d rounds\n", r.Size>>20, r.Seconds, r.Pairs)
	for _, tool := range slices.Sorted(maps.Keys(r.Tools)) {
		fmt.Fprintf(w, "%s: %s\n", tool, r.Tools[tool])
	}
	for _, s := range r.Scenarios {
		s.print(w)
	}
}

func (s LiveScenario) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s: %s\n", s.Name, s.About)
	if s.Rate > 0 {
		fmt.Fprintf(w, "  paced at %d requests a second\n", s.Rate)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "median %s\tmin\tmax\tp99 µs\tCPU s\tpeak MiB\tmirror MiB\t  export\n", s.Unit)
	for _, c := range s.Contenders {
		fmt.Fprintf(t, "%.0f\t%.0f\t%.0f\t%.0f\t%.1f\t%d\t%d\t  %s\n", c.Median, c.Min, c.Max, c.P99, c.CPU, c.Peak>>20, c.Mirror>>20, c.Name)
	}
	t.Flush()
	for _, g := range s.Goals {
		reached := "reached"
		if !g.Reached {
			reached = "NOT reached"
		}
		fmt.Fprintf(w, "  %s: %.2f × %s (by pairs: %.2f, from %.2f to %.2f; goal %.2f: %s)\n", g.Of, g.OfMedians, g.To, g.MedianPairs, g.MinPairs, g.MaxPairs, g.Goal, reached)
	}
	for _, c := range s.Contenders {
		c.printLag(w)
		if s.Name == memoryName {
			fmt.Fprintf(w, "    peak memory %d and %d MiB; goal %d MiB each\n", c.Peak>>20, c.Mirror>>20, memoryGoal>>20)
		}
	}
	for _, k := range s.Skipped {
		fmt.Fprintf(w, "  without %s: %s\n", k.Name, k.Why)
	}
}

// printLag tells the medians of what was measured of the mirror.
func (c LiveContender) printLag(w io.Writer) {
	var third, last, thirdBytes, lastBytes, written, shipped, share, drain []float64
	grows := 0
	for _, r := range c.Runs {
		if l := r.Lag; l != nil && l.WrittenBytes > 0 {
			third, last = append(third, l.ThirdSeconds), append(last, l.LastSeconds)
			thirdBytes, lastBytes = append(thirdBytes, l.ThirdBytes), append(lastBytes, l.LastBytes)
			written, shipped = append(written, float64(l.WrittenBytes)), append(shipped, float64(l.ShippedBytes))
			share, drain = append(share, l.ShippedShare), append(drain, l.DrainSeconds)
			if l.Grows {
				grows++
			}
		}
	}
	if len(third) == 0 {
		return
	}
	const mib = 1 << 20
	fmt.Fprintf(w, "  %s:\n    lag in the third quarter %.2f s (%.0f MiB), in the last one %.2f s (%.0f MiB); it grew in %d of %d runs; drained in %.1f s\n",
		c.Name, median(third), median(thirdBytes)/mib, median(last), median(lastBytes)/mib, grows, len(third), median(drain))
	fmt.Fprintf(w, "    written %.0f MiB, shipped %.0f MiB: %.2f of it\n", median(written)/mib, median(shipped)/mib, median(share))
}
