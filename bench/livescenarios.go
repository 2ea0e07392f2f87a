package bench

import "slices"

// liveScenario is one load, and the exports that are held against each other under it.
type liveScenario struct {
	name, about string
	load        load
	unit        string // what is compared: "IOPS", "MiB/s", "p99 µs", "MiB"
	pinned      bool   // client and export on one core, the mirror on another one
	half        bool   // at half of the peak load of the first contender
	sparse      bool   // a volume of hugeVolume bytes without data
	copying     bool   // no load: a new mirror gets everything
	times       int    // of LiveOptions.Seconds
	contenders  []liveContender
	goals       []goal
}

type liveContender struct {
	name   string
	export exporter
}

// goal is a ratio that we want to reach. What is better is in the unit: more, or with less latency less.
type goal struct {
	of, to string
	least  float64
}

const (
	plainName    = "blkmirror"
	mirroredName = "blkmirror + mirror"
	bestQEMU     = "qemu-nbd (best)"

	memoryName = "memory"

	securedName  = "first copy, TLS"
	insecureName = "first copy, --insecure"

	hugeVolume = 1 << 40
	hotSet     = 1 << 30
	memoryGoal = 256 << 20 // of each process
	p99Goal    = 1.3       // times that without a mirror
)

var (
	plainExport    = liveContender{plainName, liveExport{}}
	mirroredExport = liveContender{mirroredName, liveExport{mirrored: true}}
	allExports     = []liveContender{plainExport, mirroredExport, {"qemu-nbd native", qemuNBD{"native"}}, {"qemu-nbd threads", qemuNBD{"threads"}},
		{"qemu-nbd io_uring", qemuNBD{"io_uring"}}, {"nbdkit file (page cache)", nbdkitFile{}}}
)

var liveScenarios = []liveScenario{
	speed("randwrite-d1", "4 KiB random writes, depth 1", load{rw: "randwrite", block: 4 << 10, depth: 1}, 0.6),
	speed("randwrite-d32", "4 KiB random writes, depth 32", load{rw: "randwrite", block: 4 << 10, depth: 32}, 0.35),
	speed("randread-d1", "4 KiB random reads, depth 1", load{rw: "randread", block: 4 << 10, depth: 1}, 0),
	speed("randread-d32", "4 KiB random reads, depth 32", load{rw: "randread", block: 4 << 10, depth: 32}, 0),
	speed("write-1m", "1 MiB sequential writes, depth 8", load{rw: "write", block: 1 << 20, depth: 8}, 0.35),
	speed("read-1m", "1 MiB sequential reads, depth 8", load{rw: "read", block: 1 << 20, depth: 8}, 0.35),
	{
		name: "latency", about: "4 KiB random writes at half of the peak load; client and primary on core 0, the mirror on core 1",
		load: load{rw: "randwrite", block: 4 << 10, depth: 32}, unit: "p99 µs", pinned: true, half: true, times: 1,
		contenders: []liveContender{plainExport, mirroredExport}, goals: []goal{{mirroredName, plainName, p99Goal}},
	},
	{
		name: "hot-set", about: "the first GiB overwritten all the time, 64 KiB at random places: how much less is shipped than was written",
		load: load{rw: "randwrite", block: 64 << 10, depth: 8, span: hotSet}, unit: "MiB/s", times: 3,
		contenders: []liveContender{mirroredExport, {mirroredName + ", interval 10s", liveExport{mirrored: true, interval: "10s"}}},
	},
	{
		name: "first-copy", about: "a new mirror gets all of a full volume, with TLS and without", unit: "MiB/s", copying: true,
		contenders: []liveContender{{securedName, liveExport{mirrored: true, secure: true}}, {insecureName, liveExport{mirrored: true}}},
		goals:      []goal{{securedName, insecureName, secureGoal}},
	},
	{
		name: memoryName, about: "4 KiB random writes all over 1 TiB of nothing: peak memory",
		load: load{rw: "randwrite", block: 4 << 10, depth: 32}, unit: "IOPS", sparse: true, times: 3,
		contenders: []liveContender{mirroredExport},
	},
}

// speed compares all exports. What a mirror may cost is a goal only where there are writes to ship, or
// where it is named.
func speed(name, about string, l load, mirrored float64) liveScenario {
	s := liveScenario{name: name, about: about, load: l, unit: "IOPS", times: 1, contenders: allExports, goals: []goal{{plainName, bestQEMU, 1}}}
	if l.block >= 1<<20 {
		s.unit = "MiB/s"
	}
	if mirrored > 0 {
		s.goals = append(s.goals, goal{mirroredName, bestQEMU, mirrored})
	}
	return s
}

// lowerIsBetter tells of what is compared.
func (s *liveScenario) lowerIsBetter() bool { return s.unit == "p99 µs" }

func (s *liveScenario) value(m Measured) float64 {
	switch s.unit {
	case "MiB/s":
		return m.BytesPerSecond / (1 << 20)
	case "p99 µs":
		return m.P99Micros
	}
	return m.IOPS
}

func (s *liveScenario) clientCore() string {
	if s.pinned {
		return "0"
	}
	return ""
}

func (s *liveScenario) mirrorCore() string {
	if s.pinned {
		return "1"
	}
	return ""
}

// LiveScenarioNames lists what LiveOptions.Scenarios may hold.
func LiveScenarioNames() []string {
	var names []string
	for s := range slices.Values(liveScenarios) {
		names = append(names, s.name)
	}
	return names
}
