package engine

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/engine/track"
	"github.com/blkmirror/blkmirror/journal"
)

// openPrimary recovers a volume: when it returns, every mirror's needs are known, and what is not known to
// be in order is in doubt. Nothing is exported or sent before start.
func openPrimary(d primaryDeps) (*primary, error) {
	d = d.withDefaults()
	p := &primary{name: d.name, fs: d.fs, dir: d.dir, log: d.log, node: d.node, gate: d.gate, now: d.now, wait: d.wait, sizes: d.sizes,
		incarnation: newIncarnation(d.random), checkpointed: d.now(), disconnects: d.disconnects, door: d.door, probeEvery: d.probeEvery, renewAfter: d.renewAfter}
	p.config.Store(&d.config)
	var err error
	if p.release, err = d.lock(d.dir); err != nil {
		return nil, deviceError("lock folder", d.dir, err)
	}
	if p.dev, err = d.open(d.config.Path, blockdev.Options{Write: true, Warn: warner(d.log)}); err != nil {
		p.release()
		return nil, deviceError("open volume", d.config.Path, err)
	}
	log, state, err := journal.OpenVolume(d.fs, d.dir, d.journal)
	if err == nil {
		p.journal = log
		if err = p.recover(d, state); err != nil {
			if p.index != nil {
				p.index.index.close() // what went wrong is known
			}
			log.Close()
		}
	}
	if err != nil {
		p.dev.Close()
		p.release()
		return nil, journalError("open journal", d.dir, err)
	}
	return p, nil
}

func newIncarnation(random func([]byte)) uint64 {
	var b [8]byte
	for {
		random(b[:])
		if n := binary.LittleEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

// recover brings facts and sets into the state that the journal and the device prove.
func (p *primary) recover(d primaryDeps, state *journal.VolumeState) error {
	names, err := d.identities(d.config.Path)
	if err == nil {
		p.devices = hashNames(names)
	} else if !errors.Is(err, os.ErrNotExist) { // a device of a test has no path
		return deviceError("open volume", d.config.Path, err)
	}
	blob, err := deviceFacts(p.dev)
	if err != nil {
		return deviceError("look at", d.config.Path, err)
	}
	f := state.Facts
	if !state.Found {
		if f, err = newPrimaryFacts(d.config, p.dev.Info().Size, d.random); err != nil {
			return err
		}
	}
	switch size := p.dev.Info().Size; {
	case f.Role != journal.RolePrimary:
		return &Error{Kind: KindState, Op: "open volume", On: p.name, Err: errors.New("this node is its mirror"),
			Next: "leave --export and --mirror away, or promote it"}
	case size < f.Size:
		return &Error{Kind: KindState, Op: "open volume", On: d.config.Path,
			Err:  fmt.Errorf("the device has %d bytes, the volume %d: it shrank or is another", size, f.Size),
			Next: "give it its size back"}
	case size > f.Size:
		p.log(fmt.Sprintf("volume %s: the device has %d bytes more than the volume, they are not used", p.name, size-f.Size))
	}
	p.size, p.blockSize = f.Size, int64(f.BlockSize)
	boot, err := d.bootID()
	if err != nil {
		return deviceError("read boot id", p.name, err)
	}
	suspicion := ""
	if state.Found {
		suspicion = foreignWrites(&f, blob, boot, d.config.OnReboot == "trust")
	}
	p.facts.open(f, p.journal)
	p.tracker = track.NewTrackerOf(pagesOf(p.size), p.pagesOfRegion(), marker{p}, d.now)
	if err := p.openIndex(d); err != nil {
		return err
	}
	for _, m := range d.config.Mirrors {
		p.restore(p.addMirror(m), state)
	}
	p.path, err = track.NewPath(track.Config{Device: p.dev, Size: p.size, BlockSize: int(p.blockSize), Tracker: p.tracker, Observer: p.observer(),
		ZeroPiece: p.sizes.ZeroPiece, Wait: p.wait})
	if err != nil {
		return &Error{Kind: KindState, Op: "open volume", On: d.config.Path, Err: err}
	}
	if err := p.restoreIndex(state, suspicion); err != nil {
		return err
	}
	// From here on this process may write: whoever finds the journal next must not take it for clean.
	err = p.facts.change(func(f *journal.VolumeFacts) {
		f.Clean, f.BootID, f.Device, f.Mirror.Unproven = false, boot, blob, p.compare != nil
		f.Mirrors = slices.DeleteFunc(f.Mirrors, func(m journal.MirrorFacts) bool { // what left the configuration
			return !slices.ContainsFunc(d.config.Mirrors, func(c MirrorConfig) bool { return c.Name == m.Name })
		})
	})
	if err != nil {
		return journalError("write journal", p.dir, err)
	}
	return nil
}

// openIndex opens the index and makes it a consumer. One that cannot be had costs comparisons later.
func (p *primary) openIndex(d primaryDeps) error {
	index := &mirrorIndex{geometry: geometry{size: p.size, blockSize: p.blockSize}, dir: filepath.Join(p.dir, "index"),
		open: d.index, remove: d.unindex, warn: p.log, dropped: &p.indexDropped}
	if err := index.begin(false); err != nil {
		return err
	}
	p.index = newIndexer(p, index)
	return nil
}

// restoreIndex gives needs(index) back, and where somebody may have written to the device, begins to find out.
func (p *primary) restoreIndex(state *journal.VolumeState, suspicion string) error {
	needs, hot := setOf(state, needsPrefix+indexName), p.regionPages(state.Hot)
	p.index.restore(needs, hot)
	if suspicion == "" {
		return nil
	}
	p.log(suspicion)
	var err error
	p.compare, err = newComparison(p, suspicion, needs, hot)
	return err
}

// setOf is a set of the last checkpoint, nil where it has none of that name.
func setOf(state *journal.VolumeState, name string) *blockdev.PageSet {
	i := slices.IndexFunc(state.Sets, func(n journal.NamedSet) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return state.Sets[i].Pages
}

// restore gives a mirror the sets that the journal knows. After a clean stop they are exact. After any other
// everything that was needed or hot is in doubt; for a mirror that the last checkpoint does not cover
// everything is, until its Attached tells that it is blank.
func (p *primary) restore(s *shipper, state *journal.VolumeState) {
	needs, doubt := setOf(state, needsPrefix+s.config.Name), setOf(state, doubtPrefix+s.config.Name)
	if needs == nil || !p.facts.of(s.config.Name).Attached {
		p.tracker.DoubtAll(s.sets)
		return
	}
	if state.Facts.Clean {
		for first, count, ok := needs.NextSet(0); ok; first, count, ok = needs.NextSet(first + count) {
			p.tracker.Dirty(s.sets, first, count)
		}
	} else {
		p.tracker.Doubt(s.sets, needs)
		p.tracker.Doubt(s.sets, p.regionPages(state.Hot))
	}
	if doubt != nil {
		p.tracker.Doubt(s.sets, doubt)
	}
}

// regionPages is the set of all pages of some regions.
func (p *primary) regionPages(regions []uint64) *blockdev.PageSet {
	set := blockdev.NewPageSet(pagesOf(p.size))
	count := p.pagesOfRegion()
	for _, r := range regions {
		if first := r * count; first < set.Len() {
			set.Add(first, min(count, set.Len()-first))
		}
	}
	return set
}

// pagesOfRegion is the size of a region in pages.
func (p *primary) pagesOfRegion() uint64 {
	return uint64(cmp.Or(p.sizes.Region, journal.RegionSize)) / blockdev.PageSize
}

func pagesOf(size int64) uint64 {
	return uint64(size+blockdev.PageSize-1) / blockdev.PageSize
}

func newPrimaryFacts(config VolumeConfig, size int64, random func([]byte)) (journal.VolumeFacts, error) {
	if size == 0 {
		return journal.VolumeFacts{}, deviceError("open volume", config.Path, blockdev.ErrEmpty)
	}
	f := journal.VolumeFacts{Size: size, BlockSize: uint32(config.BlockSize), Role: journal.RolePrimary}
	if f.BlockSize == 0 {
		f.BlockSize = DefaultBlockSize
	}
	random(f.UUID[:])
	random(f.Generation.ID[:])
	f.Generation.Counter = 1
	return f, nil
}

// deviceFacts are the facts of a device as they are kept, once what is written has arrived.
func deviceFacts(dev device) ([]byte, error) {
	if dev.Info().Block {
		if err := dev.Flush(); err != nil { // what others left in the page cache has not been counted yet
			return nil, err
		}
	}
	f, err := dev.Facts()
	if err != nil {
		return nil, err
	}
	return json.Marshal(f)
}

// foreignWrites says why somebody may have written to the device behind our back (DESIGN §6), "" where
// nobody can have. Within one boot an unclean end is none: our own writes cannot be told from others', and
// others are kept out by the lock or O_EXCL only while we run; the disk is the same.
//
// trustReboot is a person's word that nobody writes to it while the machine is down.
func foreignWrites(f *journal.VolumeFacts, now []byte, boot string, trustReboot bool) string {
	var old, present blockdev.Facts
	if json.Unmarshal(f.Device, &old) != nil || json.Unmarshal(now, &present) != nil {
		return "what the device was is not known: everything is compared"
	}
	sameBoot := boot == f.BootID
	switch {
	case f.Mirror.Unproven:
		return "an earlier comparison was interrupted: the device is compared again"
	case f.Clean && present.Unchanged(old):
		return ""
	case !sameBoot && trustReboot:
		return ""
	case f.Clean && !present.SameDevice(old):
		return "the device is another one than at the clean stop, or was attached anew: it is compared"
	case f.Clean:
		return "the device was written to since the clean stop: it is compared"
	case !sameBoot:
		return "the machine was started anew after an unclean stop: the device is compared"
	case !present.SameDevice(old):
		return "the device was replaced or attached anew: it is compared"
	}
	return ""
}

// journalError wraps what a volume's journal said.
func journalError(op, dir string, err error) error {
	if errors.Is(err, journal.ErrDamaged) || errors.Is(err, journal.ErrKind) {
		return &Error{Kind: KindDevice, Op: op, On: dir, Err: err,
			Next: "check the disk of the state directory, then say `blkmirror rebuild VOLUME`: the journal is set aside, and everything compared"}
	}
	return deviceError(op, dir, err)
}

// capture gives a mirror its spool, which is a file without a name once it is made.
func (p *primary) capture(m MirrorConfig) track.CaptureConfig {
	name := sha256.Sum256([]byte(m.Name)) // it may be an address
	return track.CaptureConfig{Pages: pagesOf(p.size), BlockPages: uint64(p.blockSize) / pageSize,
		Memory: cmp.Or(p.sizes.CaptureMemory, captureMemory), Spool: cmp.Or(p.sizes.CaptureSpool, captureSpool),
		FS: p.fs, Path: filepath.Join(p.dir, fmt.Sprintf("spool-%x", name[:6]))}
}
