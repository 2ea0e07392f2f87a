package campaign

import (
	"fmt"
	"sync"
	"syscall"

	"github.com/blkmirror/blkmirror/campaign/daemon"
)

// wirePlaces are those that a block passes on its way to the mirror's device.
var wirePlaces = []*place{
	{name: "source", number: "1", title: "what the primary read, after it was hashed", try: atPoint("source", false)},
	{name: "payload", number: "2", title: "payload on the wire", try: onWire(flipPayload, false)},
	{name: "payload-always", number: "2", title: "payload on the wire, of one block each time", try: onWire(flipPayload, true)},
	{name: "header", number: "2", title: "header or fields of a Data frame", try: onWire(flipHead, false)},
	{name: "hash", number: "3", title: "hash in a Data frame, with a right frame checksum", try: onWire(flipHash, false)},
	{name: "ack", number: "3", title: "checksum in an Ack, with a right frame checksum", try: onWire(flipAck, false)},
	{name: "ack-always", number: "3", title: "checksum in the Acks of one block, each time", try: onWire(flipAck, true)},
	{name: "unpacked", number: "4", title: "what the mirror unpacked, before it is hashed", try: atPoint("unpacked", true)},
	{name: "checked", number: "5", title: "what the mirror checked, before it writes it (readback)", readBack: true, try: atPoint("checked", false)},
	{name: "written", number: "5", title: "on the way from the mirror's memory to its device (readback)", readBack: true, try: atPoint("written", false)},
	{name: "misread", number: "5", title: "the same, each time (readback)", readBack: true, try: always("misread")},
}

// atPoint turns a bit over at a fault point of the binary, once.
func atPoint(name string, packable bool) func(*trial) error {
	return func(t *trial) error {
		if err := t.trigger(name); err != nil {
			return err
		}
		if err := t.writes(packable); err != nil {
			return err
		}
		if err := t.judge(); err != nil {
			return err
		}
		if t.untrigger(name) {
			return fmt.Errorf("nothing came by at %s", name)
		}
		return nil
	}
}

// always has it turned over until the mirror has given up, or the cut has come through.
func always(name string) func(*trial) error {
	return func(t *trial) error {
		if err := t.trigger(name); err != nil {
			return err
		}
		defer t.untrigger(name)
		if err := t.writes(false); err != nil {
			return err
		}
		return t.judge()
	}
}

// flip changes a frame. hit: the frame is one that can be changed; at is the offset that it is about.
type flip func(t *trial, n uint64, toMirror bool, f *frame, wanted int64) (at int64, hit bool)

const anywhere = -1

// onWire turns a bit over in the first frame that fits; with each, in all frames about the same offset.
func onWire(change flip, each bool) func(*trial) error {
	return func(t *trial) error {
		var mu sync.Mutex
		hits, wanted, n := 0, int64(anywhere), t.rng.Uint64()
		skip := t.rng.IntN(3)
		t.link.arm(func(toMirror bool, f *frame) bool {
			mu.Lock()
			defer mu.Unlock()
			if hits > 0 && !each {
				return true
			}
			if _, fits := change(t, n, toMirror, &frame{header: f.header, meta: append([]byte(nil), f.meta...), payload: append([]byte(nil), f.payload...)}, wanted); !fits {
				return true
			}
			if skip--; skip >= 0 && t.number%2 == 0 && f.kind() == typeData && follows(f) {
				return true // another one comes
			}
			wanted, _ = change(t, n, toMirror, f, wanted)
			hits++
			return true
		})
		defer t.link.arm(nil)
		if err := t.writes(false); err != nil {
			return err
		}
		before, err := t.primary.Volume(t.ctx)
		if err != nil {
			return err
		}
		if err := t.judge(); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if hits == 0 {
			return fmt.Errorf("no frame came by")
		}
		return t.judgeLine(&before)
	}
}

// judgeLine counts a line that was given up, as damaged, as a correction.
func (t *trial) judgeLine(before *daemon.Volume) error {
	v, err := t.primary.Volume(t.ctx)
	if err != nil || t.found {
		return err
	}
	if len(before.Mirrors) != 1 || len(v.Mirrors) != 1 {
		return fmt.Errorf("no mirror: %+v", v)
	}
	a, b := before.Mirrors[0], v.Mirrors[0]
	if b.Reconnects > a.Reconnects && b.Last != nil && !t.wronglyGood {
		t.found, t.corrected = true, true
		t.also("new connection, class " + b.Last.Class)
		t.cost = max(0, b.Shipped-t.shipped-t.brought)
	}
	return nil
}

// follows tells whether another Data comes directly behind.
func follows(f *frame) bool { return string(f.meta[28:32]) != "\x00\x00\x00\x00" }

func offsetOf(f *frame) int64 { return int64(le64(f.meta[16:])) }

func le64(b []byte) (n uint64) {
	for i := range 8 {
		n |= uint64(b[i]) << (8 * i)
	}
	return n
}

func flipPayload(_ *trial, n uint64, toMirror bool, f *frame, wanted int64) (int64, bool) {
	if !toMirror || f.kind() != typeData || wanted != anywhere && wanted != offsetOf(f) {
		return 0, false
	}
	turn(f.payload, n)
	return offsetOf(f), true
}

// flipHead leaves the lengths alone: with those turned over the proxy itself would lose the frames.
func flipHead(_ *trial, n uint64, toMirror bool, f *frame, _ int64) (int64, bool) {
	if !toMirror || f.kind() != typeData {
		return 0, false
	}
	if n>>60 < 4 {
		turn(f.header[16:], n)
	} else {
		turn(f.meta, n)
	}
	return offsetOf(f), true
}

func flipHash(_ *trial, n uint64, toMirror bool, f *frame, wanted int64) (int64, bool) {
	if !toMirror || f.kind() != typeData || wanted != anywhere && wanted != offsetOf(f) {
		return 0, false
	}
	turn(f.meta[hashAt:hashAt+32], n)
	f.seal()
	return offsetOf(f), true
}

// flipAck turns over a bit in one entry of an Ack.
func flipAck(_ *trial, n uint64, toMirror bool, f *frame, wanted int64) (int64, bool) {
	if toMirror || f.kind() != typeAck {
		return 0, false
	}
	entries := len(f.meta) / entrySize
	for i := range entries {
		e := f.meta[i*entrySize:][:entrySize]
		at := int64(le64(e[8:]))
		if wanted == anywhere && i == int(n%uint64(entries)) || wanted == at {
			turn(e[sumAt:sumAt+32], n>>8)
			f.seal()
			return at, true
		}
	}
	return 0, false
}

// turn turns over one bit.
func turn(b []byte, n uint64) {
	n %= uint64(len(b)) * 8
	b[n/8] ^= 1 << (n % 8)
}

// restart ends a daemon and starts it again, with something in between. stop: SIGTERM, or SIGKILL.
func (t *trial) restart(n *daemon.Node, stop syscall.Signal, between func() error) error {
	if n == t.mirror {
		defer t.link.arm(nil)
	}
	if err := n.End(stop); err != nil {
		return err
	}
	if err := between(); err != nil {
		return err
	}
	if n == t.primary {
		t.shipped, t.brought = 0, 0 // it counts anew
		return t.primaryUp(t.ctx)
	}
	return t.mirrorUp(t.ctx)
}
