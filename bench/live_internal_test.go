package bench

import (
	"strings"
	"testing"
	"time"
)

func TestReadFio(t *testing.T) {
	const report = `fio: connected to NBD server
{"jobs":[{"error":0,"read":{"io_bytes":0},"write":{"io_bytes":8192,"iops":2.5,"bw_bytes":10240,
"lat_ns":{"mean":1500,"percentile":{"50.000000":1000,"99.000000":3000,"99.900000":4000}}}}]}`
	got, err := readFio([]byte(report), true)
	want := Measured{IOPS: 2.5, BytesPerSecond: 10240, Bytes: 8192, MeanMicros: 1.5, P50Micros: 1, P99Micros: 3, P999Micros: 4}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for name, text := range map[string]string{
		"nothing moved": strings.Replace(report, "8192", "0", 1), "an error": strings.Replace(report, `"error":0`, `"error":5`, 1),
		"no JSON": "fio: bad", "no jobs": "{}",
	} {
		if _, err := readFio([]byte(text), true); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestLagGrows(t *testing.T) {
	end := time.Unix(1000, 0)
	lag := func(at func(second int) float64) Lag {
		var samples []lagSample
		for second := range 30 { // of which the last 20 count
			samples = append(samples, lagSample{end.Add(time.Duration(second-29) * time.Second), at(second), int64(second)})
		}
		var l Lag
		l.summarise(samples, end, 20*time.Second)
		return l
	}
	if l := lag(func(second int) float64 { return float64(second % 2) }); l.Grows || l.MaxSeconds != 1 || l.MaxBytes != 29 {
		t.Errorf("a saw: %+v", l)
	}
	if l := lag(func(second int) float64 { return float64(second) }); !l.Grows || l.LastSeconds <= l.ThirdSeconds || l.LastBytes <= l.ThirdBytes {
		t.Errorf("a ramp: %+v", l)
	}
	if l := lag(func(second int) float64 { return 20 }); l.Grows || l.LastSeconds < 19.99 || l.LastSeconds > 20.01 {
		t.Errorf("far behind, but steady: %+v", l)
	}
	var none Lag
	none.summarise(nil, end, time.Second)
	if none != (Lag{}) {
		t.Errorf("%+v", none)
	}
}

func TestGoalsPickTheBestQEMU(t *testing.T) {
	sample := func(v float64) []LiveSample { return []LiveSample{{Value: v}} }
	m := LiveScenario{Contenders: []LiveContender{{Name: plainName, Runs: sample(12)}, {Name: mirroredName, Runs: sample(5)},
		{Name: "qemu-nbd native", Runs: sample(8)}, {Name: "qemu-nbd threads", Runs: sample(10)}, {Name: "nbdkit file (page cache)", Runs: sample(99)}}}
	s := speed("x", "x", load{rw: "randwrite"}, 0.6)
	m.summarise(&s)
	if len(m.Goals) != 2 || m.Goals[0].To != "qemu-nbd threads" || m.Goals[0].OfMedians != 1.2 || !m.Goals[0].Reached || m.Goals[1].Reached {
		t.Errorf("%+v", m.Goals)
	}
	lower := liveScenario{unit: "p99 µs", goals: []goal{{mirroredName, plainName, 0.5}}}
	m.Goals = nil
	if m.summarise(&lower); !m.Goals[0].Reached {
		t.Errorf("%+v", m.Goals)
	}
}
