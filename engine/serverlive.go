package engine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// What the server does with live volumes: every volume is a primary or (possibly) a mirror. A volume that
// no primary has attached to yet has no durable role, and serves one-shot syncs as well.

// openLive gives a volume its role: the durable one where there is one, else what the configuration says.
// One that cannot be opened is `failed` and does not stop the others.
func (s *server) openLive(ctx context.Context, v *volume) {
	dir := filepath.Join(s.StateDir, "volumes", v.name)
	open := func() (liveVolume, error) { return s.openRole(ctx, v, dir) }
	live, err := open()
	if err != nil {
		f := &failedVolume{open: open, dir: dir, swap: v.setLive}
		f.set(err)
		s.log(fmt.Sprintf("volume %s: failed: %v", v.name, err))
		live = f
	}
	v.setLive(live)
}

// openRole opens a volume as what it is, or is to become.
func (s *server) openRole(ctx context.Context, v *volume, dir string) (liveVolume, error) {
	role, err := durableRole(dir)
	switch {
	case err != nil && !errors.Is(err, journal.ErrDamaged):
		return nil, err
	case role == journal.RolePrimary, role == 0 && wantsPrimary(v.config):
		return s.openPrimary(ctx, v, dir)
	}
	o := mirrorOptions{name: v.name, dir: dir, config: v.config, log: s.volumeLog(v.name), disconnects: s.disconnects}
	if s.device != nil {
		o.device, o.prepare = s.device, prepareImage
	}
	return openMirror(o)
}

func wantsPrimary(c VolumeConfig) bool {
	return c.Role == "primary" || c.Role == "" && (c.Export != "" || len(c.Mirrors) > 0)
}

// durableRole is the role that a journal knows; 0: there is none.
func durableRole(dir string) (uint8, error) {
	if _, err := journal.OS.ReadDir(filepath.Join(dir, "journal")); err != nil {
		return 0, nil
	}
	log, state, err := journal.OpenVolume(journal.OS, dir, journal.VolumeOptions{})
	if err != nil {
		return 0, journalError("open journal", dir, err)
	}
	if !state.Found {
		return 0, log.Close()
	}
	return state.Facts.Role, log.Close()
}

func (s *server) openPrimary(ctx context.Context, v *volume, dir string) (liveVolume, error) {
	if err := journal.OS.Mkdir(dir); err != nil {
		return nil, deviceError("make folder", dir, err)
	}
	open := s.device
	if open == nil {
		open = openFile
	}
	p, err := openPrimary(primaryDeps{name: v.name, config: v.config, dir: dir, node: s.node(), gate: s.gate,
		fs: journal.OS, open: open, lock: journal.LockDir, log: s.volumeLog(v.name), now: time.Now, disconnects: s.disconnects, door: s.door, probeEvery: s.probeEvery, renewAfter: s.renewAfter})
	if err != nil {
		return nil, err
	}
	if err := p.start(context.WithoutCancel(ctx)); err != nil {
		p.stop(ctx)
		return nil, err
	}
	return p, nil
}

// node is how this node is known to others: nothing else is told of its id.
func (s *server) node() wire.Hash { return sha256.Sum256([]byte(s.id)) }

func (s *server) volumeLog(name string) func(string) {
	return func(text string) { s.log(fmt.Sprintf("volume %s: %s", name, text)) }
}

// stopLive ends all live volumes at once, each within what a clean stop may take.
func (s *server) stopLive() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	done := make(chan string)
	for _, name := range s.names {
		go func() {
			text := ""
			if live := s.volumes[name].getLive(); live != nil {
				if err := live.stop(ctx); err != nil {
					text = fmt.Sprintf("volume %s: not stopped cleanly: %v", name, err)
				}
			}
			done <- text
		}()
	}
	for range s.names {
		if text := <-done; text != "" {
			s.log(text)
		}
	}
}

// stopTimeout bounds what a clean stop waits for: mirrors that lag, clients that do not end.
const stopTimeout = 5 * time.Second

// door is the port at which this node listens, once it does; 0: ctx has ended.
func (s *server) door(ctx context.Context) uint16 {
	select {
	case <-s.listening:
	case <-ctx.Done():
		return 0
	}
	addr, ok := s.listener.Addr().(*net.TCPAddr)
	if !ok {
		return 0
	}
	return uint16(addr.Port)
}

// syncAllowed refuses one-shot syncs with a volume that is replicated live.
func (v *volume) syncAllowed(role string) error {
	var what string
	switch live := v.getLive().(type) {
	case *primary:
		what = "it is a primary, and open for its clients"
	case *mirror:
		if !live.claimed() {
			return nil
		}
		what = "it is the mirror of a primary, which alone may write to it"
	case *failedVolume:
		what = "it failed to open as a primary"
	default:
		return nil
	}
	return &Error{Kind: KindState, Op: "use volume as " + role, On: v.name, Err: errors.New(what),
		Next: "sync with another volume; a live one is kept equal by itself", code: wire.CodeState}
}

func (v *volume) setLive(l liveVolume) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.live = l
}

func (v *volume) getLive() liveVolume {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.live
}

// routineReload takes changed settings up. What cannot change while a volume is open is told.
func (s *server) routineReload(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case volumes := <-s.Reload:
			s.reload(volumes)
		}
	}
}

func (s *server) reload(volumes map[string]VolumeConfig) {
	for _, name := range slices.Sorted(maps.Keys(volumes)) {
		c := volumes[name]
		v := s.volumes[name]
		if v == nil {
			s.log(fmt.Sprintf("volume %s: is new, and takes a restart", name))
			continue
		}
		if old := v.config; old.Path != c.Path || old.Export != c.Export || old.Role != c.Role || old.BlockSize != c.BlockSize {
			s.log(fmt.Sprintf("volume %s: path, export, role and block size take a restart", name))
		}
		if live := v.getLive(); live != nil {
			live.tune(c)
		}
	}
	for _, name := range s.names {
		if _, ok := volumes[name]; !ok {
			s.log(fmt.Sprintf("volume %s: is named no more, and goes on until a restart", name))
		}
	}
	s.log("the configuration was read again")
}
