package sim

import (
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest/pagepool"
	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/engine/ship"
)

// World is one history: a primary, its mirrors, the lines between them, their clients, and the seed by which
// everything is chosen.
type World struct {
	// Story, where it is set, gets everything that happens, in words.
	Story io.Writer

	seed  uint64
	setup setup
	rng   *rand.Rand
	clock time.Time
	step  uint64

	primary     *primaryNode
	mirrors     []*mirrorNode
	conns       []*conn
	connections int
	running     *task // whose turn it is; nil: the world's own
	focus       int64 // where clients write most
	writes      uint64
	spite       *rand.Rand       // of the setup's stubborn faults: what else happens does not depend on it
	care        *rand.Rand       // of what a person looks for, likewise
	inspects    bool             // nothing goes on but that
	hurt        map[[2]int64]int // payloads damaged on the wire, by mirror and offset
	former      [8]clientOp      // some writes, to be made again
	quiet       bool             // nothing is broken any more

	oracle   *oracle
	coverage *Coverage
	hits     []hit // faults of this step
	pool     *pagepool.Pool
	idle     *Pool
	trace    trace
}

// Pool is memory that histories use one after the other; the zero value is ready. What a history left is gone
// when the next one begins.
type Pool struct {
	pages    pagepool.Pool
	routines []*routine // that have nothing to do
}

// New makes the history of a seed, up to its first step. Both coverage and pool may be nil.
func New(seed uint64, coverage *Coverage, pool *Pool) *World {
	if pool == nil {
		pool = &Pool{}
	}
	pool.pages.Reset()
	w := &World{pool: &pool.pages, idle: pool, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x73696d)), clock: time.Unix(1e9, 0), coverage: coverage, hurt: map[[2]int64]int{}}
	w.trace.digest = fnv.New64a()
	w.setup = newSetup(w.rng)
	w.setup.worn = seed%stubbornShare == 11
	w.setup.stubborn, w.spite = seed%stubbornShare == 7, rand.New(rand.NewPCG(seed, 0x7370697465))
	w.setup.careful, w.care = careful(seed), rand.New(rand.NewPCG(seed, 0x63617265))
	w.oracle = newOracle(w)
	w.primary = &primaryNode{node: w.newNode("primary")}
	w.primary.attach()
	for i := range w.setup.mirrors {
		m := &mirrorNode{node: w.newNode(fmt.Sprintf("mirror %d", i)), nth: i, seen: map[uint64]*cut{}, holes: map[uint64][]blockdev.Extent{}, trusted: true}
		m.attach()
		w.mirrors = append(w.mirrors, m)
	}
	w.furnish()
	for _, n := range w.nodes() {
		info := n.disk.Info()
		info.CheapZero, info.KnowsHoles = w.rng.IntN(4) > 0, w.rng.IntN(4) > 0
		n.disk.SetInfo(info)
	}
	w.openPrimary()
	for _, m := range w.mirrors {
		w.openMirror(m)
	}
	return w
}

// furnish gives the primary something to begin with, and now and then a mirror something else.
func (w *World) furnish() {
	for p := range uint64(w.setup.pages) {
		if w.rng.IntN(4) == 0 {
			w.primary.disk.Poke(p, w.fill(pageSize))
		}
		for _, m := range w.mirrors {
			if !w.setup.blank && w.rng.IntN(8) == 0 {
				m.disk.Poke(p, w.fill(pageSize))
			}
		}
	}
}

// Run takes so many steps, then ends every fault and waits until all mirrors are equal to the primary. The
// error tells which invariant broke, with the seed, the step and what happened before.
func (w *World) Run(steps int) (err error) {
	defer w.recovered(&err)
	defer w.explain()
	if w.setup.warm {
		w.calm()
		w.quiet = false
	}
	for _, m := range w.mirrors {
		if w.setup.tight && w.setup.trouble > 0 {
			m.room = w.littleRoomNow()
		}
	}
	for range steps {
		w.take()
	}
	w.calm()
	if w.setup.careful {
		w.inspect()
	}
	w.close()
	return nil
}

// close ends all processes, so that no coroutine is left that would keep the history in memory.
func (w *World) close() {
	for _, n := range w.nodes() {
		n.die()
	}
	w.bury()
}

// Digest is a number that two runs of one seed have in common, whatever the machine.
func (w *World) Digest() uint64 { return w.trace.digest.Sum64() }

// Steps is how many were taken.
func (w *World) Steps() uint64 { return w.step }

// action is something that may happen, with its weight.
type action struct {
	weight int
	do     func(*World) bool
}

// Work is what moves things on. Where one has nothing to do the next one is asked.
var work = []action{
	{20, (*World).actTask},
	{5, (*World).actClient},
	{9, (*World).actDrive},
	{10, (*World).actRead},
	{4, (*World).actOffer},
	{14, (*World).actDown},
	{12, (*World).actUp},
	{14, (*World).actOwn},
	{14, (*World).actSession},
	{5, (*World).actPrimary},
	{4, (*World).actConnect},
	{4, (*World).actPart},
	{2, (*World).actStop},
	{3, (*World).actRevive},
}

// Asides happen now and then by themselves, and time passes where there is nothing else to do.
var asides = []action{
	{3, (*World).actTicks},
	{16, (*World).actClock},
	{3, (*World).actPerson},
}

const asideShare = 5 // of a hundred steps

var workWeight, asideWeight = weigh(work), weigh(asides)

func weigh(list []action) (sum int) {
	for _, a := range list {
		sum += a.weight
	}
	return sum
}

// take takes one step: a fault, or something ordinary that has something to do, chosen by weight.
func (w *World) take() {
	w.step++
	if w.step%16 == 0 {
		w.states(nil) // as they are before a fault
	}
	if w.step%32 == 0 {
		w.actStubborn()
	}
	if w.setup.careful && w.step%16 == 0 {
		w.actCare()
	}
	switch {
	case !w.quiet && w.rng.IntN(1000) < w.setup.trouble && w.disturb():
	case w.rng.IntN(100) < asideShare:
		w.pick(asides, asideWeight)
	case w.pick(work, workWeight):
	default:
		w.actClock()
	}
	w.after()
}

// pick does one of a list, chosen by weight, or the first behind it that has something to do.
func (w *World) pick(list []action, weight int) bool {
	r, at := w.rng.IntN(weight), 0
	for r >= list[at].weight {
		r -= list[at].weight
		at++
	}
	for i := range list {
		if list[(at+i)%len(list)].do(w) {
			return true
		}
	}
	return false
}

// after ends what died in this step, and has the oracle look at everything.
func (w *World) after() {
	w.bury()
	w.sweep()
	w.countHits()
	w.oracle.check()
}

// bury brings the machines of dead processes into the state in which the next ones find them.
func (w *World) bury() {
	if w.primary.dead {
		w.primary.died()
	}
	for _, m := range w.mirrors {
		if m.dead {
			m.died()
		}
	}
}

// actTask gives one of the tasks under way its turn.
func (w *World) actTask() bool {
	n := len(w.primary.tasks)
	for _, m := range w.mirrors {
		n += len(m.tasks)
	}
	if n == 0 {
		return false
	}
	i := w.rng.IntN(n)
	for k := range n {
		if t := w.taskAt((i + k) % n); t.until <= w.step {
			w.resume(t)
			return true
		}
	}
	return false
}

func (w *World) taskAt(i int) *task {
	if i < len(w.primary.tasks) {
		return w.primary.tasks[i]
	}
	i -= len(w.primary.tasks)
	for _, m := range w.mirrors {
		if i < len(m.tasks) {
			return m.tasks[i]
		}
		i -= len(m.tasks)
	}
	return nil
}

// actClock lets time pass.
func (w *World) actClock() bool {
	d := time.Duration(w.rng.Int64N(int64(400 * time.Millisecond)))
	if w.rng.IntN(16) == 0 {
		d = time.Duration(w.rng.Int64N(int64(70 * time.Second)))
	}
	w.clock = w.clock.Add(d)
	return true
}

func (w *World) now() time.Time { return w.clock }

// actRevive starts a process that is down, and ends one that says that it has to be started anew.
func (w *World) actRevive() bool {
	switch v := w.primary.volume; {
	case v == nil:
		return w.openPrimary()
	case v.Failure() != nil && w.rng.IntN(10) == 0:
		w.note("the primary is started anew: %v", v.Failure())
		return w.crash(&w.primary.node, false)
	}
	for _, m := range w.mirrors {
		if m.m == nil {
			return w.openMirror(m)
		}
	}
	return false
}

// actPerson has somebody ask for something.
func (w *World) actPerson() bool {
	v := w.primary.volume
	if v == nil || w.primary.stops {
		return false
	}
	switch w.rng.IntN(6) {
	case 0, 1:
		w.cover(coverAction, "cut asked for")
		w.note("a cut is asked for")
		v.Cut()
	case 2:
		if w.quiet {
			return false
		}
		if w.rng.IntN(2) == 0 {
			w.setup.interval = intervals[w.rng.IntN(len(intervals))]
			w.cover(coverAction, "new settings")
			v.Tune(w.config())
			return true
		}
		w.cover(coverAction, "pause")
		w.note("pause")
		v.Pause()
	default:
		overwrite := ""
		if w.quiet || w.rng.IntN(3) == 0 {
			overwrite = w.refused()
		}
		if w.quiet && overwrite == "" && !v.Facts().Paused {
			return false // it has to go on by itself
		}
		w.cover(coverAction, "resume")
		w.note("resume, overwrite %q", overwrite)
		v.Resume(overwrite)
	}
	return true
}

// refused is a mirror with which nothing moves until a person decides.
func (w *World) refused() string {
	for i, l := range w.primary.lines {
		if l.shipper.State().Phase == ship.Refused {
			return w.setup.name(i)
		}
	}
	return ""
}

// pickConn chooses one of the connections that fit.
func (w *World) pickConn(fits func(*conn) bool) *conn {
	n := len(w.conns)
	if n == 0 {
		return nil
	}
	at := w.rng.IntN(n)
	for i := range n {
		if c := w.conns[(at+i)%n]; fits(c) {
			return c
		}
	}
	return nil
}

// sweep forgets connections that both sides have done with.
func (w *World) sweep() {
	kept := w.conns[:0]
	for _, c := range w.conns {
		if !c.gone.p || !c.gone.m || c.attaches || c.placing > 0 || c.reading > 0 {
			kept = append(kept, c)
		}
	}
	clear(w.conns[len(kept):])
	w.conns = kept
}

// calm ends all faults and runs until every mirror holds what the primary does.
func (w *World) calm() {
	w.quiet = true
	w.note("nothing is broken any more")
	w.repair()
	for range w.setup.patience {
		if w.step++; w.settled() {
			return
		}
		w.step--
		w.take()
	}
	w.failf("liveness: after %d steps without faults the mirrors are not equal: %s", w.setup.patience, w.lacking())
}

func (w *World) config() engine.VolumeConfig {
	c := engine.VolumeConfig{Path: "memory", Interval: w.setup.interval, BlockSize: int(w.setup.block), OnStagingFull: w.setup.onFull, OnReboot: "compare"}
	for i := range w.mirrors {
		c.Mirrors = append(c.Mirrors, engine.MirrorConfig{Name: w.setup.name(i), Address: "-"})
	}
	return c
}
