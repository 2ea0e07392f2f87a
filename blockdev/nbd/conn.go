package nbd

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// maxWorkers is how many requests of one connection are handled at a time. A worker blocks a thread while
// it waits for the disk.
const maxWorkers = 32

// conn is one client.
//
// In the transmission phase it has workers. One of them has the turn: it reads a request, passes the turn
// on, handles the request and sends the reply. So a request is read while others are handled, without a
// goroutine in between that would have to hand it over. The turn is the one token in a channel; who has
// it owns the reader and the fields that say so, and who ends the reading closes the channel.
//
// The goroutine that the server started is the first worker. It starts others as they are needed, and
// waits for all of them.
type conn struct {
	s       *Server
	nc      net.Conn
	in      *reader
	out     sender
	export  *Export // nil before the transmission; under Server.mu
	terms   terms
	backend Backend
	since   time.Time

	ctx  context.Context // ends when the connection is cut
	stop context.CancelFunc

	turn    chan struct{} // capacity 1
	started int           // workers; the turn's
	ended   error         // why reading ended; the turn's, then the first worker's
	idle    atomic.Int32  // workers that wait for the turn
	busy    atomic.Int32  // requests that were read, and whose reply is not with the sender yet
	workers sync.WaitGroup

	payload mark        // a payload is being read
	stalled atomic.Bool // cut for standing in the way
	stats   counters
}

// cut ends the connection at once: reading, sending and waiting for memory fail.
func (c *conn) cut() {
	c.stop()
	c.nc.Close()
}

// transmit serves requests until the client goes, the server is closed, or something is wrong.
func (c *conn) transmit() error {
	c.turn = make(chan struct{}, 1)
	c.turn <- struct{}{}
	c.started = 1
	c.workers.Add(1)
	c.routineWorker()
	c.workers.Wait()
	if c.out.failed != nil { // reading only failed because of it
		return c.out.failed
	}
	return c.ended
}

func (c *conn) routineWorker() {
	defer c.workers.Done()
	for {
		c.idle.Add(1)
		_, ok := <-c.turn
		c.idle.Add(-1)
		if !ok {
			return
		}
		t, err := c.receive()
		if err != nil {
			c.ended = err
			close(c.turn)
			return
		}
		c.busy.Add(1)
		c.passTurn()
		c.handle(&t)
		c.busy.Add(-1)
	}
}

// passTurn lets another worker read, now or as soon as one has nothing to do.
func (c *conn) passTurn() {
	if c.idle.Load() == 0 && c.started < maxWorkers {
		c.started++
		c.workers.Add(1)
		go c.routineWorker()
	}
	c.turn <- struct{}{}
}

// task is a request that was read.
type task struct {
	request
	refusal refusal
	payload []byte // of a write; a buffer of the server's pool
}

// receive reads a request, and a write's payload.
func (c *conn) receive() (t task, err error) {
	b, err := c.in.next(requestSize)
	if err != nil {
		return t, err
	}
	r, ok := parseRequest(b)
	if !ok {
		return t, fmt.Errorf("%w in front of a request", errMagic)
	}
	if r.command == cmdDisconnect {
		return t, errDisconnect
	}
	c.stats.requests.Add(1)
	t.request = r
	t.refusal = c.terms.check(r, c.backend)
	if r.command != cmdWrite {
		return t, nil
	}
	if t.refusal.code != codeOK {
		return t, c.in.discard(int64(r.length))
	}
	if t.payload, err = c.buffer(int(r.length)); err != nil {
		return t, err
	}
	c.payload.begin(&c.s.clock)
	err = c.in.full(t.payload)
	c.payload.end()
	if err != nil {
		c.s.pool.Put(t.payload)
		return t, fmt.Errorf("a payload of %d bytes: %w", r.length, err)
	}
	return t, nil
}

// buffer takes n bytes from the server's pool. While it waits, clients that hold theirs for nothing are
// looked for.
func (c *conn) buffer(n int) ([]byte, error) {
	if b, ok := c.s.pool.TryGet(n); ok {
		return b, nil
	}
	c.s.starving.Add(1)
	defer c.s.starving.Add(-1)
	return c.s.pool.Get(c.ctx, n)
}
