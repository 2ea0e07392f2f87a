package bench

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/blkmirror/blkmirror/engine"
)

// Result is what Run measured. Its JSON form is only ever added to.
type Result struct {
	Size      int64             `json:"size"`
	Pairs     int               `json:"pairs"`
	Tools     map[string]string `json:"tools"` // versions
	Scenarios []Scenario        `json:"scenarios"`
	Notes     []string          `json:"notes,omitempty"`
}

// Scenario holds the runs of all tools in one scenario.
type Scenario struct {
	Name       string      `json:"name"`
	About      string      `json:"about"`
	Bytes      int64       `json:"bytes"` // of the image; of its data, where it is huge
	Contenders []Contender `json:"contenders"`
	Ratios     []Ratio     `json:"ratios"`
	Goal       float64     `json:"goal,omitempty"` // of the first ratio
	Skipped    []Skipped   `json:"skipped,omitempty"`
}

// Contender is one tool, used in one way.
type Contender struct {
	Name       string   `json:"name"`
	Runs       []Sample `json:"runs"`
	Median     float64  `json:"median_seconds"`
	Min        float64  `json:"min_seconds"`
	Max        float64  `json:"max_seconds"`
	CPUSeconds float64  `json:"cpu_seconds"` // median, all processes
	PeakClient int64    `json:"peak_client_bytes"`
	PeakServer int64    `json:"peak_server_bytes"` // 0: no server
}

// Sample is one run.
type Sample struct {
	Seconds  float64 `json:"seconds"`
	Client   Usage   `json:"client"`
	Server   Usage   `json:"server"`
	Compared bool    `json:"compared"` // the target was read and found equal to the source

	Report *engine.Report `json:"report,omitempty"` // of blkmirror
}

// Ratio is a speed: how many times as fast one contender is as another one, listed behind it.
type Ratio struct {
	Of          string  `json:"of"`
	To          string  `json:"to"`
	OfMedians   float64 `json:"of_medians"`
	MedianPairs float64 `json:"median_of_pairs"` // of the ratios within each round
	MinPairs    float64 `json:"min_of_pairs"`
	MaxPairs    float64 `json:"max_of_pairs"`
}

// Skipped tells who could not take part.
type Skipped struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

func (s *Scenario) summarise() {
	for i := range s.Contenders {
		s.Contenders[i].summarise()
	}
	for i := range s.Contenders {
		for j := i + 1; j < len(s.Contenders); j++ {
			s.Ratios = append(s.Ratios, ratio(s.Contenders[i], s.Contenders[j]))
		}
	}
}

func (c *Contender) summarise() {
	if len(c.Runs) == 0 {
		return
	}
	var seconds, cpu []float64
	for _, r := range c.Runs {
		seconds = append(seconds, r.Seconds)
		cpu = append(cpu, r.Client.CPUSeconds+r.Server.CPUSeconds)
		c.PeakClient = max(c.PeakClient, r.Client.PeakBytes)
		c.PeakServer = max(c.PeakServer, r.Server.PeakBytes)
	}
	c.Median, c.Min, c.Max, c.CPUSeconds = median(seconds), slices.Min(seconds), slices.Max(seconds), median(cpu)
}

func ratio(of, to Contender) Ratio {
	r := Ratio{Of: of.Name, To: to.Name}
	var pairs []float64
	for i := range min(len(of.Runs), len(to.Runs)) {
		if of.Runs[i].Seconds > 0 {
			pairs = append(pairs, to.Runs[i].Seconds/of.Runs[i].Seconds)
		}
	}
	if of.Median > 0 && len(pairs) > 0 {
		r.OfMedians, r.MedianPairs, r.MinPairs, r.MaxPairs = to.Median/of.Median, median(pairs), slices.Min(pairs), slices.Max(pairs)
	}
	return r
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// Print writes the tables for people.
func (r Result) Print(w io.Writer) {
	fmt.Fprintf(w, "%d MiB, %d rounds\n", r.Size>>20, r.Pairs)
	for _, tool := range slices.Sorted(maps.Keys(r.Tools)) {
		fmt.Fprintf(w, "%s: %s\n", tool, r.Tools[tool])
	}
	for _, s := range r.Scenarios {
		s.print(w)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "\nnote: %s\n", note)
	}
}

func (s Scenario) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s: %s\n", s.Name, s.About)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "median s\tmin s\tmax s\tMiB/s\tCPU s\tpeak MiB\tserver MiB\t  tool")
	for _, c := range s.Contenders {
		speed := 0.0
		if c.Median > 0 {
			speed = float64(s.Bytes>>20) / c.Median
		}
		fmt.Fprintf(t, "%.2f\t%.2f\t%.2f\t%.0f\t%.2f\t%d\t%d\t  %s\n", c.Median, c.Min, c.Max, speed, c.CPUSeconds,
			c.PeakClient>>20, c.PeakServer>>20, c.Name)
	}
	t.Flush()
	for _, r := range s.Ratios {
		fmt.Fprintf(w, "  %s is %.2f × as fast as %s (by pairs: %.2f, from %.2f to %.2f)\n", r.Of, r.OfMedians, r.To, r.MedianPairs, r.MinPairs, r.MaxPairs)
	}
	if s.Goal > 0 && len(s.Ratios) > 0 {
		reached := "reached"
		if s.Ratios[0].OfMedians < s.Goal {
			reached = "NOT reached"
		}
		fmt.Fprintf(w, "  goal %.2f: %s\n", s.Goal, reached)
	}
	for _, k := range s.Skipped {
		fmt.Fprintf(w, "  without %s: %s\n", k.Name, k.Why)
	}
}

func toolVersions(ctx context.Context) map[string]string {
	return map[string]string{
		"nbdcopy": toolVersion(ctx, "nbdcopy", "--version"),
		"nbdkit":  toolVersion(ctx, "nbdkit", "--version"),
		"rsync":   toolVersion(ctx, "rsync", "--version"),
	}
}
