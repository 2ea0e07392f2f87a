package doctor

import (
	"fmt"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// The checks of what the way does under load.

const (
	slowPath      = 10e6 // bytes a second
	deadSlowPath  = 1e6
	lopsided      = 4     // times faster one way …
	lopsidedBelow = 100e6 // … and that is worth a word only below this
	smallMTU      = 1280  // what IPv6 asks of every link
	resentWarn    = 0.01
	resentBad     = 0.05
	manyResets    = 3 // disconnects a day
	bytesEnough   = 1 << 20
	fewSegments   = 64 << 10
)

// queueGrades are letters by how much a round trip grows under load.
var queueGrades = [...]struct {
	below  time.Duration
	letter string
	grade  Grade
}{
	{30 * time.Millisecond, "A", OK},
	{60 * time.Millisecond, "B", OK},
	{200 * time.Millisecond, "C", Warn},
	{400 * time.Millisecond, "D", Warn},
}

func queueGrade(swell time.Duration) (string, Grade) {
	for _, g := range queueGrades {
		if swell < g.below {
			return g.letter, g.grade
		}
	}
	return "F", Bad
}

// judgeQueue takes the worse of both directions, and of the loaded connection and the one beside it.
func judgeQueue(m *Measured) []Finding {
	idle := quantile(m.Idle, 0.5)
	var worst time.Duration
	evidence, any := "", false
	for _, d := range directions(m) {
		if !d.load.sound() || len(m.Idle) == 0 {
			continue
		}
		for _, s := range []struct {
			where   string
			samples []time.Duration
		}{{"in the loaded connection", d.load.Within}, {"beside it", d.load.Beside}} {
			if len(s.samples) == 0 {
				continue
			}
			mid := quantile(s.samples, 0.5)
			if swell := mid - idle - d.load.unavoidable(); !any || swell > worst {
				worst, any = swell, true
				evidence = fmt.Sprintf("the round trip goes from %s to %s %s, under load %s", short(idle), short(mid), s.where, d.name)
			}
		}
	}
	if !any {
		return nil
	}
	letter, grade := queueGrade(worst)
	return one("queue", grade, fmt.Sprintf("grade %s: %s", letter, evidence),
		"a queue on the way is too large (bufferbloat): a fair queue (fq_codel, cake) at the bottleneck, or a --rate below the line's, keeps it short")
}

// unavoidable is what a full window of a few segments at each end takes on a line of that speed: on a slow
// one that is no short time, and no fault of a queue.
func (l *Load) unavoidable() time.Duration {
	return time.Duration(fewSegments / l.Speed() * float64(time.Second))
}

type direction struct {
	name string
	load *Load
}

func directions(m *Measured) []direction { return []direction{{"there", m.To}, {"back", m.From}} }

func judgeThroughput(m *Measured) []Finding {
	var all []Finding
	for _, d := range directions(m) {
		l := d.load
		switch {
		case l == nil || l.stalled() || broken(l):
		case l.Failure != nil:
			all = append(all, Finding{"throughput", Warn, fmt.Sprintf("%s: not measured (%s): %s", d.name, l.Failure.Class, l.Failure.Text),
				"run doctor again in a moment; " + l.Failure.Next})
		default:
			grade, next := OK, ""
			switch s := l.Speed(); {
			case s < deadSlowPath:
				grade, next = Bad, "the line, a shaper or lost packets: see queue and resets; below that a mirror is hours behind after each gigabyte"
			case s < slowPath:
				grade, next = Warn, "enough only for little change: compare with what the line should give, and with resets"
			}
			all = append(all, Finding{"throughput", grade, fmt.Sprintf("%s: %s (%s in %s)", d.name, speed(l.Speed()), bytes(float64(l.Bytes)), short(l.Took)), next})
		}
	}
	if to, from := m.To.Speed(), m.From.Speed(); m.To.sound() && m.From.sound() && min(to, from) < lopsidedBelow && max(to, from) > lopsided*min(to, from) {
		all = append(all, Finding{"throughput", Warn, fmt.Sprintf("asymmetric: %s there, %s back", speed(to), speed(from)),
			"usual for a home line; else a shaper or lost packets in one direction: replication goes as fast as the way to the mirror"})
	}
	return all
}

// broken: the connection was cut off under load.
func broken(l *Load) bool {
	return l.Failure != nil && (l.Failure.Class == wire.ClassReset || l.Failure.Class == wire.ClassTimeout)
}

func judgeMTU(m *Measured) []Finding {
	const next = "something drops large packets and tells nobody: lower the MTU of the interface (ip link set mtu 1280), clamp the MSS at the tunnel, let ICMP through, or let the kernel search (sysctl net.ipv4.tcp_mtu_probing=1)"
	var all []Finding
	for _, a := range m.Addresses {
		if failed := a.Failure != nil; a.Lost > 0 && !failed {
			all = append(all, Finding{"mtu", Bad, fmt.Sprintf("%s: segments of %d bytes vanish while small ones pass, those of %d get through: a black hole for large packets", a.Address, a.Lost, a.Segment), next})
		} else if failed && a.Failure.Class == wire.ClassMTU {
			all = append(all, Finding{"mtu", Bad, fmt.Sprintf("%s: %s", a.Address, a.Failure.Text), next})
		}
	}
	for _, d := range directions(m) {
		if d.load.stalled() {
			all = append(all, Finding{"mtu", Bad,
				fmt.Sprintf("%s: nothing of the load came through, while %d small frames were answered: a black hole for large packets", d.name, len(d.load.Beside)),
				next})
		}
	}
	p := m.Path
	if p == nil || len(all) > 0 {
		return all
	}
	evidence := fmt.Sprintf("packets of %d bytes, segments of %d", p.MTU, p.SegmentSent)
	if p.SegmentWant > 0 {
		evidence += fmt.Sprintf(" there and at most %d back", p.SegmentWant)
	}
	if p.MTU > 0 && p.MTU < smallMTU {
		return one("mtu", Warn, evidence, "a tunnel takes room from each packet: that costs throughput, no more")
	}
	if m.To.sound() && m.From.sound() {
		evidence += ", and large ones pass both ways"
	}
	return one("mtu", OK, evidence, "")
}

func judgeResets(m *Measured) []Finding {
	var all []Finding
	for _, d := range directions(m) {
		l := d.load
		if l == nil {
			continue
		}
		if broken(l) && !l.stalled() {
			all = append(all, Finding{"resets", Bad,
				fmt.Sprintf("%s: the load test was cut off (%s) after %s and %s: %s", d.name, l.Failure.Class, short(l.Took), bytes(float64(l.Bytes)), l.Failure.Text),
				"a firewall, a proxy or a load balancer ends connections: look there for a limit of bytes, time or rate; a mirror is to be reached directly"})
		}
		if share := float64(l.Resent) / max(float64(l.Bytes), bytesEnough); l.sound() && share > resentWarn {
			grade := Warn
			if share > resentBad {
				grade = Bad
			}
			all = append(all, Finding{"resets", grade, fmt.Sprintf("%s: %.1f %% of the bytes were lost and sent again", d.name, 100*share),
				"look for errors at the interfaces (ip -s link, ethtool -S), a bad cable, radio, or a shaper that drops"})
		}
	}
	if n := len(m.Disconnects); n >= manyResets {
		last := m.Disconnects[n-1]
		all = append(all, Finding{"resets", Warn, fmt.Sprintf("%d disconnects in the last day, the last one (%s) after %s and %s", n, last.Class, short(last.Age), bytes(float64(last.Bytes))),
			"`blkmirror status --history` has them all: a common age is an idle time-out, a common count of bytes a limit"})
	}
	if len(all) == 0 && (m.To.sound() || m.From.sound()) {
		return one("resets", OK, "no connection was cut off, and next to nothing was sent again", "")
	}
	return all
}
