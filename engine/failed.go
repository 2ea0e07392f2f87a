package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/blkmirror/blkmirror/journal"
)

// failedVolume stands for a primary that could not be opened: it says why, and a person has it tried again
// with `resume`, or has a damaged journal set aside with `rebuild`.
type failedVolume struct {
	dir  string
	open func() (liveVolume, error)
	swap func(liveVolume)

	mu  sync.Mutex
	err *Error
}

func (f *failedVolume) set(err error) {
	var own *Error
	if !errors.As(err, &own) {
		own = &Error{Kind: KindDevice, Op: "open volume", On: f.dir, Err: err}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = own
}

func (f *failedVolume) get() *Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *failedVolume) fill(v *VolumeStatus) {
	e := f.get()
	v.Role, v.State, v.Error, v.Next = "primary", "failed", e.Error(), e.Next
	v.Mirrors = []MirrorStatus{}
}

func (f *failedVolume) cut(context.Context, bool) (uint64, error) { return 0, f.refusal("cut") }
func (f *failedVolume) pause() error                              { return f.refusal("pause") }

func (f *failedVolume) refusal(op string) error {
	e := f.get()
	return &Error{Kind: KindState, Op: op, On: f.dir, Err: fmt.Errorf("the volume failed: %w", e.Err), Next: e.Next}
}

// resume tries to open it again.
func (f *failedVolume) resume(string) error { return f.retry() }

// rebuild sets a damaged journal aside and starts a new one, with every page in doubt. A journal that is in
// order, or another version's, is not touched.
func (f *failedVolume) rebuild() error {
	e := f.get()
	if !errors.Is(e, journal.ErrDamaged) && !errors.Is(e, journal.ErrKind) {
		return &Error{Kind: KindState, Op: "rebuild", On: f.dir, Err: fmt.Errorf("the journal is not damaged: %w", e.Err), Next: e.Next}
	}
	to, err := journal.SetAsideVolume(journal.OS, f.dir)
	if err != nil {
		return journalError("set journal aside", f.dir, err)
	}
	live, err := f.open()
	if err == nil {
		f.swap(live)
		err = live.rebuild()
	}
	if err != nil {
		f.set(err)
		return fmt.Errorf("the old journal is at %s: %w", to, err)
	}
	return nil
}

func (f *failedVolume) retry() error {
	live, err := f.open()
	if err != nil {
		f.set(err)
		return err
	}
	f.swap(live)
	return nil
}

func (f *failedVolume) tune(VolumeConfig) {}

func (f *failedVolume) stop(context.Context) error { return nil }
