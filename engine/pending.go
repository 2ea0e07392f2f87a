package engine

import (
	"context"
	"sync"
)

// pending counts things under way and lets others wait until there are none. The zero value is ready.
// Unlike a sync.WaitGroup it may be added to while somebody waits, and the wait can be given up.
type pending struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n falls to 0; nil while nobody waits
}

func (p *pending) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n += n
	if p.n == 0 && p.none != nil {
		close(p.none)
		p.none = nil
	}
}

// wait returns when nothing is under way, or with ctx's cause.
func (p *pending) wait(ctx context.Context) error {
	p.mu.Lock()
	if p.n == 0 {
		p.mu.Unlock()
		return nil
	}
	if p.none == nil {
		p.none = make(chan struct{})
	}
	none := p.none
	p.mu.Unlock()
	select {
	case <-none:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
