package wire

// Keys is what a Conn asks for the rollover of keys with its peer (docs/KEYS.md). Its methods do not wait for
// the network; TakeNext may write to a disk, and is called from a goroutine that may wait for it.
type Keys interface {
	// Next is what the peer has not acknowledged yet; nil: nothing.
	Next() *KeyNext
	// TakeNext keeps the peer's successor durably, or has it already; the Ack goes out when it has returned. Without
	// one, where it cannot be kept now, the peer says it again. An error ends the connection.
	TakeNext(*KeyNext) (*KeyAck, error)
	// TakeAck notes durably that the peer has a key of ours.
	TakeAck(*KeyAck) error
}

// KeyNext announces the successor of a key.
type KeyNext struct {
	Key, Next     [32]byte // ed25519 public keys
	Switch        int64    // Unix milliseconds: from then on Next is the sender's current key
	Until         int64    // Unix milliseconds: up to then Key is good
	ByKey, ByNext [64]byte // signatures over all of the above (identity.go has the exact bytes)
}

// KeyAck names a key that the sender has taken in.
type KeyAck struct{ Key [32]byte }
