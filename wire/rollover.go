package wire

import "time"

// The frames by which keys roll over: their bytes and rules, and how a Conn settles them (docs/KEYS.md). The
// reader only leaves a note. routineKeys takes it up, as what is taken in has to be durable before it is
// answered, and the reader must not wait for a disk.

const (
	keyRepeat = 5 * time.Second // until what was announced is acknowledged
	keyLook   = time.Second     // for something new to announce
)

// KeyNext
//
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                          key, 32 bytes                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                         next, 32 bytes                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             switch                            |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                             until                             |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                   signature by key, 64 bytes                  |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                  signature by next, 64 bytes                  |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
func appendKeyNext(b []byte, m *KeyNext) []byte {
	b = append(b, m.Key[:]...)
	b = append(b, m.Next[:]...)
	b = le.AppendUint64(b, uint64(m.Switch))
	b = le.AppendUint64(b, uint64(m.Until))
	b = append(b, m.ByKey[:]...)
	return append(b, m.ByNext[:]...)
}

func decodeKeyNext(r *reader) *KeyNext {
	m := &KeyNext{Key: r.hash(), Next: r.hash(), Switch: r.i64(), Until: r.i64()}
	copy(m.ByKey[:], r.take(len(m.ByKey)))
	copy(m.ByNext[:], r.take(len(m.ByNext)))
	return m
}

// check leaves signatures, and what the times mean, to who knows the keys.
func (m *KeyNext) check() error {
	if m.Key == [32]byte{} || m.Next == [32]byte{} || m.Key == m.Next {
		return broken("KeyNext without two keys")
	}
	if m.Switch < 0 || m.Until < m.Switch {
		return broken("KeyNext with a switch at %d ms, good until %d ms", m.Switch, m.Until)
	}
	return nil
}

func (m *KeyAck) check() error {
	if m.Key == [32]byte{} {
		return broken("KeyAck without a key")
	}
	return nil
}

// owe leaves a KeyNext or KeyAck to routineKeys. Of several that wait the newest is enough: a peer repeats
// what was not acknowledged. Behind our Hello we announce nothing before the handshake is over, but the
// peer, for whom it may be over already, does.
func (c *Conn) owe(m Message) error {
	if c.options.Keys == nil || !c.in.met {
		return broken("%v where keys do not roll over", m.Type())
	}
	c.keys.Lock()
	defer c.keys.Unlock()
	switch m := m.(type) {
	case *KeyNext:
		c.keys.next = m
	case *KeyAck:
		if !c.live.established.Load() {
			return broken("%v before anything was announced", m.Type())
		}
		c.keys.ack = m
	}
	c.wakeKeys()
	return nil
}

func (c *Conn) wakeKeys() {
	select {
	case c.keys.wake <- struct{}{}:
	default: // a token is there, or nobody who would take it
	}
}

// routineKeys settles what owe has left, and announces our own next key until it is acknowledged.
func (c *Conn) routineKeys() {
	look := time.NewTicker(keyLook)
	defer look.Stop()
	var told KeyNext
	var at time.Time
	for {
		select {
		case <-c.done:
			return
		case <-c.keys.wake:
		case <-look.C:
		}
		if !c.live.established.Load() {
			continue // it wakes us
		}
		if err := c.settleKeys(); err != nil {
			c.part(err)
			return
		}
		m := c.options.Keys.Next()
		if m == nil || *m == told && time.Since(at) < keyRepeat {
			continue
		}
		told, at = *m, time.Now()
		if c.sendControl(m) != nil {
			return // the connection has ended
		}
	}
}

// settleKeys takes up what the peer has said.
func (c *Conn) settleKeys() error {
	c.keys.Lock()
	next, ack := c.keys.next, c.keys.ack
	c.keys.next, c.keys.ack = nil, nil
	c.keys.Unlock()
	if ack != nil {
		if err := c.options.Keys.TakeAck(ack); err != nil {
			return err
		}
	}
	if next == nil {
		return nil
	}
	answer, err := c.options.Keys.TakeNext(next)
	if err != nil || answer == nil {
		return err
	}
	return c.sendControl(answer)
}
