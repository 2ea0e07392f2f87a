package nbd

import (
	"sync/atomic"
	"time"
)

// Stats are a server's numbers. Except for Connections and Inflight they only grow.
type Stats struct {
	Connections  int
	Refused      uint64 // connections that were one too many
	Requests     uint64
	Errors       uint64 // requests answered with an error
	BytesRead    int64  // by clients
	BytesWritten int64
	Inflight     int64 // bytes of payload in memory, counted as Options.MaxInflight counts them
}

// Connection is a client's numbers.
type Connection struct {
	Export       string // empty as long as the handshake lasts
	Peer         string
	Since        time.Time
	Requests     uint64
	Errors       uint64
	BytesRead    int64
	BytesWritten int64
}

// counters are of one connection, so that many of them do not wear out one cache line.
type counters struct {
	requests, errors atomic.Uint64
	read, written    atomic.Int64
}

func (c *counters) addTo(s *Stats) {
	s.Requests += c.requests.Load()
	s.Errors += c.errors.Load()
	s.BytesRead += c.read.Load()
	s.BytesWritten += c.written.Load()
}

// Stats sums over all connections, past ones included.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.gone
	for c := range s.conns {
		c.stats.addTo(&sum)
	}
	sum.Connections = len(s.conns)
	sum.Refused = s.refused
	sum.Inflight = s.pool.InUse()
	return sum
}

// Connections lists the clients that are connected, in no order.
func (s *Server) Connections() []Connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Connection, 0, len(s.conns))
	for c := range s.conns {
		v := Connection{
			Peer:         peer(c.nc),
			Since:        c.since,
			Requests:     c.stats.requests.Load(),
			Errors:       c.stats.errors.Load(),
			BytesRead:    c.stats.read.Load(),
			BytesWritten: c.stats.written.Load(),
		}
		if c.export != nil {
			v.Export = c.export.Name
		}
		list = append(list, v)
	}
	return list
}
