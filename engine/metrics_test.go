package engine

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"

	"github.com/blkmirror/blkmirror/wire"
	"github.com/blkmirror/blkmirror/wire/identity"
)

var update = flag.Bool("update", false, "write the golden files anew")

// exposition is what a scrape shows of an observation.
func exposition(t *testing.T, o observation) []byte {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector(func() observation { return o }))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			t.Fatal(err)
		}
	}
	return text.Bytes()
}

var scraped = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// observed has something of everything.
func observed() observation {
	in := func(days float64) time.Time { return scraped.Add(time.Duration(days * 24 * float64(time.Hour))) }
	east := MirrorStatus{Name: "east", State: "connected", LagSeconds: 0.25, LagBytes: 4096, NeedsBytes: 8192, StagedBytes: 1 << 20,
		RTTMillis: 12.5, ShippedBytes: 3 << 30, WireBytes: 2 << 30, CapturedBytes: 65536, Reconnects: 2, GivenUp: 1, Holes: 3,
		Mismatches: MismatchCounts{Wire: 1, Source: 2, Mirror: 3}, Probe: &ProbeStatus{OK: true, At: in(-1).Format(time.RFC3339)},
		Flow: &FlowStatus{Limit: 20 << 20, Window: 32 << 20, Outstanding: 1 << 20, Threshold: 150, Slowed: true}}
	west := MirrorStatus{Name: "[::1]:7418\xff", State: "read-only", RoomMissing: 5, ReadOnly: &ReadOnlyCause{Quarantined: 2000, Blocks: []int64{5}}}
	return observation{
		at: scraped,
		Status: Status{Node: NodeStatus{Version: "v1.2.3", Warnings: []string{"a key ends"}}, Volumes: []VolumeStatus{
			{Name: "db", Role: "primary", State: "ok", Size: 1 << 40, MaxLag: 60, Mirrors: []MirrorStatus{east, west}, RotBlocks: 2, Rot: []int64{7, 9},
				DeviceErrors: 4, ReadBytes: 5, WrittenBytes: 6, Mismatches: &MismatchCounts{Source: 9}},
			{Name: "copy", Role: "mirror", State: "comparing", Unproven: true, Size: 4096, Primary: &MirrorStatus{State: "connecting", Holes: 4097,
				NeedsBytes: 4096, Mismatches: MismatchCounts{Mirror: 1}}},
			{Name: "disk", Role: "idle", State: "missing"},
			(&volume{name: "hangs"}).silent(),
		}},
		disconnects: map[seat]classCounts{{"db", "east"}: {0: 7}, {"db", "gone"}: {12: 1}, {}: {6: 2}},
		ends: []identity.End{{Kind: identity.KindKey}, {Kind: identity.KindCertificate, At: in(30)}, {Kind: identity.KindCA, At: in(-0.5)},
			{Kind: identity.KindPeer, Name: "east", At: in(12)}, {Kind: identity.KindPeer, Name: "west"}},
	}
}

func TestMetricsGolden(t *testing.T) {
	const golden = "testdata/metrics.txt"
	got := exposition(t, observed())
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
	for _, m := range metrics {
		if !bytes.Contains(got, []byte("\n# TYPE "+m.name+" ")) {
			t.Errorf("%s is nowhere in this observation", m.name)
		}
	}
}

// TestMetricsLint: names and units are as they are wont to be, save for the one that the design has in days.
func TestMetricsLint(t *testing.T) {
	problems, err := promlint.New(bytes.NewReader(exposition(t, observed()))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if p.Metric != "blkmirror_key_expiry_days" {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// TestMetricsBeginAtZero: an alert on a rise needs the value before it.
func TestMetricsBeginAtZero(t *testing.T) {
	text := string(exposition(t, observation{at: scraped, Status: Status{Volumes: []VolumeStatus{
		{Name: "db", Role: "primary", State: "ok", Mirrors: []MirrorStatus{{Name: "east", State: "connecting"}}},
		{Name: "copy", Role: "mirror", State: "ok"},
	}}}))
	want := func(series string) {
		if !strings.Contains(text, "\n"+series+" 0\n") {
			t.Errorf("there is no %s 0", series)
		}
	}
	for _, class := range wire.Classes {
		for _, at := range []seat{{}, {"db", ""}, {"db", "east"}, {"copy", ""}} {
			want(fmt.Sprintf("blkmirror_disconnects_total{class=%q,mirror=%q,volume=%q}", class, at.mirror, at.volume))
		}
	}
	for _, cause := range []string{"wire", "source", "mirror"} {
		for _, at := range []seat{{"db", ""}, {"db", "east"}, {"copy", ""}} {
			want(fmt.Sprintf("blkmirror_mismatches_total{cause=%q,mirror=%q,volume=%q}", cause, at.mirror, at.volume))
		}
	}
}

// TestMetricsPage: docs/METRICS.md names the metrics that there are, with type and labels, and nothing else.
func TestMetricsPage(t *testing.T) {
	text, err := os.ReadFile("../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	page := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(blkmirror_[a-z_]+)` \\| (\\w+) \\| ([a-z, ]*)\\|[^|]*\\|").FindAllStringSubmatch(string(text), -1) {
		page[row[1]] = row[2] + " " + strings.TrimSpace(row[3])
	}
	code := map[string]string{}
	for _, m := range metrics {
		kind := map[prometheus.ValueType]string{prometheus.GaugeValue: "gauge", prometheus.CounterValue: "counter"}[m.kind]
		code[m.name] = kind + " " + strings.Join(m.labels, ", ")
	}
	if diff := cmp.Diff(code, page); diff != "" {
		t.Error(diff)
	}
	for _, name := range regexp.MustCompile(`blkmirror_[a-z_]+`).FindAllString(string(text), -1) { // those of the alerts
		if code[name] == "" {
			t.Errorf("the page speaks of %s, which there is not", name)
		}
	}
	for what, all := range map[string][]string{"volume": volumeStates, "mirror": mirrorStates} {
		if !strings.Contains(string(text), "`"+strings.Join(all, ", ")+"`") {
			t.Errorf("the page does not have the states of a %s", what)
		}
	}
}

// TestDisconnectsAreCountedWithoutStrangersWords: what a peer calls itself makes no counter of its own.
func TestDisconnectsAreCountedWithoutStrangersWords(t *testing.T) {
	d := newDisconnects(func(string) {}, time.Now)
	for i := range 5 {
		name := fmt.Sprintf("stranger %d", i)
		d.add(Disconnect{Role: roleAcceptor, Peer: name, Address: name}, lived)
		d.add(Disconnect{Role: "mirror", Volume: "copy", Peer: name}, lived)
		d.add(Disconnect{Role: "target", Volume: "copy", Peer: name}, lived)
	}
	d.add(Disconnect{Role: "primary", Volume: "db", Peer: "east"}, lived)
	counts, class := d.countBySeat(), slices.Index(wire.Classes[:], classOf(lived.err))
	if len(counts) != 3 || counts[seat{}][class] != 5 || counts[seat{"copy", ""}][class] != 10 || counts[seat{"db", "east"}][class] != 1 {
		t.Errorf("%v", counts)
	}
	sum := int64(0)
	for _, n := range slices.Collect(maps.Values(d.count())) {
		sum += n
	}
	if sum != 16 {
		t.Errorf("all of them are %d", sum)
	}
}
