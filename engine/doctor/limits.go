package doctor

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// The checks of what the two machines can do, and what of all is least.

const (
	slowDisk = 50e6  // bytes a second
	slowCPU  = 200e6 // bytes a second
	// window is what a mirror lets be under way.
	window = 32 << 20
	// payloadShare of a socket's memory is payload; the rest is the kernel's own.
	payloadShare = 0.5
	headroom     = 1.5 // that a limit should leave above what was measured
	atLimit      = 0.7 // of a limit: that is what holds it back
)

// allowed is what the socket limits of sender and receiver let pass in a second; 0: not known.
func allowed(sender, receiver Sockets, trip time.Duration) float64 {
	if sender.SendMax <= 0 || receiver.ReceiveMax <= 0 || trip <= 0 {
		return 0
	}
	return float64(min(sender.SendMax, receiver.ReceiveMax)) * payloadShare / trip.Seconds()
}

// judgeSockets: the limits must allow bandwidth × delay, or they are what was measured.
func judgeSockets(m *Measured) []Finding {
	if m.Peer == nil || len(m.Idle) == 0 {
		return nil
	}
	trip := quantile(m.Idle, 0.5)
	var all []Finding
	for _, d := range []struct {
		direction
		sender, receiver Sockets
	}{{direction{"there", m.To}, m.Here, m.Peer.Sockets}, {direction{"back", m.From}, m.Peer.Sockets, m.Here}} {
		limit := allowed(d.sender, d.receiver, trip)
		if limit == 0 || !d.load.sound() {
			continue
		}
		product := d.load.Speed() * trip.Seconds()
		evidence := fmt.Sprintf("%s: bandwidth × delay is %s; tcp_wmem of the sender ends at %s, tcp_rmem of the receiver at %s, which allow %s (%s)",
			d.name, bytes(product), bytes(float64(d.sender.SendMax)), bytes(float64(d.receiver.ReceiveMax)), speed(limit), cmp.Or(d.sender.Congestion, "?"))
		f := Finding{Check: "sockets", Grade: OK, Evidence: evidence}
		if limit < headroom*d.load.Speed() {
			f.Grade, f.Next = Warn, fmt.Sprintf("raise the last number of net.ipv4.tcp_wmem at the sender and of net.ipv4.tcp_rmem at the receiver to %s", bytes(powerAbove(4*product)))
		}
		all = append(all, f)
	}
	return all
}

func powerAbove(n float64) float64 { return math.Exp2(math.Ceil(math.Log2(max(n, 4<<20)))) }

// rate of a disk in bytes a second; 0: not known.
func (d Disk) rate() float64 {
	if d.Failure != "" || d.Took <= 0 {
		return 0
	}
	return float64(d.Bytes) / d.Took.Seconds()
}

func judgeDisks(m *Measured) []Finding {
	var all []Finding
	for _, d := range m.Disks {
		f := Finding{Check: "disk", Grade: OK, Evidence: fmt.Sprintf("%s reads %s (%s in %s)", d.Path, speed(d.rate()), bytes(float64(d.Bytes)), short(d.Took))}
		switch {
		case d.Failure != "":
			f.Grade, f.Evidence, f.Next = Warn, d.Path+": "+d.Failure, "run doctor as a user who may read it, or name another --device"
		case d.rate() < slowDisk:
			f.Grade, f.Next = Warn, "see what else uses the disk (iostat -x), and its health (smartctl, dmesg)"
		}
		if d.Failure == "" && !d.Direct {
			f.Evidence += ", through the page cache: the file system refuses O_DIRECT"
		}
		all = append(all, f)
	}
	return all
}

func judgeCPU(m *Measured) []Finding {
	if m.Hash == 0 {
		return nil
	}
	evidence := fmt.Sprintf("SHA-256 %s, lz4 %s", speed(m.Hash), speed(m.Pack))
	grade := OK
	if m.Hash < slowCPU {
		grade = Warn
	}
	if there := m.Peer.hash(); there > 0 {
		evidence += fmt.Sprintf("; there SHA-256 %s with %d processors", speed(there), m.Peer.CPUs)
		if there < slowCPU {
			grade = Warn
		}
	}
	return one("cpu", grade, evidence, "a machine without SHA instructions, or a busy one: every block is hashed at both ends")
}

func (p *Peer) hash() float64 {
	if p == nil {
		return 0
	}
	return p.HashSpeed * float64(p.CPUs)
}

// bottleneck names the least of what replication to the other node needs. Without a load test nothing is said.
func bottleneck(m *Measured) (what string, limit float64) {
	if !m.To.sound() {
		return "", 0
	}
	consider := func(name string, rate float64) {
		if rate > 0 && (what == "" || rate < limit) {
			what, limit = name, rate
		}
	}
	consider("the network", m.To.Speed())
	for _, d := range m.Disks {
		consider("the disk "+d.Path, d.rate())
	}
	consider("hashing here", m.Hash)
	consider("hashing there", m.Peer.hash())
	if len(m.Idle) > 0 {
		trip := quantile(m.Idle, 0.5)
		consider("its window of 32 MiB a round trip", window/max(trip, time.Microsecond).Seconds())
		if a := allowed(m.Here, m.Peer.sockets(), trip); a > 0 && what == "the network" && limit >= atLimit*a {
			what = "the kernels' socket limits"
		}
	}
	return what, limit
}

func (p *Peer) sockets() Sockets {
	if p == nil {
		return Sockets{}
	}
	return p.Sockets
}

// quantile of samples, 0 where there are none.
func quantile(samples []time.Duration, q float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// short writes a duration with about three digits.
func short(d time.Duration) string {
	for _, unit := range []time.Duration{time.Minute, time.Second, time.Millisecond, time.Microsecond} {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}

func speed(n float64) string { return bytes(n) + "/s" }

// bytes counts in powers of 1000, as lines and disks are sold.
func bytes(n float64) string {
	unit := 0
	for n >= 999.5 && unit < 4 {
		n, unit = n/1000, unit+1
	}
	digits := 2
	if unit == 0 || n >= 99.95 {
		digits = 0
	} else if n >= 9.995 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %s", digits, n, [...]string{"B", "kB", "MB", "GB", "TB"}[unit])
}
