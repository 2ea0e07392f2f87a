package sim

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine"
)

// A scripted history: one mirror, a volume of four pages, and nothing left to chance. What is to happen is said
// one operation after the other, and everybody has a turn in a fixed order.

// operation is one of a script.
type operation uint8

const (
	opWrite operation = iota
	opOverlap
	opFlush
	opCut
	opDisconnect
	opCrashPrimary
	opCrashMirror
	opVerify
	operations
)

var operationNames = [operations]string{"write", "overlapping write", "flush", "cut", "disconnect", "crash primary", "crash mirror", "verify"}

func (o operation) String() string { return operationNames[o] }

// style is how a script is played.
type style struct {
	begin  situation
	rounds int  // that everybody has between two operations; settling: all that they need
	power  bool // its crashes take what is not durable; else they are kills
}

const settling = -1

// situation is how things stand when a script begins.
type situation uint8

const (
	inStep situation = iota // the mirror holds what the primary does
	inBulk                  // the first sync is under way
	unborn                  // neither was ever started
	situations
)

var situationNames = [situations]string{"staging", "bulk", "birth"}

func (s style) String() string {
	pace, crash := fmt.Sprintf("%d rounds", s.rounds), "kill"
	if s.rounds == settling {
		pace = "settling"
	}
	if s.power {
		crash = "power cut"
	}
	return situationNames[s.begin] + ", " + pace + ", " + crash
}

// script plays operations in a world.
type script struct {
	w     *World
	dice  *dull
	style style
	turns [2]int // that were of use: of the primary, of the mirror
	asked int    // operations
	marks [2]int // calls of each node when the last operation began
	stops bool   // cleanly: nobody is started again
	gone  bool   // the enumerated crash has taken place
	ends  bool   // and what it left was tried already

	indexed, tidy tidied // reasons of the last index pass and checkpoint at leisure
}

const (
	sidePrimary = iota
	sideMirror
	sideAny // of either: whose it was is not looked at
)

// A block is two pages, and so is a region: each write below touches both, one of them in part.
func tinySetup() setup {
	return setup{mirrors: 1, pages: 4, block: 2 * pageSize, interval: time.Second, onFull: "hold", clients: 8, readers: 1,
		capture: pageSize, spool: 4 * pageSize, blank: true, tiny: true}
}

func (s *setup) tinyPrimary() engine.Sizes {
	return engine.Sizes{Region: 2 * pageSize, Segment: 8 << 10, ReserveMin: 4 << 10, ReserveMax: 8 << 10,
		CaptureMemory: s.capture, CaptureSpool: s.spool, CheckpointBytes: 4 << 10, CheckpointHot: 2,
		IndexSync: 2 * pageSize, ShipBatch: 2 * pageSize, ShipMemory: 1 << 20, OfferBytes: 2 * pageSize, PageOffers: s.size() / 2,
		BulkFlush: 2 * pageSize, SmallRest: pageSize}
}

func (s *setup) tinyMirror() engine.Sizes {
	return engine.Sizes{Region: 2 * pageSize, Segment: 8 << 10, ReserveMin: 4 << 10, ReserveMax: 8 << 10,
		Window: window, StagingSync: 2 * pageSize, Chunk: 2 * pageSize}
}

// dull is a source of which every choice is the first one, and of which Surroundings.Random makes bytes that
// differ all the same.
type dull struct{ n uint64 }

func (d *dull) Uint64() uint64 {
	d.n++
	return (d.n<<8&0xffff00 | d.n*0x9e3779b97f4a7c15>>56) << 32
}

// newScript makes a world in which nobody was ever started.
func newScript() *script {
	dice := &dull{}
	w := &World{idle: &Pool{}, rng: rand.New(dice), clock: time.Unix(1e9, 0), setup: tinySetup()}
	w.trace.digest = fnv.New64a()
	w.oracle = newOracle(w)
	w.primary = &primaryNode{node: w.newNode("primary")}
	m := &mirrorNode{node: w.newNode("mirror"), seen: map[uint64]*cut{}, holes: map[uint64][]blockdev.Extent{}, trusted: true}
	w.mirrors = []*mirrorNode{m}
	for p := range uint64(w.setup.pages) {
		w.primary.disk.Poke(p, w.fill(pageSize))
	}
	return &script{w: w, dice: dice}
}

// fork is a world in which everything that there is in this one lies durably, and nobody runs.
func (s *script) fork(st style) *script {
	w, was, dice := new(World), s.w, &dull{s.dice.n}
	*w = *was
	w.rng = rand.New(dice)
	f := &script{w: w, dice: dice, style: st}
	w.trace = trace{digest: fnv.New64a()}
	w.conns = nil
	w.oracle = was.oracle.fork(w)
	p, m := *was.primary, *was.mirrors[0]
	w.primary, w.mirrors = &p, []*mirrorNode{&m}
	p.volume, p.lines, p.clients, p.busy, p.stops = nil, nil, 0, nil, false
	m.m, m.owns, m.stops = nil, false, false
	m.seen, m.holes, m.coming = maps.Clone(m.seen), maps.Clone(m.holes), nil
	for _, n := range w.nodes() {
		n.w, n.tasks, n.fate, n.checked = w, nil, &fate{script: f}, indexCheck{}
		n.unstained()
		n.failed = false
		n.disk, n.fs, n.index = n.disk.Clone(), n.fs.Clone(), n.index.Clone()
		n.reset()
	}
	return f
}

// fork knows what o does, where nothing is under way.
func (o *oracle) fork(w *World) *oracle {
	f := *o
	f.w, f.cuts, f.used, f.inFlight, f.flushes = w, maps.Clone(o.cuts), maps.Clone(o.used), nil, nil
	f.written, f.doubtful, f.reasons = slices.Clone(o.written), map[uint64]bool{}, nil
	for _, r := range o.reasons {
		f.reasons = append(f.reasons, slices.Clone(r))
	}
	return &f
}

// turn is something that may happen, and whose it is.
type turn struct {
	side int
	do   func(*script) bool
}

// round is the order in which everybody has a turn.
var round = []turn{
	{sidePrimary, func(s *script) bool { return s.tasks(&s.w.primary.node) }},
	{sidePrimary, func(s *script) bool { return s.w.actDrive() }},
	{sidePrimary, func(s *script) bool { return s.w.actRead() }},
	{sidePrimary, func(s *script) bool { return s.w.actOffer() }},
	{sidePrimary, (*script).chore},
	{sideMirror, func(s *script) bool { return s.w.actDown() }},
	{sideMirror, func(s *script) bool { return s.tasks(&s.w.mirrors[0].node) }},
	{sideMirror, func(s *script) bool { return s.w.actOwn() }},
	{sideMirror, func(s *script) bool { return s.session((*World).checks) }},
	{sideMirror, func(s *script) bool { return s.session((*World).places) }},
	{sideMirror, func(s *script) bool { return s.session((*World).compares) }},
	{sideMirror, func(s *script) bool { return s.session((*World).sendOut) }},
	{sidePrimary, func(s *script) bool { return s.w.actUp() }},
	{sidePrimary, func(s *script) bool { return s.w.actConnect() }},
	{sideAny, func(s *script) bool { return s.w.actStop() }},
	{sideAny, func(s *script) bool { return s.w.actPart() }},
	{sideAny, func(s *script) bool { return !s.stops && s.w.actRevive() }},
}

// round gives everybody a turn, and tells whether anybody had use for it.
func (s *script) round() (did bool) {
	for _, t := range round {
		if s.step(t) {
			did = true
		}
		if s.ends {
			return false
		}
	}
	return did
}

func (s *script) step(t turn) (did bool) {
	s.w.step++
	if did = t.do(s); did {
		s.used(t.side)
	}
	if did || s.w.primary.dead || s.w.mirrors[0].dead {
		s.w.after()
	}
	return did
}

func (s *script) used(side int) {
	if side != sideMirror {
		s.turns[sidePrimary]++
	}
	if side != sidePrimary {
		s.turns[sideMirror]++
	}
}

// tasks gives every task of a node its turn.
func (s *script) tasks(n *node) (did bool) {
	for _, t := range append([]*task(nil), n.tasks...) {
		if t.ended || n.dead {
			continue
		}
		s.w.resume(t)
		did = did || t.ended || !t.waits
	}
	return did
}

// session has the mirror's sessions do something.
func (s *script) session(do func(*World, *conn) bool) (did bool) {
	for _, c := range append([]*conn(nil), s.w.conns...) {
		if c.session != nil && !c.gone.m && !s.w.mirrors[0].dead {
			did = do(s.w, c) || did
		}
	}
	return did
}

func (w *World) checks(c *conn) bool   { return c.session.Check() }
func (w *World) places(c *conn) bool   { return w.mirrorTask(c, "place", c.session.Place) }
func (w *World) compares(c *conn) bool { return w.mirrorTask(c, "compare offer", c.session.Offer) }

// chore is what the primary does for itself as soon as there is a reason.
func (s *script) chore() bool {
	p := s.w.primary
	switch v := p.volume; {
	case v == nil || p.stops || p.dead:
		return false
	case v.Comparing():
		return s.w.primaryTask("comparison", func() bool { _, err := v.CompareBlock(); return err == nil })
	case v.CheckpointDue():
		return s.w.primaryTask("checkpoint", func() bool { return v.Checkpoint() == nil })
	}
	return false
}
