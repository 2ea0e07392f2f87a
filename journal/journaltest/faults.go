package journaltest

import (
	"errors"
	"fmt"
)

// Op is a kind of operation on a MemFS.
type Op int

// The kinds of operations.
const (
	OpAny Op = iota // every kind: what faults are armed for and counts are asked of, never what is done
	OpCreate
	OpOpen
	OpRename
	OpRemove
	OpMkdir
	OpReadDir
	OpSyncDir
	OpRead
	OpWrite
	OpTruncate
	OpSync
	OpAllocate
	OpPunch
	opKinds
)

var opNames = [opKinds]string{"any", "create", "open", "rename", "remove", "mkdir", "readdir", "syncdir",
	"read", "write", "truncate", "sync", "allocate", "punch"}

func (o Op) String() string { return opNames[o] }

// ErrShort as a fault makes a write end early without an error of its own.
var ErrShort = errors.New("short write")

// ErrDead is what a file system answers whose process is gone.
var ErrDead = errors.New("the file system is dead: its process ended")

// ErrLast from a Hook has the operation take effect, and kills the file system before it is answered.
var ErrLast = errors.New("the last operation")

// Kill ends the process that uses the file system: every later call fails with ErrDead and does nothing. What
// tests ask, and what comes of it, stays.
func (m *MemFS) Kill() { m.dead.Store(true) }

// begin takes the lock and says what happens to an operation. With an error it has no effect, save that a
// failed write and a failed sync have some, if the file system lives.
func (m *MemFS) begin(op Op, path string) error {
	var hooked error
	if m.Hook != nil && !m.dead.Load() {
		hooked = m.Hook(op, path)
	}
	m.mu.Lock()
	if m.dead.Load() {
		return fmt.Errorf("%s %s: %w", op, path, ErrDead)
	}
	err := m.faults.next(op, path)
	switch {
	case err != nil || hooked == nil:
		return err
	case errors.Is(hooked, ErrLast):
		m.last = true
		return nil
	}
	return fmt.Errorf("%s %s: injected: %w", op, path, hooked)
}

// end releases the lock. The last operation ends with the process.
func (m *MemFS) end(err *error) {
	if m.last {
		m.last = false
		m.dead.Store(true)
		*err = ErrDead
	}
	m.mu.Unlock()
}

// faults counts operations and fails those that it was told to.
type faults struct {
	counts [opKinds]int
	armed  []fault
	struck int
}

type fault struct {
	op  Op
	at  int
	err error
}

// next counts an operation and returns the fault that is due on it.
func (f *faults) next(op Op, path string) error {
	any, same := f.counts[OpAny], f.counts[op]
	f.counts[OpAny]++
	f.counts[op]++
	for _, a := range f.armed {
		if a.op == OpAny && a.at == any || a.op == op && a.at == same {
			f.struck++
			return fmt.Errorf("%s %s: injected: %w", op, path, a.err)
		}
	}
	return nil
}

// Fail makes the operation with this index among its kind, counted from 0 since New, fail with err. A
// write that fails has written its first half.
func (m *MemFS) Fail(op Op, index int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults.armed = append(m.faults.armed, fault{op, index, err})
}

// Heal removes all faults that have not struck.
func (m *MemFS) Heal() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults.armed = nil
}

// Count is how many operations of a kind there were.
func (m *MemFS) Count(op Op) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.faults.counts[op]
}

// Struck is how many faults have struck.
func (m *MemFS) Struck() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.faults.struck
}
