package wire

import "fmt"

// decodeMeta makes a message of a meta whose checksum was right and whose length its header's type
// allows. The message shares no memory with meta. Every error wraps ErrProtocol.
func decodeMeta(h header, meta []byte) (Message, error) {
	r := reader{rest: meta}
	m := decodeFields(h, &r)
	if r.err == nil && len(r.rest) != 0 {
		r.fail("%d bytes too many", len(r.rest))
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: %v: %w", ErrProtocol, h.kind, r.err)
	}
	if err := check(m); err != nil {
		return nil, err
	}
	return m, nil
}

// decodeFields reads the fields of the message; what it returns is to be used only where r has no error.
func decodeFields(h header, r *reader) Message {
	switch h.kind {
	case TypeHello:
		return decodeHello(r)
	case TypeOpen:
		return decodeOpen(r)
	case TypeOpened:
		return decodeOpened(r)
	case TypeRefused:
		code, text := decodeEnd(r)
		return &Refused{code, text}
	case TypeOffer:
		return decodeOffer(r)
	case TypeWant:
		return decodeWant(r)
	case TypeData:
		return decodeData(r, int(h.payload))
	case TypeZero:
		return decodeZero(r)
	case TypeAck:
		return decodeAck(r)
	case TypeNak:
		return decodeNak(r)
	case TypeFlush:
		return &Flush{Number: r.u64(), Position: r.i64(), LastHash: r.hash()}
	case TypeFlushed:
		return &Flushed{Number: r.u64(), Position: r.i64()}
	case TypeCommit:
		return decodeCommit(r)
	case TypeCommitted:
		return &Committed{Epoch: r.u64(), Records: r.u64(), Chain: r.hash()}
	case TypeDoubt:
		return decodeDoubt(r)
	case TypePing:
		return &Ping{r.i64()}
	case TypePong:
		return &Pong{r.i64()}
	case TypeWindow:
		return &Window{r.u64()}
	case TypeHalt:
		code, text := decodeEnd(r)
		return &Halt{code, text}
	case TypeBye:
		code, text := decodeEnd(r)
		return &Bye{code, text}
	case TypeAttach:
		return decodeAttach(r)
	case TypeAttached:
		return decodeAttached(r)
	case TypeRebase:
		return decodeRebase(r)
	case TypeSynced:
		return &Synced{Epoch: r.u64(), Seq: r.u64(), Records: r.u64(), Chain: r.hash()}
	case TypeBulk:
		return &Bulk{r.u64(), r.u64()}
	case TypeReport:
		return decodeReport(r)
	case TypeSuspect:
		return decodeSuspect(r)
	case TypeQuarantine:
		return decodeQuarantine(r)
	case TypeRepair:
		return decodeRepair(r)
	case TypeFetch:
		offset, length, hash := decodeFetch(r)
		return &Fetch{offset, length, hash}
	case TypeFetched:
		offset, length, hash := decodeFetch(r)
		return &Fetched{Offset: offset, Length: length, Hash: hash, PayloadLength: int(h.payload)}
	case TypeAsk:
		return decodeAsk(r)
	case TypeTold:
		return decodeTold(r)
	case TypeEnded:
		return decodeEnded(r)
	case TypeDoor:
		return decodeDoor(r)
	case TypeKnock:
		return &Knock{r.id()}
	case TypeKeyNext:
		return decodeKeyNext(r)
	case TypeKeyAck:
		return &KeyAck{r.hash()}
	}
	if m := decodeProbe(h, r); m != nil {
		return m
	}
	r.fail("has no decoder")
	return nil
}

func decodeHello(r *reader) *Hello {
	m := &Hello{Node: r.hash(), BlockSize: r.u32(), Role: Role(r.u8())}
	r.reserved(3)
	name, software, volume := r.u16(), r.u16(), r.u16()
	r.reserved(2)
	m.Name = r.str(int(name))
	m.Software = r.str(int(software))
	m.Volume = r.str(int(volume))
	return m
}

func decodeOpen(r *reader) *Open {
	m := &Open{}
	m.VolumeID = r.id()
	m.Generation = r.id()
	m.Incarnation = r.u64()
	m.Size = r.i64()
	m.Fingerprint = r.hash()
	m.BlockSize = r.u32()
	m.Flags = OpenFlags(r.u32())
	volume, devices := r.u16(), r.u16()
	r.reserved(4)
	m.Volume = r.str(int(volume))
	m.Devices = r.hashes(int(devices))
	return m
}

func decodeOpened(r *reader) *Opened {
	return &Opened{
		Size:       r.i64(),
		DataEnd:    r.i64(),
		ResumeFrom: r.i64(),
		ResumeHash: r.hash(),
		Window:     r.u64(),
		MaxOffers:  r.u32(),
		Flags:      OpenedFlags(r.u32()),
	}
}

func decodeEnd(r *reader) (Code, string) {
	code, length := Code(r.u16()), r.u16()
	return code, r.str(int(length))
}

func decodeOffer(r *reader) *Offer {
	m := &Offer{Seq: r.u64(), Offset: r.i64(), Length: r.u32(), Unit: r.u32(), Flags: OfferFlags(r.u32())}
	r.reserved(4)
	m.Hashes = r.hashes(r.count(HashSize))
	return m
}

func decodeWant(r *reader) *Want {
	m := &Want{Seq: r.u64()}
	m.Bits = append(m.Bits, r.take(len(r.rest))...)
	return m
}

func decodeData(r *reader, payload int) *Data {
	m := &Data{
		Seq:           r.u64(),
		Epoch:         r.u64(),
		Offset:        r.i64(),
		RawLength:     r.u32(),
		Follow:        r.u32(),
		Codec:         Codec(r.u8()),
		PayloadLength: payload,
	}
	r.reserved(7)
	m.Hash = r.hash()
	return m
}

func decodeZero(r *reader) *Zero {
	m := &Zero{Seq: r.u64(), Epoch: r.u64(), Offset: r.i64(), Length: r.i64(), Flags: r.u32()}
	r.reserved(4)
	return m
}

func decodeAck(r *reader) *Ack {
	m := &Ack{Entries: make([]AckEntry, r.count(entrySize))}
	for i := range m.Entries {
		e := &m.Entries[i]
		e.Seq, e.Offset, e.Level = r.u64(), r.i64(), Level(r.u8())
		r.reserved(7)
		e.Hash = r.hash()
	}
	return m
}

func decodeNak(r *reader) *Nak {
	m := &Nak{Entries: make([]NakEntry, r.count(entrySize))}
	for i := range m.Entries {
		e := &m.Entries[i]
		e.Seq, e.Offset, e.Cause = r.u64(), r.i64(), NakCause(r.u8())
		r.reserved(7)
		e.Hash = r.hash()
	}
	return m
}

func decodeCommit(r *reader) *Commit {
	m := &Commit{
		Epoch:   r.u64(),
		Base:    r.u64(),
		Records: r.u64(),
		Pages:   r.u64(),
		Chain:   r.hash(),
		Flags:   CommitFlags(r.u32()),
	}
	r.reserved(4)
	m.Holes = r.extents()
	return m
}

func decodeDoubt(r *reader) *Doubt {
	m := &Doubt{More: r.bit("more")}
	r.reserved(7)
	m.Extents = r.extents()
	return m
}

// reader takes fields off a meta. Its first error stays, and from there on it reads zeroes.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
		r.rest = nil
	}
}

// take returns the next n bytes, which belong to the meta, or nil where there are not as many.
func (r *reader) take(n int) []byte {
	if n > len(r.rest) {
		r.fail("%d bytes where a field of %d is due", len(r.rest), n)
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

// count returns how many elements of a size are left: exactly, or it is an error. As the length of a
// meta was checked against its type's limit, so is the count.
func (r *reader) count(size int) int {
	if len(r.rest)%size != 0 {
		r.fail("%d bytes, which is no multiple of %d", len(r.rest), size)
	}
	return len(r.rest) / size
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return le.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return le.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return le.Uint64(b)
	}
	return 0
}

func (r *reader) i64() int64 { return int64(r.u64()) }

func (r *reader) hash() (h Hash) {
	copy(h[:], r.take(HashSize))
	return h
}

// hashes reads n hashes; nothing is allocated where the meta does not hold them.
func (r *reader) hashes(n int) []Hash {
	b := r.take(n * HashSize)
	if len(b) == 0 {
		return nil
	}
	hashes := make([]Hash, n)
	for i := range hashes {
		hashes[i] = Hash(b[i*HashSize:])
	}
	return hashes
}

// extents reads extents until the meta ends; nil where it holds none.
func (r *reader) extents() []Extent {
	n := r.count(extentSize)
	if n == 0 {
		return nil
	}
	extents := make([]Extent, n)
	for i := range extents {
		extents[i] = Extent{Offset: r.i64(), Length: r.i64()}
	}
	return extents
}

func (r *reader) id() (id [16]byte) {
	copy(id[:], r.take(len(id)))
	return id
}

func (r *reader) bit(what string) bool {
	n := r.u8()
	if n > 1 {
		r.fail("%s is %d, want 0 or 1", what, n)
	}
	return n == 1
}

func (r *reader) str(n int) string { return string(r.take(n)) }

func (r *reader) reserved(n int) {
	for _, b := range r.take(n) {
		if b != 0 {
			r.fail("reserved byte is %#x, want 0", b)
			return
		}
	}
}
