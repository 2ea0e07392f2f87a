package nbd

import (
	"fmt"
	"net"
	"runtime"
	"sync"
)

// maxQueued is how many replies may wait while another batch is being sent. Their payloads are of the
// server's pool, and so within its limit.
const maxQueued = 32

// reply is what a client gets for a request.
type reply struct {
	head [headMax]byte
	n    int    // bytes of head
	body []byte // sent behind it
	buf  []byte // goes back to the pool afterwards; nil: nothing does
}

// sender writes replies to the socket.
//
// There is no goroutine for that: a worker with a reply that finds nobody sending sends it, and after it
// what others have left in the queue meanwhile, all with one system call. The others go on at once,
// unless the queue is full.
type sender struct {
	c *conn

	mu      sync.Mutex
	room    sync.Cond // the queue was taken, or sending has ended
	queue   []reply
	sending bool
	failed  error // sending failed and the connection was cut; replies are dropped

	// The sending worker's.
	spare []reply // the queue of the batch before
	heads []byte  // of a batch, each followed by its body in parts
	parts [][]byte
	bufs  net.Buffers // a window on parts, which sending moves
	mark  mark
}

func (s *sender) init(c *conn) {
	s.c = c
	s.room.L = &s.mu
	s.queue = make([]reply, 0, maxQueued)
	s.spare = make([]reply, 0, maxQueued)
	s.heads = make([]byte, 0, maxQueued*headMax)
	s.parts = make([][]byte, 0, 2*maxQueued)
}

// send sends a reply, or leaves it to the worker that is sending.
func (s *sender) send(r *reply) {
	others := s.c.busy.Load() > 1
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.sending && len(s.queue) == maxQueued {
		s.room.Wait()
	}
	s.queue = append(s.queue, *r)
	if s.sending {
		return
	}
	s.sending = true
	if others { // let those whose request is done by now come along; it saves system calls, here and at the client
		s.mu.Unlock()
		runtime.Gosched()
		s.mu.Lock()
	}
	for len(s.queue) > 0 {
		batch := s.queue
		s.queue = s.spare[:0]
		s.room.Broadcast()
		err := s.failed
		s.mu.Unlock()
		if err == nil {
			err = s.write(batch)
		}
		s.release(batch)
		s.mu.Lock()
		s.spare = batch
		s.failed = err
	}
	s.sending = false
}

// write sends a batch. Where that fails the stream is broken in its middle: the connection is cut.
func (s *sender) write(batch []reply) error {
	s.heads, s.parts = s.heads[:0], s.parts[:0]
	from := 0 // of heads, what is in no part yet
	for i := range batch {
		r := &batch[i]
		s.heads = append(s.heads, r.head[:r.n]...)
		if len(r.body) > 0 {
			s.parts = append(s.parts, s.heads[from:], r.body)
			from = len(s.heads)
		}
	}
	if from < len(s.heads) {
		s.parts = append(s.parts, s.heads[from:])
	}
	s.mark.begin(&s.c.s.clock)
	var err error
	if len(s.parts) == 1 {
		_, err = s.c.nc.Write(s.parts[0])
	} else {
		s.bufs = s.parts
		_, err = s.bufs.WriteTo(s.c.nc)
	}
	s.mark.end()
	clear(s.parts)
	if err != nil {
		s.c.cut()
		return fmt.Errorf("send replies: %w", err)
	}
	return nil
}

// release gives a batch's buffers back.
func (s *sender) release(batch []reply) {
	for i := range batch {
		if batch[i].buf != nil {
			s.c.s.pool.Put(batch[i].buf)
		}
		batch[i].body, batch[i].buf = nil, nil
	}
}
