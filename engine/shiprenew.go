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

// renew ends the session when its keys have had enough. The mirror hears that all is done; what it has not answered is
// kept, as after any connection.
func (s *shipper) renew() {
	if s.p.gate == nil || s.p.gate.id == nil {
		return
	}
	s.mu.Lock()
	session := s.session
	s.mu.Unlock()
	if session == nil || session.ctx.Err() != nil {
		return
	}
	if max(session.conn.Sent(), session.conn.Received()) >= cmp.Or(s.p.renewAfter, renewAfter) {
		session.end(errRenewed)
	}
}
