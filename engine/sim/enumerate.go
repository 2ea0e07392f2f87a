package sim

import (
	"fmt"
	"slices"
	"strings"
)

// Enumeration tries every crash of short histories: every sequence of operations, in each of them every call of
// either node to its disk or its state directory, with that call carried out and not, as a kill and as a power
// cut, and with everything that may then be left. Behind the crash the process is started again, and all has to
// end with equal sides, under the eyes of the oracle.
//
// A sequence is tried for crashes within its last operation and in what comes behind it. Those before are crashes
// of a shorter sequence: nothing of the rest has happened, and behind a crash no operation follows.
//
//	script.go      the world of a history, its operations, and whose turn it is
//	scriptplay.go  plays operations, up to the end
//	fate.go        has a node die at a call
//	remains.go     what a crash may leave
//	enumerate.go   which histories and crashes there are
type Enumeration struct {
	Limit  int // of subsets of one kind that are all tried
	Counts EnumerationCounts
	starts [situations]*script
}

// EnumerationCounts says what was done.
type EnumerationCounts struct {
	Sequences int
	Points    int // calls at which a node died
	Crashes   int // points times the ways to die there
	Images    int // what these may leave
	Distinct  int // what of it differs
	Runs      int // histories played, those too that only find that all was tried
	Bounded   int // crashes with more subsets than are tried
	Unflushed int // writes, at most, at a crash
	Unsynced  int // changes of files, at most
}

// Add adds what another one did.
func (c *EnumerationCounts) Add(o EnumerationCounts) {
	c.Sequences += o.Sequences
	c.Points += o.Points
	c.Crashes += o.Crashes
	c.Images += o.Images
	c.Distinct += o.Distinct
	c.Runs += o.Runs
	c.Bounded += o.Bounded
	c.Unflushed, c.Unsynced = max(c.Unflushed, o.Unflushed), max(c.Unsynced, o.Unsynced)
}

// NewEnumeration prepares the situations. It is for one goroutine.
func NewEnumeration() (*Enumeration, error) {
	e := &Enumeration{Limit: 1 << 10}
	e.starts[unborn] = newScript()
	step, bulk := e.start(style{begin: unborn}), e.start(style{begin: unborn})
	bulk.style.begin = inBulk
	if err := step.stopped(); err != nil {
		return nil, err
	}
	if err := bulk.opened(); err != nil {
		return nil, err
	}
	e.starts[inStep], e.starts[inBulk] = step, bulk
	return e, bulk.end()
}

func (e *Enumeration) start(st style) *script { return e.starts[st.begin].fork(st) }

// Sequence is one of the histories that are tried.
type Sequence struct {
	style style
	ops   []operation
}

// Length is how many operations it has.
func (q Sequence) Length() int { return len(q.ops) }

func (q Sequence) String() string {
	var names []string
	for _, o := range q.ops {
		names = append(names, o.String())
	}
	return "[" + q.style.String() + "] " + strings.Join(names, ", ")
}

// paces are how many rounds may lie between two operations: so few that they meet, enough that a cut is on its
// way, and all.
var paces = []int{2, 8, settling}

// Sequences lists all histories of up to so many operations, without those that are the same as another one.
func Sequences(depth int) (all []Sequence) {
	var grow func(st style, ops []operation)
	grow = func(st style, ops []operation) {
		if differs(st, ops) {
			all = append(all, Sequence{st, slices.Clone(ops)})
		}
		if len(ops) == depth {
			return
		}
		for o := range operations {
			grow(st, append(ops[:len(ops):len(ops)], o))
		}
	}
	for begin := range situations {
		for _, rounds := range paces {
			grow(style{begin, rounds, false}, nil)
			grow(style{begin, rounds, true}, nil)
		}
	}
	return all
}

// differs says whether a history is none of the others. What is left away is the same, step by step: a style that
// says nothing about this sequence; birth with operations, which is bulk a moment earlier; verify where all is
// settled already or will be in any case.
func differs(st style, ops []operation) bool {
	crashes := slices.Contains(ops, opCrashPrimary) || slices.Contains(ops, opCrashMirror)
	if st.power && !crashes || len(ops) <= 1 && st.rounds != settling || st.begin == unborn && len(ops) > 0 {
		return false
	}
	for i, o := range ops {
		if o == opVerify && (st.rounds == settling || i == len(ops)-1 || i == 0 && st.begin == inStep || i > 0 && ops[i-1] == opVerify) {
			return false
		}
	}
	return true
}

// attempt is one crash of one sequence.
type attempt struct {
	Sequence
	side  int
	what  string // the call
	doom  doom
	which *which // of what it may leave; nil: not known yet
}

func (a *attempt) String() string {
	text := fmt.Sprintf("%v: the %s dies at call %d (%s)", a.Sequence, [2]string{"primary", "mirror"}[a.side], a.doom.call, a.what)
	if a.doom.behind {
		text += ", behind it"
	}
	if a.doom.power {
		text += ", power cut"
	} else {
		text += fmt.Sprintf(", kill, requests that landed %b", a.doom.landed)
	}
	if x := a.which; x != nil {
		text += fmt.Sprintf(", kept: writes %b, changes of files %b, of the index %d, torn %d", x.disk, x.files, x.index, x.torn)
	}
	return text
}

// Try tries all crashes of a sequence. The error tells the first that went wrong.
func (e *Enumeration) Try(q Sequence) error {
	e.Counts.Sequences++
	base := e.start(q.style)
	for _, n := range base.w.nodes() {
		n.fate.record = true
	}
	if err := e.run(base, q.ops); err != nil {
		return fmt.Errorf("%w\n%v, without a crash", err, q)
	}
	for side, n := range base.w.nodes() {
		tried := map[uint64]bool{}
		for _, a := range e.attempts(q, side, n.fate.points, base.marks[side]) {
			e.Counts.Crashes++
			if err := e.attempt(a, tried); err != nil {
				return err
			}
		}
	}
	return nil
}

// run plays a script to its end.
func (e *Enumeration) run(s *script, ops []operation) error {
	e.Counts.Runs++
	err := s.play(ops)
	if ended := s.end(); err == nil {
		err = ended
	}
	return err
}

// attempts are the crashes at the calls of a node from one on. Left away is what another one has: a crash before
// a call where nothing has happened since the call before it; one behind a call where nothing happens before the
// next; and of a power cut the moment that leaves less to choose from, before a change or behind a sync.
func (e *Enumeration) attempts(q Sequence, side int, points []point, from int) (all []*attempt) {
	for i := from; i < len(points); i++ {
		p := points[i]
		e.Counts.Points++
		if p.flying > maxFlying {
			e.Counts.Bounded++
		}
		add := func(d doom) {
			d.call = i + 1
			all = append(all, &attempt{Sequence: q, side: side, what: p.what, doom: d})
		}
		kill := func(behind bool) {
			for landed := range uint64(1) << min(p.flying, maxFlying) {
				add(doom{behind: behind, landed: landed})
			}
		}
		change := p.files && p.changes
		if i == from || points[i-1].outside != p.outside || points[i-1].state != p.state {
			kill(false)
			if !change || p.sync {
				add(doom{power: true})
			}
		}
		if change && !(i+1 < len(points) && points[i+1].files && points[i+1].outside == p.outside && points[i+1].flying == p.flying) {
			kill(true)
		}
		if change && !p.sync {
			add(doom{behind: true, power: true})
		}
	}
	return all
}

const maxFlying = 6 // requests under way of which all subsets may land

// attempt makes a crash, once for everything that it may leave and that was not tried.
func (e *Enumeration) attempt(a *attempt, tried map[uint64]bool) error {
	var fresh []which
	err := e.crash(a, func(d *doom, r *remains) *image {
		e.remaining(d, r, func(x which, digest uint64) {
			if !tried[digest] {
				tried[digest] = true
				fresh = append(fresh, x)
			}
		})
		if len(fresh) == 0 {
			return nil
		}
		a.which = &fresh[0]
		return r.make(fresh[0])
	})
	e.Counts.Distinct += len(fresh)
	for i := 1; err == nil && i < len(fresh); i++ {
		again := *a
		again.which = &fresh[i]
		err = e.crash(&again, func(d *doom, r *remains) *image { return r.make(fresh[i]) })
	}
	return err
}

// crash plays a sequence up to its crash, and on.
func (e *Enumeration) crash(a *attempt, choose func(*doom, *remains) *image) error {
	s := e.start(a.style)
	d := a.doom
	d.choose = choose
	f := s.w.nodes()[a.side].fate
	f.doom = &d
	err := e.run(s, a.ops)
	if err == nil && !f.struck {
		err = fmt.Errorf("there are only %d calls", f.calls)
	}
	if err != nil {
		return fmt.Errorf("%w\n%v", err, a)
	}
	return nil
}

// remaining tells everything that a dead node may have left, and a digest of each and of what there is around.
func (e *Enumeration) remaining(d *doom, r *remains, tell func(which, uint64)) {
	var writes, changes []uint64
	if r.power {
		writes, changes = make([]uint64, len(r.disk.Unflushed())), r.needs()
	}
	e.Counts.Unflushed, e.Counts.Unsynced = max(e.Counts.Unflushed, len(writes)), max(e.Counts.Unsynced, len(changes))
	disks, files := &variants{}, &variants{}
	all := subsets(writes, e.Limit, func(kept uint64) { disks.add(digestDisk(r.diskOf(kept)), which{disk: kept}) })
	for torn := 1; torn <= tearings && len(writes) > 0; torn++ {
		disks.add(digestDisk(r.tornOf(torn)), which{torn: torn})
	}
	if !subsets(changes, e.Limit, func(kept uint64) { files.add(digestFiles(r.filesOf(kept)), which{files: kept}) }) || !all {
		e.Counts.Bounded++
	}
	e.Counts.Images += disks.tried * files.tried * (r.index.Unsynced() + 1)
	for _, disk := range disks.list {
		for _, file := range files.list {
			for index := range r.index.Unsynced() + 1 {
				x := which{disk: disk.disk, torn: disk.torn, files: file.files, index: index}
				tell(x, digestOf([...]uint64{d.outside, uint64(bit(d.power)), disk.digest, file.digest, digestIndex(r.index.Keep(index))}))
			}
		}
	}
}

// variants are the different results of subsets.
type variants struct {
	list  []variant
	tried int
}

type variant struct {
	digest uint64
	which
}

func (v *variants) add(digest uint64, x which) {
	v.tried++
	if !slices.ContainsFunc(v.list, func(o variant) bool { return o.digest == digest }) {
		v.list = append(v.list, variant{digest, x})
	}
}
