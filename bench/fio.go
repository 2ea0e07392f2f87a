package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// load is what a client does with an export: fio with its nbd engine.
type load struct {
	rw    string // of fio: "randwrite", "write", …
	block int64
	depth int
	span  int64 // of the volume, from its beginning; 0: all
	rate  int   // requests a second; 0: as many as there can be
}

func (l load) writes() bool { return l.rw == "write" || l.rw == "randwrite" }

// Measured is what fio says.
type Measured struct {
	IOPS           float64 `json:"iops"`
	BytesPerSecond float64 `json:"bytes_per_second"`
	Bytes          int64   `json:"bytes"`
	MeanMicros     float64 `json:"mean_us"` // from the moment a request is issued to its reply
	P50Micros      float64 `json:"p50_us"`
	P99Micros      float64 `json:"p99_us"`
	P999Micros     float64 `json:"p99_9_us"`
	CPUSeconds     float64 `json:"cpu_seconds"`
}

// runFio runs one load against an export. What happens in the first seconds, while regions become hot and
// connections warm, does not count.
func runFio(ctx context.Context, uri string, l load, size int64, warmUp, seconds int, core string) (Measured, error) {
	if l.span == 0 || l.span > size {
		l.span = size
	}
	argv := slices.Concat(pinned(core), []string{find("fio"), "--output-format=json", "--name=bench", "--ioengine=nbd", "--uri=" + uri,
		"--rw=" + l.rw, "--bs=" + strconv.FormatInt(l.block, 10), "--iodepth=" + strconv.Itoa(l.depth), "--size=" + strconv.FormatInt(l.span, 10),
		"--time_based", "--runtime=" + strconv.Itoa(seconds), "--ramp_time=" + strconv.Itoa(warmUp),
		"--norandommap", "--randrepeat=0", "--lat_percentiles=1", "--clat_percentiles=0"})
	if l.rate > 0 {
		argv = append(argv, "--rate_iops="+strconv.Itoa(l.rate))
	}
	p, err := start(ctx, "", argv...)
	if err != nil {
		return Measured{}, err
	}
	var u Usage
	if err := p.wait(&u); err != nil {
		return Measured{}, fmt.Errorf("%w\n%s", err, p.stdout.Bytes())
	}
	m, err := readFio(p.stdout.Bytes(), l.writes())
	m.CPUSeconds = u.CPUSeconds
	return m, err
}

func readFio(out []byte, writes bool) (Measured, error) {
	out = out[max(bytes.IndexByte(out, '{'), 0):] // before it, fio tells that it is connected
	type side struct {
		Bytes   int64   `json:"io_bytes"`
		IOPS    float64 `json:"iops"`
		Rate    float64 `json:"bw_bytes"`
		Latency struct {
			Mean       float64            `json:"mean"`
			Percentile map[string]float64 `json:"percentile"`
		} `json:"lat_ns"`
	}
	var report struct {
		Jobs []struct {
			Error int
			Read  side
			Write side
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return Measured{}, fmt.Errorf("read the report of fio: %w", err)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		return Measured{}, fmt.Errorf("fio failed:\n%s", out)
	}
	s := report.Jobs[0].Read
	if writes {
		s = report.Jobs[0].Write
	}
	if s.Bytes == 0 {
		return Measured{}, fmt.Errorf("fio moved nothing:\n%s", out)
	}
	micros := func(percentile string) float64 { return s.Latency.Percentile[percentile] / 1000 }
	return Measured{IOPS: s.IOPS, BytesPerSecond: s.Rate, Bytes: s.Bytes, MeanMicros: s.Latency.Mean / 1000,
		P50Micros: micros("50.000000"), P99Micros: micros("99.000000"), P999Micros: micros("99.900000")}, nil
}
