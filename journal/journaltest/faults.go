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
