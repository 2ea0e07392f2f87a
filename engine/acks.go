package engine

import (
	"context"
	"sync"

	"github.com/blkmirror/blkmirror/wire"
)

// ackQueue gathers answers until the sender comes for them, so that a busy session batches by itself.
// It holds at most what the window lets the source leave open.
type ackQueue struct {
	mu   sync.Mutex
	acks []wire.AckEntry
	naks []wire.NakEntry
	wake chan struct{} // holds one token while there is something to send
}

func newAckQueue() ackQueue { return ackQueue{wake: make(chan struct{}, 1)} }

func (q *ackQueue) add(acks []wire.AckEntry, naks []wire.NakEntry) {
	q.mu.Lock()
	q.acks = append(q.acks, acks...)
	q.naks = append(q.naks, naks...)
	q.mu.Unlock()
	q.grant()
}

// grant wakes the sender to look at the window.
func (q *ackQueue) grant() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take removes at most one frame's worth of each kind; more tells that something is left.
func (q *ackQueue) take() (acks []wire.AckEntry, naks []wire.NakEntry, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, m := min(len(q.acks), wire.MaxEntries), min(len(q.naks), wire.MaxEntries)
	acks, naks = q.acks[:n:n], q.naks[:m:m]
	q.acks, q.naks = q.acks[n:], q.naks[m:]
	if len(q.acks) == 0 {
		q.acks = nil
	}
	if len(q.naks) == 0 {
		q.naks = nil
	}
	return acks, naks, len(q.acks)+len(q.naks) > 0
}

// routineAcks sends answers and grants.
func (t *target) routineAcks(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.acks.wake:
		}
		for more := true; more; {
			var batch []wire.Message
			acks, naks, left := t.acks.take()
			more = left
			if len(acks) > 0 {
				batch = append(batch, &wire.Ack{Entries: acks})
			}
			if len(naks) > 0 {
				batch = append(batch, &wire.Nak{Entries: naks})
			}
			if granted, ok := t.meter.Next(); ok {
				batch = append(batch, &wire.Window{Granted: granted})
			}
			if len(batch) == 0 {
				break
			}
			if err := t.conn.Send(batch...); err != nil {
				return err
			}
		}
	}
}
