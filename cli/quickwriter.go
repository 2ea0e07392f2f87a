package cli

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// quickWriter is the client of quickstart: it overwrites pages picked at random, at an even rate.
type quickWriter struct {
	written atomic.Int64 // bytes
	cancel  context.CancelFunc
	ended   chan struct{}
	err     error // set before ended is closed
}

func startWriter(ctx context.Context, socket string, pages []int64) (*quickWriter, error) {
	if len(pages) == 0 {
		return nil, errors.New("there is nothing on the disk that could be changed")
	}
	c, err := dialNBD(socket, quickVolume)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &quickWriter{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		defer c.close()
		w.err = w.routineWrite(ctx, c, pages)
	}()
	return w, nil
}

// routineWrite writes in small bursts: a timer for each page would cost more than the page.
func (w *quickWriter) routineWrite(ctx context.Context, c *nbdClient, pages []int64) error {
	const every = 10 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	random := rand.NewChaCha8([32]byte{1})
	page := make([]byte, pageSize)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for range quickRate * every / time.Second {
			random.Read(page)
			if err := c.write(page, pages[random.Uint64()%uint64(len(pages))]*pageSize); err != nil {
				return err
			}
			w.written.Add(pageSize)
		}
	}
}

// stop ends it and waits for the request under way. It may be called twice.
func (w *quickWriter) stop() error {
	w.cancel()
	<-w.ended
	return w.err
}
