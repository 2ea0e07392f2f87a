package track

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// gate lets writes in, or refuses them all, and tells when none is inside. The zero value is open.
type gate struct {
	refused atomic.Pointer[error]
	inside  atomic.Int64 // writes, and for a moment those that are being refused
	drains  atomic.Int32 // = len(idle)

	mu   sync.Mutex
	idle []chan struct{} // closed when nobody is inside
}

// enter counts first and looks then: whoever sees the gate open is seen by a drain that begins after
// refuse.
func (g *gate) enter() error {
	g.inside.Add(1)
	if err := g.refused.Load(); err != nil {
		g.leave()
		return *err
	}
	return nil
}

func (g *gate) leave() {
	if g.inside.Add(-1) == 0 && g.drains.Load() > 0 {
		g.wake()
	}
}

func (g *gate) wake() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.idle {
		close(c)
	}
	g.idle = nil
	g.drains.Store(0)
}

// drain waits for a moment in which nobody is inside.
func (g *gate) drain(ctx context.Context) error {
	c := make(chan struct{})
	g.mu.Lock()
	g.idle = append(g.idle, c)
	g.drains.Store(int32(len(g.idle)))
	g.mu.Unlock()
	// Announced first, counted then: the last one to leave either is seen gone here or sees the announcement.
	if g.inside.Load() == 0 {
		g.wake()
	}
	select {
	case <-c:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.idle, c); i >= 0 {
		g.idle = slices.Delete(g.idle, i, i+1)
		g.drains.Store(int32(len(g.idle)))
	}
	return context.Cause(ctx)
}
