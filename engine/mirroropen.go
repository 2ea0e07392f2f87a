package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/replica"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// openedState is what was found.
type openedState struct {
	facts  journal.VolumeFacts
	staged *replica.Staged // in part; nil: nothing
}

// openStore opens what an earlier process left, in this order: the journal, which says what there should be;
// the device; the index; staging. The store is nil where the volume has no role yet.
func (m *mirror) openStore() (*mirrorStore, openedState, error) {
	var state openedState
	names, err := m.fs.ReadDir(m.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !slices.Contains(names, "journal") {
		return nil, state, nil
	}
	if err != nil {
		return nil, state, deviceError("look at state folder", m.dir, err)
	}
	s := m.newStore()
	found, err := s.openLog()
	if err != nil || !found.Found {
		s.close()
		return nil, state, err
	}
	if state.facts = found.Facts; state.facts.Role != journal.RoleMirror {
		s.close()
		return nil, state, &Error{Kind: KindState, Op: "open mirror", On: m.name, Err: errors.New("it is a primary here"),
			code: wire.CodeState, Next: "say so in its configuration"}
	}
	m.update(func(v *mirrorView) { v.facts = state.facts })
	if state.facts.Mirror.ReadOnly.Class != 0 {
		m.unflag()
	}
	if err = s.openDevice(state.facts.Size); err == nil {
		err = s.openIndex(&state.facts)
	}
	if err == nil {
		err = s.begin(&state.facts)
	}
	if err == nil {
		state.staged, err = s.openStaging(&state.facts)
	}
	if err != nil {
		s.close()
		return nil, state, err
	}
	return s, state, nil
}

func (m *mirror) newStore() *mirrorStore {
	s := &mirrorStore{m: m}
	s.ctx, s.cancel = context.WithCancel(m.aborted)
	return s
}

// createStore makes the store of a mirror whose first primary attaches.
func (m *mirror) createStore(a *wire.Attach) (*mirrorStore, error) {
	if m.prepare != nil {
		created, err := m.prepare(m.config.Path, a.Size)
		if err != nil {
			return nil, err
		}
		if created {
			m.log(fmt.Sprintf("made %s with %d bytes", m.config.Path, a.Size))
		}
	}
	s := m.newStore()
	err := s.openDevice(a.Size)
	if err == nil {
		err = deviceOr("make state folder", m.dir, m.fs.Mkdir(m.stagingDir()))
	}
	if err == nil {
		_, err = s.openLog()
	}
	facts := journal.VolumeFacts{Size: a.Size, BlockSize: a.BlockSize, Role: journal.RoleMirror}
	if err == nil {
		err = s.openIndex(&facts)
	}
	if err == nil {
		err = m.dropAllStaging()
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *mirrorStore) openLog() (*journal.VolumeState, error) {
	log, state, err := journal.OpenVolume(s.m.fs, s.m.dir, s.m.volumeLog)
	if err != nil {
		return nil, deviceError("open journal", s.m.dir, err)
	}
	s.log = log
	return state, nil
}

// openDevice opens it for this mirror alone.
func (s *mirrorStore) openDevice(size int64) error {
	m := s.m
	dev, err := m.device(m.config.Path, blockdev.Options{Write: true, Warn: warner(m.log)})
	if err != nil {
		return deviceError("open mirror", m.config.Path, err)
	}
	s.dev = dev
	if own := dev.Info().Size; own < size {
		return &Error{Kind: KindState, Op: "open mirror", On: m.config.Path, code: wire.CodeSmaller,
			Err: fmt.Errorf("it has %d bytes, the volume has %d", own, size), Next: nextByCode[wire.CodeSmaller]}
	} else if own > size && m.core == nil {
		m.log(fmt.Sprintf("%s is larger than the volume: the last %d bytes stay as they are", m.config.Path, own-size))
	}
	return nil
}

// openIndex opens the index, which after an unclean end in bulk is worth nothing.
func (s *mirrorStore) openIndex(f *journal.VolumeFacts) error {
	s.geometry = geometry{size: f.Size, blockSize: int64(f.BlockSize)}
	s.index = &mirrorIndex{geometry: s.geometry, dir: s.m.indexDir(), open: s.m.index, remove: s.m.removeIndex, warn: s.m.log, dropped: &s.m.indexDropped}
	return s.index.begin(f.Mirror.InPlace && !f.Clean)
}

// deviceMark is what the journal keeps of the device: while the mirror runs, what it is; after a clean stop
// also whether it was written to since.
type deviceMark struct {
	blockdev.Facts
}

// begin makes durable that the device is in use from here on, and finds out whether a stranger may have
// written to it since we did. If so, the journal has no boot until the comparison has come to its end.
func (s *mirrorStore) begin(f *journal.VolumeFacts) error {
	boot, err := s.m.bootID()
	if err != nil {
		return deviceError("look at this machine", s.m.dir, err)
	}
	now, err := s.dev.Facts()
	if err != nil {
		return deviceError("look at device", s.m.config.Path, err)
	}
	s.bootID = boot
	if f.UUID != [16]byte{} && s.m.config.OnReboot != "trust" {
		s.suspicion = suspicion(f, boot, now)
	}
	f.Clean, f.BootID = false, boot
	if s.suspicion != "" {
		f.BootID = ""
	}
	if f.Device, err = json.Marshal(deviceMark{now}); err != nil {
		return fmt.Errorf("encode facts of %s: %w", s.m.config.Path, err)
	}
	if f.UUID == [16]byte{} {
		return nil // journaled with what the primary brings
	}
	return deviceOr("note start", s.m.dir, s.log.SetFacts(*f))
}

// suspicion says why somebody else may have written to the device; "": nobody has.
func suspicion(f *journal.VolumeFacts, boot string, now blockdev.Facts) string {
	var then deviceMark
	if f.BootID != boot {
		return "this machine was started anew, or the last comparison was cut off"
	}
	if json.Unmarshal(f.Device, &then) != nil {
		return "what it was when it was closed is not known"
	}
	if f.Clean && !now.Unchanged(then.Facts) {
		return "it was written to while it was closed"
	}
	same := now.DiskSeq == then.DiskSeq && now.Rdev == then.Rdev && now.Dev == then.Dev && now.Ino == then.Ino && now.Btime == then.Btime
	if !f.Clean && !same {
		return "it is another device than it was"
	}
	return ""
}

// openStaging opens what is committed and not applied, and what is staged in part on the last cut. All else
// is no use to anybody.
func (s *mirrorStore) openStaging(f *journal.VolumeFacts) (*replica.Staged, error) {
	dir := s.m.stagingDir()
	if err := s.m.fs.Mkdir(dir); err != nil {
		return nil, deviceError("make staging folder", dir, err)
	}
	for _, epoch := range f.Mirror.Epochs {
		st, err := journal.OpenStaging(s.m.fs, dir, epoch, s.m.staging)
		if err != nil {
			return nil, deviceError("open committed staging", dir, err)
		}
		s.sealed = append(s.sealed, st)
		if _, sealed := st.Sealed(); !sealed {
			return nil, deviceError("open committed staging", dir, fmt.Errorf("epoch %d lacks its end: %w", epoch, journal.ErrDamaged))
		}
	}
	epochs, err := journal.ListStaging(s.m.fs, dir)
	if err != nil {
		return nil, deviceError("list staging", dir, err)
	}
	slices.Reverse(epochs)
	var staged *replica.Staged
	for _, epoch := range epochs {
		if slices.Contains(f.Mirror.Epochs, epoch) {
			continue
		}
		if staged == nil && epoch > f.Mirror.Committed {
			if staged = s.openPartial(f, epoch); staged != nil {
				continue
			}
		}
		if err := journal.RemoveStaging(s.m.fs, dir, epoch); err != nil {
			return nil, deviceError("remove staging", dir, err)
		}
	}
	return staged, nil
}

// openPartial opens a staging that is not committed, if it may still be gone on with.
func (s *mirrorStore) openPartial(f *journal.VolumeFacts, epoch uint64) *replica.Staged {
	st, err := journal.OpenStaging(s.m.fs, s.m.stagingDir(), epoch, s.m.staging)
	if err != nil {
		s.m.log(fmt.Sprintf("what was staged for epoch %d is dropped: %v", epoch, err))
		return nil
	}
	h := st.Header()
	if h.Volume != f.UUID || h.Generation != f.Generation.ID || h.Base != f.Mirror.Committed || h.Size != f.Size || h.BlockSize != f.BlockSize {
		st.Close()
		return nil
	}
	st.Unseal()
	s.partial = st
	p := st.Point()
	return &replica.Staged{Incarnation: h.Incarnation, Base: h.Base, Number: h.Epoch, Seq: p.Seq, Chain: wire.ChainAt(p.Chain, p.Records)}
}

// dropAllStaging removes every staging file; nobody has one open.
func (m *mirror) dropAllStaging() error {
	if err := m.fs.Mkdir(m.stagingDir()); err != nil {
		return err
	}
	epochs, err := journal.ListStaging(m.fs, m.stagingDir())
	for _, epoch := range epochs {
		if err == nil {
			err = journal.RemoveStaging(m.fs, m.stagingDir(), epoch)
		}
	}
	return err
}

// deviceOr is deviceError where there is an error.
func deviceOr(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return deviceError(op, path, err)
}

// tune takes changed settings up.
func (m *mirror) tune(c VolumeConfig) {
	m.readBack.Store(c.VerifyWrites == "readback")
	m.scrubEvery.Store(int64(c.scrubEvery()))
	m.call(func() { m.config.StagingLimit, m.config.OnReboot = c.StagingLimit, c.OnReboot })
}
