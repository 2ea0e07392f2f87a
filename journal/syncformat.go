package journal

import (
	"encoding/binary"
	"fmt"
)

// The frozen numbers of the sync records, version 1 (of the segment header). All integers are
// little-endian.
const (
	typeBegin    Type = 1
	typeProgress Type = 2
	typeSettle   Type = 3

	beginSize    = 88
	progressSize = 40
	settleHead   = 8

	// MaxFacts is the longest description of a target device, in bytes.
	MaxFacts = 64 << 10
)

// settleComplete is the flag of a Settle record: the whole target is equal to the source.
const settleComplete = 1

// Begin: a run starts. It carries all that holds then, so that it makes every earlier record superfluous.
// What it does not carry is unknown from here on: the target's facts, and whether it is complete.
//
//	 0       1       2       3       4       5       6       7
//	+---------------------------------------------------------------+
//	| source, 32 bytes: fingerprint of the source's facts           |   0
//	+---------------------------------------------------------------+
//	| hash, 32 bytes: SHA-256 of the block that ends at position    |  32
//	+---------------------------------------------------------------+
//	| size of the target, in bytes                                  |  64
//	+---------------------------------------------------------------+
//	| position: everything below is durably equal to the source     |  72
//	+-------------------------------+-------------------------------+
//	| block size                    | zero                          |  80
//	+-------------------------------+-------------------------------+
func encodeBegin(s SyncState) []byte {
	b := make([]byte, beginSize)
	copy(b[0:32], s.Source[:])
	copy(b[32:64], s.LastHash[:])
	le := binary.LittleEndian
	le.PutUint64(b[64:], uint64(s.Size))
	le.PutUint64(b[72:], uint64(s.Position))
	le.PutUint32(b[80:], s.BlockSize)
	return b
}

func decodeBegin(b []byte) (SyncState, error) {
	if len(b) != beginSize {
		return SyncState{}, fmt.Errorf("begin record has %d bytes, not %d: %w", len(b), beginSize, ErrDamaged)
	}
	le := binary.LittleEndian
	s := SyncState{
		Source:    [32]byte(b[0:32]),
		LastHash:  [32]byte(b[32:64]),
		Size:      int64(le.Uint64(b[64:])),
		Position:  int64(le.Uint64(b[72:])),
		BlockSize: le.Uint32(b[80:]),
	}
	if le.Uint32(b[84:]) != 0 {
		return SyncState{}, fmt.Errorf("begin record with unknown flags: %w", ErrDamaged)
	}
	if err := s.check(); err != nil {
		return SyncState{}, fmt.Errorf("begin record: %w: %w", err, ErrDamaged)
	}
	return s, nil
}

// Progress: the target is durably equal to the source up to here.
//
//	+---------------------------------------------------------------+
//	| position                                                      |   0
//	+---------------------------------------------------------------+
//	| hash, 32 bytes: SHA-256 of the block that ends at position    |   8
//	+---------------------------------------------------------------+
func encodeProgress(position int64, last [32]byte) []byte {
	b := make([]byte, progressSize)
	binary.LittleEndian.PutUint64(b, uint64(position))
	copy(b[8:], last[:])
	return b
}

func decodeProgress(b []byte) (position int64, last [32]byte, err error) {
	if len(b) != progressSize {
		return 0, last, fmt.Errorf("progress record has %d bytes, not %d: %w", len(b), progressSize, ErrDamaged)
	}
	return int64(binary.LittleEndian.Uint64(b)), [32]byte(b[8:]), nil
}

// Settle: the run is over and the target durable.
//
//	+-------------------------------+-------------------------------+
//	| flags: bit 0 complete         | zero                          |   0
//	+-------------------------------+-------------------------------+
//	| facts of the target, opaque; none: not known                  |   8
//	+---------------------------------------------------------------+
func encodeSettle(facts []byte, complete bool) []byte {
	b := make([]byte, settleHead, settleHead+len(facts))
	if complete {
		b[0] = settleComplete
	}
	return append(b, facts...)
}

// decodeSettle copies the facts.
func decodeSettle(b []byte) (facts []byte, complete bool, err error) {
	if len(b) < settleHead || len(b) > settleHead+MaxFacts {
		return nil, false, fmt.Errorf("settle record has %d bytes: %w", len(b), ErrDamaged)
	}
	if binary.LittleEndian.Uint64(b)&^settleComplete != 0 {
		return nil, false, fmt.Errorf("settle record with unknown flags: %w", ErrDamaged)
	}
	if len(b) > settleHead {
		facts = append(facts, b[settleHead:]...)
	}
	return facts, b[0] == settleComplete, nil
}
