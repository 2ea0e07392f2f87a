package nbd

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// How the server keeps an eye on its clients, and on what it says of them.

const (
	tick       = time.Second
	stallTicks = 30 // a client that has not moved for so long is cut, if others wait for memory
	logBurst   = 20 // lines in a tick; of more, only the number is told
)

// clock counts ticks; it starts at one. Reading it costs less than reading the time.
type clock struct{ ticks atomic.Int64 }

// mark says since which tick something has been going on; 0: nothing is.
type mark struct{ since atomic.Int64 }

func (m *mark) begin(c *clock) { m.since.Store(c.ticks.Load()) }
func (m *mark) end()           { m.since.Store(0) }

func (m *mark) stalled(now int64) bool {
	since := m.since.Load()
	return since != 0 && now-since >= stallTicks
}

// routineWatch ticks until the server is closed.
func (s *Server) routineWatch() {
	defer s.goroutines.Done()
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.watch()
		case <-s.closing:
			s.log.flush()
			return
		}
	}
}

// watch is one tick. While somebody waits for a buffer, clients are cut that hold theirs without moving:
// who does not take replies, or does not send the payload that was announced. A client that is merely
// stopped, and in nobody's way, stays.
func (s *Server) watch() {
	now := s.clock.ticks.Add(1)
	s.log.flush()
	if s.starving.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.payload.stalled(now) || c.out.mark.stalled(now) {
			c.stalled.Store(true)
			c.cut()
		}
	}
}

func (s *Server) logf(format string, args ...any) { s.log.line(fmt.Sprintf(format, args...)) }

// limitedLog lets logBurst lines through between two flushes, and then tells how many there were more.
type limitedLog struct {
	to func(string)

	mu      sync.Mutex
	lines   int
	dropped int
}

func (l *limitedLog) line(text string) {
	l.mu.Lock()
	l.lines++
	drop := l.lines > logBurst
	if drop {
		l.dropped++
	}
	l.mu.Unlock()
	if !drop {
		l.to(text)
	}
}

func (l *limitedLog) flush() {
	l.mu.Lock()
	dropped := l.dropped
	l.lines, l.dropped = 0, 0
	l.mu.Unlock()
	if dropped > 0 {
		l.to(fmt.Sprintf("%d more lines like these were left out", dropped))
	}
}
