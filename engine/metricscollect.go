package engine

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/wire"
)

// collector makes metrics of one observation each time it is asked.
type collector func() observation

// Describe tells which there can be.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, m := range metrics {
		to <- m.desc
	}
}

// Collect tells what is.
func (c collector) Collect(to chan<- prometheus.Metric) {
	o := c()
	metricBuildInfo.send(to, 1, o.Node.Version)
	metricProblems.send(to, float64(len(o.Problems(0))))
	metricWarnings.send(to, float64(len(o.Node.Warnings)))
	o.credentials(to)
	o.connections(to)
	for i := range o.Volumes {
		o.volume(to, &o.Volumes[i])
	}
}

func (o *observation) credentials(to chan<- prometheus.Metric) {
	for _, e := range o.ends {
		days := math.Inf(1)
		if !e.At.IsZero() {
			days = e.At.Sub(o.at).Hours() / 24
		}
		metricExpiry.send(to, days, e.Kind, e.Name)
	}
}

// connections tells every class for everybody who could be disconnected, from the start.
func (o *observation) connections(to chan<- prometheus.Metric) {
	counts := map[seat]classCounts{{}: {}}
	for i := range o.Volumes {
		v := &o.Volumes[i]
		counts[seat{volume: v.Name}] = classCounts{}
		for _, m := range v.Mirrors {
			counts[seat{v.Name, m.Name}] = classCounts{}
		}
	}
	for at, n := range o.disconnects { // also of mirrors that are gone: a sum must not fall
		counts[at] = n
	}
	for at, n := range counts {
		for i, class := range wire.Classes {
			metricDisconnects.send(to, float64(n[i]), at.volume, at.mirror, string(class))
		}
	}
}

func (o *observation) volume(to chan<- prometheus.Metric, v *VolumeStatus) {
	metricVolumeState.state(to, volumeStates, v.State, v.Name)
	if v.Role == "unknown" {
		return // it does not answer
	}
	metricSize.send(to, float64(v.Size), v.Name)
	metricUnproven.truth(to, v.Unproven, v.Name)
	readOnly(to, v.ReadOnly, v.Name, "")
	var own MismatchCounts
	switch {
	case v.Role == "primary":
		if v.Mismatches != nil {
			own = *v.Mismatches
		}
		metricMaxLag.send(to, v.MaxLag, v.Name)
		metricRotten.send(to, float64(v.RotBlocks), v.Name)
		metricDeviceErrors.send(to, float64(v.DeviceErrors), v.Name)
		metricExportRead.send(to, float64(v.ReadBytes), v.Name)
		metricExportWritten.send(to, float64(v.WrittenBytes), v.Name)
	case v.Primary != nil:
		own = v.Primary.Mismatches
		connection(to, v.Primary, v.Name, "")
		metricHoles.send(to, float64((v.Primary.Holes+blockdev.PageSize-1)/blockdev.PageSize), v.Name, "") // there in bytes
	}
	mismatches(to, own, v.Name, "")
	for i := range v.Mirrors {
		o.mirror(to, &v.Mirrors[i], v.Name)
	}
}

// mirror tells what a primary knows of a mirror.
func (o *observation) mirror(to chan<- prometheus.Metric, m *MirrorStatus, volume string) {
	connection(to, m, volume, m.Name)
	readOnly(to, m.ReadOnly, volume, m.Name)
	mismatches(to, m.Mismatches, volume, m.Name)
	metricHoles.send(to, float64(m.Holes), volume, m.Name)
	metricLagSeconds.send(to, m.LagSeconds, volume, m.Name)
	metricLagBytes.send(to, float64(m.LagBytes), volume, m.Name)
	metricCaptured.send(to, float64(m.CapturedBytes), volume, m.Name)
	metricRoom.send(to, float64(m.RoomMissing), volume, m.Name)
	metricGivenUp.send(to, float64(m.GivenUp), volume, m.Name)
	if p := m.Probe; p != nil {
		metricProbeOK.truth(to, p.OK, volume, m.Name)
		metricProbeAge.send(to, max(0, o.at.Sub(timeOf(p.At)).Seconds()), volume, m.Name)
	}
	if f := m.Flow; f != nil {
		metricWindow.send(to, float64(f.Window), volume, m.Name)
		metricOutstanding.send(to, float64(f.Outstanding), volume, m.Name)
		metricLimit.send(to, float64(f.Limit), volume, m.Name)
		metricSlowed.truth(to, f.Slowed, volume, m.Name)
		metricThreshold.send(to, f.Threshold/1000, volume, m.Name)
	}
}

// connection tells what both sides know of it.
func connection(to chan<- prometheus.Metric, m *MirrorStatus, volume, mirror string) {
	metricMirrorState.state(to, mirrorStates, m.State, volume, mirror)
	metricNeeds.send(to, float64(m.NeedsBytes), volume, mirror)
	metricStaged.send(to, float64(m.StagedBytes), volume, mirror)
	metricShipped.send(to, float64(m.ShippedBytes), volume, mirror)
	metricWire.send(to, float64(m.WireBytes), volume, mirror)
	metricReconnects.send(to, float64(m.Reconnects), volume, mirror)
	if m.RTTMillis > 0 {
		metricRTT.send(to, m.RTTMillis/1000, volume, mirror)
	}
}

func readOnly(to chan<- prometheus.Metric, cause *ReadOnlyCause, volume, mirror string) {
	metricReadOnly.truth(to, cause != nil, volume, mirror)
	n := int64(0)
	if cause != nil {
		n = cause.Quarantined
	}
	metricQuarantined.send(to, float64(n), volume, mirror)
}

func mismatches(to chan<- prometheus.Metric, n MismatchCounts, volume, mirror string) {
	metricMismatches.send(to, float64(n.Wire), volume, mirror, "wire")
	metricMismatches.send(to, float64(n.Source), volume, mirror, "source")
	metricMismatches.send(to, float64(n.Mirror), volume, mirror, "mirror")
}
