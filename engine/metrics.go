package engine

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// The metrics, as docs/METRICS.md tells of them. metricscollect.go gives them their values.

// metric is one of them.
type metric struct {
	name   string
	kind   prometheus.ValueType
	labels []string
	desc   *prometheus.Desc
}

// metrics are all that there are.
var metrics []*metric

func gauge(name, help string, labels ...string) *metric {
	return newMetric(prometheus.GaugeValue, name, help, labels)
}

func counter(name, help string, labels ...string) *metric {
	return newMetric(prometheus.CounterValue, name, help, labels)
}

func newMetric(kind prometheus.ValueType, name, help string, labels []string) *metric {
	m := &metric{name: "blkmirror_" + name, kind: kind, labels: labels}
	m.desc = prometheus.NewDesc(m.name, help, labels, nil)
	metrics = append(metrics, m)
	return m
}

var (
	metricBuildInfo   = gauge("build_info", "Always 1; the version of this daemon.", "version")
	metricProblems    = gauge("problems", "Things that need a look: lines of /healthz.")
	metricWarnings    = gauge("key_warnings", "What a person has to do about keys, rights and certificates.")
	metricExpiry      = gauge("key_expiry_days", "Days up to the end of a credential; +Inf: it has no end.", "kind", "name")
	metricDisconnects = counter("disconnects_total", "Disconnects by class.", "volume", "mirror", "class")

	metricVolumeState   = gauge("volume_state", "1 for the state that the volume is in.", "volume", "state")
	metricSize          = gauge("size_bytes", "Size of the volume.", "volume")
	metricMaxLag        = gauge("max_lag_seconds", "Lag beyond which a mirror is lagging.", "volume")
	metricUnproven      = gauge("unproven", "1: the disk is still compared with its index.", "volume")
	metricReadOnly      = gauge("read_only", "1: read-only after a mismatch; without a mirror: the volume itself.", "volume", "mirror")
	metricQuarantined   = gauge("quarantined_blocks", "Blocks that made it read-only.", "volume", "mirror")
	metricRotten        = gauge("rotten_blocks", "Blocks of a primary that are not what was written.", "volume")
	metricMismatches    = counter("mismatches_total", "Checksums that did not match, by what caused it.", "volume", "mirror", "cause")
	metricDeviceErrors  = counter("device_errors_total", "Requests to a primary's disk that failed.", "volume")
	metricExportRead    = counter("export_read_bytes_total", "Bytes that clients of the export have read.", "volume")
	metricExportWritten = counter("export_written_bytes_total", "Bytes that clients of the export have written.", "volume")

	metricMirrorState = ofMirror(gauge, "mirror_state", "1 for the state that the mirror is in.", "state")
	metricLagSeconds  = ofMirror(gauge, "lag_seconds", "Age of the oldest write that the mirror has not committed.")
	metricLagBytes    = ofMirror(gauge, "lag_bytes", "Bytes that were written and the mirror has not committed.")
	metricNeeds       = ofMirror(gauge, "needs_bytes", "Bytes that the mirror has not confirmed, out of doubt or not.")
	metricStaged      = ofMirror(gauge, "staged_bytes", "Bytes in the mirror's staging.")
	metricCaptured    = ofMirror(gauge, "captured_bytes", "Bytes of old contents kept for the mirror's cut.")
	metricRoom        = ofMirror(gauge, "room_missing_bytes", "Bytes that the staging of a mirror that holds lacks.")
	metricHoles       = ofMirror(gauge, "holes", "Pages that the primary cannot read.")
	metricRTT         = ofMirror(gauge, "rtt_seconds", "Round trip of the connection.")
	metricShipped     = ofMirror(counter, "shipped_bytes_total", "Bytes of content sent, before compression.")
	metricWire        = ofMirror(counter, "wire_bytes_total", "Bytes on the wire, both ways.")
	metricReconnects  = ofMirror(counter, "reconnects_total", "Sessions that followed a lost one.")
	metricGivenUp     = ofMirror(counter, "cuts_given_up_total", "Cuts that were begun for the mirror and given up.")
	metricProbeOK     = ofMirror(gauge, "probe_ok", "1: the next connection to the mirror would come about.")
	metricProbeAge    = ofMirror(gauge, "probe_age_seconds", "Time since that was tried.")
	metricWindow      = ofMirror(gauge, "flow_window_bytes", "Bytes that may be under way.")
	metricOutstanding = ofMirror(gauge, "flow_outstanding_bytes", "Bytes that are under way.")
	metricLimit       = ofMirror(gauge, "flow_limit_bytes_per_second", "Limit that is in force now; 0: none.")
	metricSlowed      = ofMirror(gauge, "flow_slowed", "1: less is sent, because the round trip has swollen.")
	metricThreshold   = ofMirror(gauge, "swell_threshold_seconds", "Round trip from which on less is sent.")
)

func ofMirror(kind func(name, help string, labels ...string) *metric, name, help string, more ...string) *metric {
	return kind(name, help, slices.Concat([]string{"volume", "mirror"}, more)...)
}

// The states of DESIGN and of ARCHITECTURE's differences from it: each is there, with 0 or 1.
var (
	volumeStates = []string{"ok", "comparing", "inconsistent", "read-only", "paused", "missing", "failed"}
	mirrorStates = []string{"connecting", "bulk", "reconciling", "catching-up", "connected", "degraded", "lagging", "holding",
		"paused", "refused", "read-only"}
)

// send gives the metric a value. Labels come from the configuration, where an address may be any text.
func (m *metric) send(to chan<- prometheus.Metric, value float64, labels ...string) {
	for i := range labels {
		labels[i] = strings.ToValidUTF8(labels[i], "?")
	}
	to <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
}

// truth is 1 or 0.
func (m *metric) truth(to chan<- prometheus.Metric, value bool, labels ...string) {
	n := 0.0
	if value {
		n = 1
	}
	m.send(to, n, labels...)
}

// state tells the one of all states that is the present one, as the last label. One that this page forgot is told all the same.
func (m *metric) state(to chan<- prometheus.Metric, all []string, now string, labels ...string) {
	if !slices.Contains(all, now) {
		all = append(slices.Clone(all), now)
	}
	for _, s := range all {
		m.truth(to, s == now, append(slices.Clone(labels), s)...)
	}
}
