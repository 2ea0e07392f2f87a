package sim

import (
	"fmt"
	"hash"
	"runtime/debug"
	"strings"

	"github.com/blkmirror/blkmirror/wire"
)

// trace is what happened: all of it as a digest, and the last of it in words.
type trace struct {
	digest hash.Hash64
	last   [lastNotes]string
	notes  uint64
}

const lastNotes = 100

func (t *trace) add(what string) {
	t.digest.Write([]byte(what))
	t.digest.Write([]byte{0})
}

// note tells what happens, for the digest and for the reader of a failure.
func (w *World) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.trace.add(text)
	text = fmt.Sprintf("%6d  %s", w.step, text)
	if w.Story != nil {
		fmt.Fprintln(w.Story, text)
	}
	w.trace.last[w.trace.notes%lastNotes] = text
	w.trace.notes++
}

// tell writes a message into the story; the digest has its type.
func (w *World) tell(way string, c *conn, m wire.Message) {
	if w.Story == nil {
		return
	}
	if d, ok := m.(*wire.Data); ok {
		m = &wire.Data{Seq: d.Seq, Epoch: d.Epoch, Offset: d.Offset, RawLength: d.RawLength}
	}
	fmt.Fprintf(w.Story, "%6d  %s %d: %v %+v\n", w.step, way, c.id, m.Type(), m)
}

// Failure is a broken invariant.
type Failure struct {
	Seed, Step uint64
	What       string
	Story      []string // the last things that happened, the newest at the end
}

func (f *Failure) Error() string {
	return fmt.Sprintf("%s\nseed %d, step %d: %s", strings.Join(f.Story, "\n"), f.Seed, f.Step, f.What)
}

// failf ends the history: an invariant is broken.
func (w *World) failf(format string, args ...any) {
	f := &Failure{Seed: w.seed, Step: w.step, What: fmt.Sprintf(format, args...)}
	for i := uint64(0); i < lastNotes; i++ {
		if text := w.trace.last[(w.trace.notes+i)%lastNotes]; text != "" {
			f.Story = append(f.Story, text)
		}
	}
	panic(f)
}

// explain turns a panic of the engine into a failure that says where it was.
func (w *World) explain() {
	switch r := recover().(type) {
	case nil:
	case *Failure:
		panic(r)
	default:
		w.failf("panic: %v\n%s", r, debug.Stack())
	}
}

// recovered turns a broken invariant into an error.
func (w *World) recovered(err *error) {
	switch r := recover().(type) {
	case nil:
	case *Failure:
		*err = r
	default:
		panic(fmt.Sprintf("seed %d, step %d: %v", w.seed, w.step, r))
	}
}
