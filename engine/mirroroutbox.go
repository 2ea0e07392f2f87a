package engine

import (
	"sync"

	"github.com/blkmirror/blkmirror/wire"
)

// outbox holds answers, in their order, until the sender comes for them. Acknowledgements that follow each
// other go out in one frame; a Report that was not sent yet is replaced. What the primary may leave open
// bounds it.
type outbox struct {
	ready chan struct{} // holds one token while there may be something to send

	mu    sync.Mutex
	queue []wire.Message
}

const outboxBatch = 64 // messages of one send

func newOutbox() outbox { return outbox{ready: make(chan struct{}, 1)} }

func (o *outbox) wake() {
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// last is the message that was queued last, where it is of the type T. o.mu is held.
func last[T wire.Message](o *outbox) (m T, ok bool) {
	if len(o.queue) == 0 {
		return m, false
	}
	m, ok = o.queue[len(o.queue)-1].(T)
	return m, ok
}

func (o *outbox) ack(entries ...wire.AckEntry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range entries {
		if m, ok := last[*wire.Ack](o); ok && len(m.Entries) < wire.MaxEntries {
			m.Entries = append(m.Entries, e)
			continue
		}
		o.queue = append(o.queue, &wire.Ack{Entries: []wire.AckEntry{e}})
	}
	o.wake()
}

func (o *outbox) nak(entries ...wire.NakEntry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range entries {
		if m, ok := last[*wire.Nak](o); ok && len(m.Entries) < wire.MaxEntries {
			m.Entries = append(m.Entries, e)
			continue
		}
		o.queue = append(o.queue, &wire.Nak{Entries: []wire.NakEntry{e}})
	}
	o.wake()
}

func (o *outbox) add(m wire.Message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if r, ok := m.(*wire.Report); ok {
		if old, ok := last[*wire.Report](o); ok {
			*old = *r
			return
		}
	}
	o.queue = append(o.queue, m)
	o.wake()
}

// take removes some messages from the front.
func (o *outbox) take() []wire.Message {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := min(len(o.queue), outboxBatch)
	batch := append([]wire.Message(nil), o.queue[:n]...)
	if o.queue = o.queue[n:]; len(o.queue) == 0 {
		o.queue = nil
	}
	return batch
}
