package engine

import (
	"cmp"
	"errors"
)

// renewAfter is how much one connection carries in one direction. TLS 1.3 allows a key of AES-GCM some 2^24.5 full
// records (RFC 8446, 5.5), which are 388 GiB, and crypto/tls never changes it (KeyUpdate). A new connection has new keys.
const renewAfter = 256 << 30

// errRenewed ends a connection so that a new one takes its place. Nothing was lost: it is no disconnect.
var errRenewed = errors.New("the connection has carried as much as its keys may, and is replaced")

// carries is how much a connection may carry in one direction, at most lowered, of tests; 0: as much as it likes.
func (g *gate) carries(lowered int64) int64 {
	if g == nil || g.id == nil {
		return 0
	}
	return cmp.Or(lowered, renewAfter)
}

// spent tells whether a connection has carried as much as its keys may.
func spent(c Conn, most int64) bool { return most > 0 && max(c.Sent(), c.Received()) >= most }

// renew ends the session when its keys have had enough. The mirror hears that all is done; what it has not answered is
// kept, as after any connection.
func (s *shipper) renew() {
	s.mu.Lock()
	session := s.session
	s.mu.Unlock()
	if session != nil && session.ctx.Err() == nil && spent(session.conn, s.p.gate.carries(s.p.renewAfter)) {
		session.end(errRenewed)
	}
}
