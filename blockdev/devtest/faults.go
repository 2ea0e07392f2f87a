package devtest

import (
	"fmt"
	"slices"
	"sync"

	"github.com/blkmirror/blkmirror/blockdev"
)

// Op is a kind of request.
type Op int

const (
	OpRead Op = iota + 1
	OpWrite
	OpFlush
	OpZero
	OpDiscard
	OpMap // NextData
)

var opNames = [...]string{OpRead: "read", OpWrite: "write", OpFlush: "flush", OpZero: "zero", OpDiscard: "discard", OpMap: "map"}

func (o Op) String() string {
	if o < OpRead || o > OpMap {
		return fmt.Sprintf("Op(%d)", int(o))
	}
	return opNames[o]
}

// Call is one request as it enters.
type Call struct {
	Op     Op
	Offset int64
	Length int64
	Nth    int // among the requests of this kind, from 1
}

// Rule says which requests an Effect meets.
type Rule struct {
	Op     Op              // 0: of any kind
	When   func(Call) bool // nil: always
	Times  int             // how often at most; 0: no limit
	Effect Effect
}

// Nth matches the nth request of its kind, counted from 1 and from the making of the Faults.
func Nth(n int) func(Call) bool { return func(c Call) bool { return c.Nth == n } }

// From matches the nth request of its kind and all later ones.
func From(n int) func(Call) bool { return func(c Call) bool { return c.Nth >= n } }

// Touches matches requests that share a byte with [off, off+n).
func Touches(off, n int64) func(Call) bool {
	return func(c Call) bool { return c.Offset < off+n && off < c.Offset+c.Length }
}

// Faults is a Device that does to another one what its rules say. The first rule that matches decides; a
// request that none matches passes through. A failed flush is sticky, as the contract of Device asks.
//
//	dev := devtest.NewFaults(devtest.NewMem(1<<20, 512, 1))
//	dev.Inject(devtest.Rule{Op: devtest.OpWrite, When: devtest.Nth(3), Effect: devtest.Fail(syscall.EIO)})
//	... run ...
//	if dev.Hits("fail") != 1 { t.Fatal("the fault was not met") }
type Faults struct {
	blockdev.Device

	mu       sync.Mutex
	rules    []*Rule
	calls    map[Op]int
	hits     map[string]int
	flushErr error
}

// NewFaults wraps a device. Without rules it changes nothing.
func NewFaults(dev blockdev.Device) *Faults {
	return &Faults{Device: dev, calls: map[Op]int{}, hits: map[string]int{}}
}

// Inject adds a rule behind those there are.
func (f *Faults) Inject(r Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, &r)
}

// Clear drops all rules. Counts stay, and so does a failed flush.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
}

// Calls is the number of requests of a kind so far.
func (f *Faults) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Hits is how often an effect took place: "fail", "fail late", "short", "flip", "misdirect", "lose", "hook".
func (f *Faults) Hits(effect string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hits[effect]
}

// meet counts a request and finds the effect of the rule that it meets.
func (f *Faults) meet(c *Call) Effect {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[c.Op]++
	c.Nth = f.calls[c.Op]
	for i, r := range f.rules {
		if r.Op != 0 && r.Op != c.Op || r.When != nil && !r.When(*c) {
			continue
		}
		f.hits[r.Effect.name]++
		if r.Times > 0 {
			if r.Times--; r.Times == 0 {
				f.rules = slices.Delete(slices.Clone(f.rules), i, i+1)
			}
		}
		return r.Effect
	}
	return Effect{run: func(r *request) (int, error) { return r.pass() }}
}

// ReadAt implements Device.
func (f *Faults) ReadAt(p []byte, off int64) (int, error) {
	return f.run(&request{Call: Call{Op: OpRead, Offset: off, Length: int64(len(p))}, p: p})
}

// WriteAt implements Device.
func (f *Faults) WriteAt(p []byte, off int64) (int, error) {
	return f.run(&request{Call: Call{Op: OpWrite, Offset: off, Length: int64(len(p))}, p: p})
}

// Flush implements Device.
func (f *Faults) Flush() error {
	f.mu.Lock()
	failed := f.flushErr
	f.mu.Unlock()
	if failed != nil {
		return failed
	}
	_, err := f.run(&request{Call: Call{Op: OpFlush}})
	if err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.flushErr == nil {
			f.flushErr = err
		}
		return f.flushErr
	}
	return nil
}

// Zero implements Device.
func (f *Faults) Zero(off, n int64, mayFree bool) error {
	_, err := f.run(&request{Call: Call{Op: OpZero, Offset: off, Length: n}, mayFree: mayFree})
	return err
}

// Discard implements Device.
func (f *Faults) Discard(off, n int64) error {
	_, err := f.run(&request{Call: Call{Op: OpDiscard, Offset: off, Length: n}})
	return err
}

// NextData implements Device.
func (f *Faults) NextData(off int64) (blockdev.Extent, error) {
	r := &request{Call: Call{Op: OpMap, Offset: off, Length: max(0, f.Info().Size-off)}}
	_, err := f.run(r)
	return r.found, err
}

func (f *Faults) run(r *request) (int, error) {
	r.dev = f.Device
	return f.meet(&r.Call).run(r)
}
