package wire

import (
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// randomMessage makes a valid message of each type in turn, with values at and between the limits.
func randomMessage(r *rand.Rand, kind Type) Message {
	hash := func() (h Hash) {
		for i := range h {
			h[i] = byte(r.Uint32())
		}
		return h
	}
	hashes := func(n int) []Hash {
		if n == 0 {
			return nil
		}
		hs := make([]Hash, n)
		for i := range hs {
			hs[i] = hash()
		}
		return hs
	}
	text := func(limit int) string {
		n := r.IntN(limit/3 + 1)
		return strings.Repeat("ä€x", n/2)
	}
	blockSize := func() uint32 { return MinBlock << r.IntN(9) }
	id := func() [16]byte { h := hash(); return [16]byte(h[:]) }
	coin := func() bool { return r.IntN(2) == 0 }
	// pages are n ranges of whole pages, ascending; the last may end within one.
	pages := func(n int, short bool) (extents []Extent) {
		end := int64(0)
		for i := range n {
			e := Extent{end + r.Int64N(3)*pageSize, (1 + r.Int64N(100)) * pageSize}
			end = e.Offset + e.Length
			if i == n-1 && short {
				e.Length -= r.Int64N(pageSize)
			}
			extents = append(extents, e)
		}
		return extents
	}
	switch kind {
	case TypeHello:
		role, block := Role(1+r.IntN(5)), blockSize()*uint32(r.IntN(2))
		if role == RoleProbe {
			return &Hello{Node: hash(), Name: text(MaxName), Software: text(MaxName), Role: role}
		}
		return &Hello{hash(), text(MaxName), text(MaxName), role, text(MaxName), block}
	case TypeOpen:
		return &Open{
			text(MaxName), id(), id(), r.Uint64(), blockSize(), r.Int64(), hash(),
			OpenFlags(r.IntN(16)), hashes(r.IntN(MaxDevices + 1)),
		}
	case TypeOpened:
		size := r.Int64()
		return &Opened{
			size, r.Int64N(size + 1), r.Int64N(size + 1), hash(), MaxRun + r.Uint64N(1<<40), 1 + r.Uint32N(100),
			OpenedFlags(r.IntN(64)),
		}
	case TypeRefused:
		return &Refused{Code(1 + r.IntN(math.MaxUint16)), text(MaxText)}
	case TypeOffer:
		size, flags := blockSize(), []OfferFlags{0, OfferVerify, OfferVerify | OfferTree}[r.IntN(3)]
		if flags&OfferTree != 0 {
			size = MinBlock << r.IntN(18)
		}
		n := 1 + r.IntN(min(MaxOffer, math.MaxUint32/int(size)))
		return &Offer{r.Uint64(), r.Int64N(1 << 50), uint32(n)*size - uint32(r.IntN(int(size))), size, flags, hashes(n)}
	case TypeWant:
		return &Want{r.Uint64(), []byte(strings.Repeat("w", 1+r.IntN(MaxOffer/8)))}
	case TypeData:
		raw := 2 + r.IntN(MaxBlock-1)
		codec, packed := CodecRaw, raw
		if r.IntN(2) == 0 {
			codec, packed = CodecLZ4, 1+r.IntN(raw-1)
		}
		offset, follow := r.Int64N(math.MaxInt64-MaxRun), uint32(r.IntN(MaxRun-raw+1))
		return &Data{r.Uint64(), r.Uint64(), offset, uint32(raw), follow, codec, hash(), nil, packed}
	case TypeZero:
		return &Zero{r.Uint64(), r.Uint64(), r.Int64N(1 << 62), 1 + r.Int64N(MaxZeroExtent), r.Uint32N(2)}
	case TypeAck:
		m := &Ack{}
		for range 1 + r.IntN(MaxEntries) {
			m.Entries = append(m.Entries, AckEntry{r.Uint64(), r.Int64(), Level(1 + r.IntN(4)), hash()})
		}
		return m
	case TypeNak:
		m := &Nak{}
		for range 1 + r.IntN(MaxEntries) {
			m.Entries = append(m.Entries, NakEntry{r.Uint64(), r.Int64(), NakCause(1 + r.IntN(4)), hash()})
		}
		return m
	case TypeFlush:
		return &Flush{r.Uint64(), r.Int64(), hash()}
	case TypeFlushed:
		return &Flushed{r.Uint64(), r.Int64()}
	case TypeCommit:
		if coin() {
			return &Commit{Records: r.Uint64(), Chain: hash(), Flags: CommitFlags(r.IntN(4))}
		}
		epoch := 1 + r.Uint64N(math.MaxUint64)
		return &Commit{
			epoch, r.Uint64N(epoch), r.Uint64(), r.Uint64(), hash(), CommitFlags(r.IntN(4)), pages(r.IntN(MaxHoles+1), true),
		}
	case TypeCommitted:
		return &Committed{r.Uint64(), r.Uint64(), hash()}
	case TypeDoubt:
		m := &Doubt{More: coin()}
		for range 1 + r.IntN(MaxEntries) {
			m.Extents = append(m.Extents, Extent{r.Int64N(1 << 62), 1 + r.Int64N(1<<62)})
		}
		return m
	case TypePing:
		return &Ping{int64(r.Uint64())}
	case TypePong:
		return &Pong{int64(r.Uint64())}
	case TypeWindow:
		return &Window{r.Uint64()}
	case TypeHalt:
		return &Halt{Code(1 + r.IntN(int(CodePaused))), text(MaxText)}
	case TypeBye:
		codes := []Code{CodeDone, CodeStopped, CodeReplaced, CodePaused}
		return &Bye{codes[r.IntN(len(codes))], text(MaxText)}
	case TypeAttach:
		sent := r.Uint64()
		return &Attach{
			text(MaxName), id(), Generation{id(), r.Uint64(), id(), r.Uint64()}, 1 + r.Uint64N(1<<63), r.Uint64(), 1 + r.Int64N(1<<62),
			blockSize(), AttachFlags(r.IntN(4)), sent / 2, sent, hashes(r.IntN(MaxDevices + 1)),
		}
	case TypeAttached:
		m := &Attached{
			VolumeID: id(), Generation: Generation{id(), r.Uint64(), id(), r.Uint64()}, LastCut: r.Uint64(), Applied: r.Uint64(),
			Flags: AttachedFlags(r.IntN(64)), MaxOffers: 1 + r.Uint32N(100), Size: r.Int64(), Room: r.Int64(),
			Window: MaxRun + r.Uint64N(1<<40),
		}
		if m.Flags&AttachedBlank != 0 {
			m.DataEnd = r.Int64N(m.Size + 1)
		}
		if coin() {
			m.StagedIncarnation, m.StagedNumber = r.Uint64(), 1+r.Uint64N(math.MaxUint64)
			m.StagedBase, m.StagedSeq = r.Uint64N(m.StagedNumber), r.Uint64()
			m.StagedRecords, m.StagedChain = r.Uint64(), hash()
		}
		return m
	case TypeRebase:
		base, old := r.Uint64N(1<<40), 1+r.Uint64N(1<<40)
		switch r.IntN(3) {
		case 0:
			return &Rebase{Seq: r.Uint64(), Base: base, New: base + 1 + r.Uint64N(9)}
		case 1:
			return &Rebase{Seq: r.Uint64(), Base: base, Old: old}
		}
		n, more := r.IntN(MaxEntries+1), coin()
		return &Rebase{r.Uint64(), base, old, max(base, old) + 1 + r.Uint64N(9), more && n > 0, pages(n, !more)}
	case TypeSynced:
		return &Synced{r.Uint64(), r.Uint64(), r.Uint64(), hash()}
	case TypeBulk:
		return &Bulk{r.Uint64(), r.Uint64()}
	case TypeReport:
		return &Report{r.Uint64(), r.Uint64(), r.Int64(), r.Int64(), coin(), r.Uint32()}
	case TypeSuspect:
		m := &Suspect{Class: uint8(1 + r.IntN(lastClass)), Epoch: r.Uint64()}
		for end := int64(0); len(m.Entries) == 0 || len(m.Entries) < MaxSuspects && r.IntN(32) > 0; {
			e := SuspectEntry{end + r.Int64N(1<<50), 1 + r.Uint32N(MaxZeroExtent), hash(), hash()}
			m.Entries, end = append(m.Entries, e), e.Offset+int64(e.Length)
		}
		return m
	case TypeQuarantine:
		return &Quarantine{
			uint8(1 + r.IntN(lastClass)), coin(), r.Uint64(), int64(r.Uint64()), text(MaxText), pages(1+r.IntN(MaxEntries), true),
		}
	case TypeRepair:
		return &Repair{coin()}
	case TypeFetch:
		return &Fetch{r.Int64N(1 << 50), 1 + r.Uint32N(MaxBlock), hash()}
	case TypeFetched:
		m := &Fetched{Offset: r.Int64N(1 << 50), Length: 1 + r.Uint32N(MaxBlock), Hash: hash()}
		if coin() {
			m.PayloadLength = int(m.Length)
		}
		return m
	case TypeAsk, TypeTold, TypeEnded:
		return randomJob(r, kind, id(), text, func() []Extent { return pages(r.IntN(MaxEntries/2), true) })
	case TypeDoor:
		return &Door{1 + uint16(r.Uint32N(1<<16-1))}
	case TypeKnock:
		return &Knock{[16]byte{byte(1 + r.Uint32N(255)), byte(r.Uint32())}}
	case TypeKeyNext:
		m := &KeyNext{Key: hash(), Next: hash(), Switch: r.Int64N(1 << 50)}
		m.Until = m.Switch + r.Int64N(1<<50)
		r1, r2 := hash(), hash()
		copy(m.ByKey[:], r1[:])
		copy(m.ByNext[32:], r2[:])
		return m
	case TypeKeyAck:
		return &KeyAck{hash()}
	}
	return randomProbe(r, kind)
}

// TestRoundTrip: what is encoded is decoded to the same, for random messages of all types.
func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for kind := range specs {
		if specs[kind].max == 0 {
			if m := randomMessage(r, Type(kind)); m != nil {
				t.Errorf("%v has a message and no limits", Type(kind))
			}
			continue
		}
		for range 200 {
			m := randomMessage(r, Type(kind))
			b, err := appendFrame(nil, withPayload(m))
			if err != nil {
				t.Fatalf("encode %+v: %v", m, err)
			}
			h, err := parseHeader(b[:HeaderSize])
			if err != nil {
				t.Fatalf("header of %v: %v", m.Type(), err)
			}
			back, err := decodeMeta(h, b[HeaderSize:])
			if err != nil {
				t.Fatalf("decode %+v: %v", m, err)
			}
			if !reflect.DeepEqual(m, back) { // cmp.Diff looks at each byte of each hash: 30 s
				t.Fatalf("%v (-sent +received):\n%s", m.Type(), cmp.Diff(m, back))
			}
		}
	}
}

// TestBroken lists messages that break a rule. The encoder refuses them, and the decoder where the fields
// can be said on the wire at all.
func TestBroken(t *testing.T) {
	open := func(f func(*Open)) Message { m := *sample(TypeOpen).(*Open); f(&m); return &m }
	opened := func(f func(*Opened)) Message { m := *sample(TypeOpened).(*Opened); f(&m); return &m }
	data := func(f func(*Data)) Message { m := *sample(TypeData).(*Data); f(&m); return &m }
	attach := func(f func(*Attach)) Message { m := *sample(TypeAttach).(*Attach); f(&m); return &m }
	attached := func(f func(*Attached)) Message { m := *sample(TypeAttached).(*Attached); f(&m); return &m }
	unstaged := func(f func(*Attached)) Message { m := Attached{Window: MaxRun, MaxOffers: 1}; f(&m); return &m }
	rebase := func(f func(*Rebase)) Message { m := *sample(TypeRebase).(*Rebase); f(&m); return &m }
	commit := func(f func(*Commit)) Message { m := *sample(TypeCommit).(*Commit); f(&m); return &m }
	many := make([]Extent, max(MaxEntries, MaxHoles)+1)
	for i := range many {
		many[i] = Extent{int64(i) * pageSize, pageSize}
	}
	cases := map[string]Message{
		"door of port 0":      &Door{},
		"knock at nothing":    &Knock{},
		"no key":              &KeyNext{Next: Sum(nil), Until: 1},
		"no next key":         &KeyNext{Key: Sum(nil), Until: 1},
		"the same key":        &KeyNext{Key: Sum(nil), Next: Sum(nil), Until: 1},
		"a switch before all": &KeyNext{Key: Sum(nil), Next: Hash{1}, Switch: -1},
		"good until before":   &KeyNext{Key: Sum(nil), Next: Hash{1}, Switch: 2, Until: 1},
		"ack of no key":       &KeyAck{},
		"fetch of nothing":    &Fetch{Offset: 4096},
		"fetch of too much":   &Fetch{Offset: 4096, Length: MaxBlock + 1},
		"fetch before zero":   &Fetch{Offset: -4096, Length: 4096},
		"fetched over zero":   &Fetched{Offset: math.MaxInt64 - 4095, Length: 8192},
		"fetched, some of it": &Fetched{Length: 4096, Payload: make([]byte, 4095)},
		"fetched and more":    &Fetched{Length: 4096, Payload: make([]byte, 4097)},
		"role":                &Hello{},
		"hello block":         &Hello{Role: RoleSource, BlockSize: 5000},
		"name too long":       &Hello{Role: RoleSource, Name: strings.Repeat("n", MaxName+1)},
		"name with \\n":       &Hello{Role: RoleSource, Volume: "a\nb"},
		"name with C1":        &Hello{Role: RoleSource, Volume: "a\u0085b"},
		"name not UTF-8":      &Hello{Role: RoleSource, Volume: "a\xff"},
		"open block":          open(func(m *Open) { m.BlockSize = 2048 }),
		"open block 0":        open(func(m *Open) { m.BlockSize = 0 }),
		"open size":           open(func(m *Open) { m.Size = -1 }),
		"open flags":          open(func(m *Open) { m.Flags = 1 << 31 }),
		"open devices":        open(func(m *Open) { m.Devices = make([]Hash, MaxDevices+1) }),
		"opened data end":     opened(func(m *Opened) { m.DataEnd = m.Size + 1 }),
		"opened resume":       opened(func(m *Opened) { m.ResumeFrom = -1 }),
		"opened window":       opened(func(m *Opened) { m.Window = MaxRun - 1 }),
		"opened offers":       opened(func(m *Opened) { m.MaxOffers = 0 }),
		"opened flags":        opened(func(m *Opened) { m.Flags = 1 << 30 }),
		"code 0":              &Refused{0, "text"},
		"text too long":       &Halt{CodeState, strings.Repeat("t", MaxText+1)},
		"bye code":            &Bye{CodeBusy, ""},
		"offer of none":       &Offer{Length: 4096, Unit: 4096},
		"offer too many":      &Offer{Length: 4096 * (MaxOffer + 1), Unit: 4096, Hashes: make([]Hash, MaxOffer+1)},
		"offer length":        &Offer{Length: 4096, Unit: 4096, Hashes: make([]Hash, 2)},
		"offer too long":      &Offer{Length: MaxBlock + 1, Unit: MaxBlock, Hashes: make([]Hash, 1)},
		"offer offset":        &Offer{Offset: math.MaxInt64 - 4095, Length: 4096, Unit: 4096, Hashes: make([]Hash, 1)},
		"offer unit 0":        &Offer{Length: 4096, Hashes: make([]Hash, 1)},
		"offer unit":          &Offer{Length: 4096, Unit: 5000, Hashes: make([]Hash, 1)},
		"offer small":         &Offer{Length: 4096, Unit: 2048, Hashes: make([]Hash, 2)},
		"offer large":         &Offer{Length: 4096, Unit: 2 * MaxBlock, Hashes: make([]Hash, 1)},
		"offer of others":     &Offer{Length: 8192, Unit: 4096, Hashes: make([]Hash, 1)},
		"want none":           &Want{},
		"want too many":       &Want{Bits: make([]byte, MaxOffer/8+1)},
		"data empty":          data(func(m *Data) { m.RawLength = 0 }),
		"data too long":       data(func(m *Data) { m.RawLength = MaxBlock + 1 }),
		"data run":            data(func(m *Data) { m.Follow = MaxRun }),
		"data run wraps":      data(func(m *Data) { m.Follow = math.MaxUint32 }),
		"data codec":          data(func(m *Data) { m.Codec = 3 }),
		"data raw length":     data(func(m *Data) { m.RawLength++ }),
		"data lz4 longer":     data(func(m *Data) { m.Codec = CodecLZ4 }),
		"data offset":         data(func(m *Data) { m.Offset = -1 }),
		"data end":            data(func(m *Data) { m.Offset = math.MaxInt64 - 3 }),
		"zero of none":        &Zero{},
		"zero too long":       &Zero{Length: MaxZeroExtent + 1},
		"zero flags":          &Zero{Length: 1, Flags: 2},
		"zero end":            &Zero{Offset: math.MaxInt64, Length: 1},
		"ack of none":         &Ack{},
		"ack too many":        &Ack{make([]AckEntry, MaxEntries+1)},
		"ack level":           &Ack{[]AckEntry{{Level: 5}}},
		"ack offset":          &Ack{[]AckEntry{{Level: 1, Offset: -1}}},
		"nak cause":           &Nak{[]NakEntry{{Cause: 0}}},
		"nak cause 5":         &Nak{[]NakEntry{{Cause: 5}}},
		"nak offset":          &Nak{[]NakEntry{{Cause: 1, Offset: -1}}},
		"flush position":      &Flush{Position: -1},
		"flushed":             &Flushed{Position: -1},
		"commit flags":        &Commit{Flags: 4},
		"sync with base":      &Commit{Base: 1},
		"sync with pages":     &Commit{Pages: 1},
		"sync with holes":     &Commit{Holes: []Extent{{0, 4096}}},
		"commit base":         commit(func(m *Commit) { m.Base = m.Epoch }),
		"hole order":          commit(func(m *Commit) { m.Holes = []Extent{{8192, 4096}, {0, 4096}} }),
		"hole overlap":        commit(func(m *Commit) { m.Holes = []Extent{{0, 8192}, {4096, 4096}} }),
		"hole in a page":      commit(func(m *Commit) { m.Holes = []Extent{{512, 4096}} }),
		"hole short":          commit(func(m *Commit) { m.Holes = []Extent{{0, 512}, {4096, 4096}} }),
		"hole empty":          commit(func(m *Commit) { m.Holes = []Extent{{0, 0}} }),
		"holes too many":      commit(func(m *Commit) { m.Holes = many[:MaxHoles+1] }),
		"doubt of none":       &Doubt{},
		"doubt empty":         &Doubt{Extents: []Extent{{0, 0}}},
		"doubt end":           &Doubt{Extents: []Extent{{math.MaxInt64, 1}}},

		"attach volume id":   attach(func(m *Attach) { m.VolumeID = [16]byte{} }),
		"attach generation":  attach(func(m *Attach) { m.Generation.ID = [16]byte{} }),
		"attach incarnation": attach(func(m *Attach) { m.Incarnation = 0 }),
		"attach block":       attach(func(m *Attach) { m.BlockSize = 3 << 12 }),
		"attach size 0":      attach(func(m *Attach) { m.Size = 0 }),
		"attach size":        attach(func(m *Attach) { m.Size = -1 }),
		"attach flags":       attach(func(m *Attach) { m.Flags = 4 }),
		"attach cuts":        attach(func(m *Attach) { m.Committed = m.LastSent + 1 }),
		"attach devices":     attach(func(m *Attach) { m.Devices = make([]Hash, MaxDevices+1) }),
		"attach volume":      attach(func(m *Attach) { m.Volume = "a\x7fb" }),

		"attached size":     attached(func(m *Attached) { m.Size, m.DataEnd = -1, 0 }),
		"attached data end": attached(func(m *Attached) { m.DataEnd = m.Size + 1 }),
		"attached before 0": attached(func(m *Attached) { m.DataEnd = -1 }),
		"attached data":     attached(func(m *Attached) { m.Flags &^= AttachedBlank }),
		"attached room":     attached(func(m *Attached) { m.Room = -1 }),
		"attached window":   attached(func(m *Attached) { m.Window = MaxRun - 1 }),
		"attached offers":   attached(func(m *Attached) { m.MaxOffers = 0 }),
		"attached flags":    attached(func(m *Attached) { m.Flags |= 1 << 6 }),
		"staged base":       attached(func(m *Attached) { m.StagedBase = m.StagedNumber }),
		"staged nothing":    attached(func(m *Attached) { m.StagedNumber = 0 }),
		"staged process":    unstaged(func(m *Attached) { m.StagedIncarnation = 1 }),
		"staged on a base":  unstaged(func(m *Attached) { m.StagedBase = 1 }),
		"staged seq":        unstaged(func(m *Attached) { m.StagedSeq = 1 }),
		"staged records":    unstaged(func(m *Attached) { m.StagedRecords = 1 }),
		"staged chain":      unstaged(func(m *Attached) { m.StagedChain[31] = 1 }),

		"rebase of nothing":  &Rebase{Seq: 1, Base: 1},
		"rebase base":        &Rebase{Base: 2, New: 2},
		"rebase back":        rebase(func(m *Rebase) { m.Old = m.New }),
		"rebase new, voids":  rebase(func(m *Rebase) { m.Old = 0 }),
		"rebase drop, voids": rebase(func(m *Rebase) { m.New = 0 }),
		"rebase more":        rebase(func(m *Rebase) { m.Voids = nil }),
		"voids too many":     rebase(func(m *Rebase) { m.Voids = many[:MaxEntries+1] }),
		"void order":         rebase(func(m *Rebase) { m.Voids = []Extent{{8192, 4096}, {0, 4096}} }),
		"void overlap":       rebase(func(m *Rebase) { m.Voids = []Extent{{0, 8192}, {4096, 4096}} }),
		"void in a page":     rebase(func(m *Rebase) { m.Voids = []Extent{{512, 4096}} }),
		"void short":         rebase(func(m *Rebase) { m.More = false; m.Voids = []Extent{{0, 512}, {4096, 4096}} }),
		"void short, more":   rebase(func(m *Rebase) { m.Voids = []Extent{{0, 512}} }),
		"void before 0":      rebase(func(m *Rebase) { m.Voids = []Extent{{-4096, 4096}} }),
		"void end":           rebase(func(m *Rebase) { m.Voids = []Extent{{math.MaxInt64 - 4095, 8192}} }),

		"report room":   &Report{Room: -1},
		"report staged": &Report{Staged: -1},
	}
	maps.Copy(cases, brokenReadOnly(many))
	maps.Copy(cases, brokenJobs(many))
	maps.Copy(cases, brokenProbe())
	for name, m := range cases {
		if _, err := appendFrame(nil, m); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: encoded, %v", name, err)
		}
		meta := appendMeta(nil, m)
		h := header{kind: m.Type(), meta: uint32(len(meta))}
		payload, _ := payloadOf(m)
		h.payload = uint32(len(payload))
		if got, err := decodeMeta(h, meta); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: decoded to %+v, %v", name, got, err)
		}
	}
	if _, err := appendFrame(nil, data(func(m *Data) { m.PayloadLength++ })); !errors.Is(err, ErrProtocol) {
		t.Errorf("Data with another PayloadLength than its payload: %v", err)
	}
}

// TestBits: a byte that is a yes or no is nothing else.
func TestBits(t *testing.T) {
	for kind, at := range map[Type]int{TypeDoubt: 0, TypeRebase: 32, TypeReport: 32, TypeQuarantine: 1, TypeRepair: 0, TypeSurveyed: 36} {
		meta := appendMeta(nil, sample(kind))
		h := header{kind: kind, meta: uint32(len(meta))}
		if meta[at] != 1 {
			t.Fatalf("%v: byte %d is %d, want 1", kind, at, meta[at])
		}
		for v, want := range map[byte]bool{0: true, 1: true, 2: false, 255: false} {
			meta[at] = v
			if _, err := decodeMeta(h, meta); (err == nil) != want || err != nil && !errors.Is(err, ErrProtocol) {
				t.Errorf("%v with byte %d = %d: %v", kind, at, v, err)
			}
		}
	}
}

// TestRebaseFrames: a Rebase of any number of voids comes out of its frames as it was, whatever the receiver
// does with its copy, and frames that do not belong together are refused.
func TestRebaseFrames(t *testing.T) {
	for _, n := range []int{0, 1, MaxEntries - 1, MaxEntries, MaxEntries + 1, 3 * MaxEntries, 3*MaxEntries + 7} {
		whole := &Rebase{Seq: 9, Base: 1, Old: 2, New: 3}
		for i := range n {
			whole.Voids = append(whole.Voids, Extent{int64(2*i) * pageSize, pageSize})
		}
		frames := whole.Frames()
		if want := max(1, (n+MaxEntries-1)/MaxEntries); len(frames) != want {
			t.Errorf("%d voids make %d frames, want %d", n, len(frames), want)
		}
		var got *Rebase
		for _, m := range frames {
			if _, err := appendFrame(nil, m); err != nil {
				t.Fatalf("%d voids: %v", n, err)
			}
			if f := m.(*Rebase); got == nil {
				got = f
			} else if err := got.Join(f); err != nil {
				t.Fatalf("%d voids: %v", n, err)
			}
		}
		if !reflect.DeepEqual(got, whole) {
			t.Errorf("%d voids come out as %d, more %v", n, len(got.Voids), got.More)
		}
	}
	first := func() *Rebase {
		return &Rebase{Seq: 9, Base: 1, Old: 2, New: 3, More: true, Voids: []Extent{{0, 8192}}}
	}
	for name, edit := range map[string]func(first, next *Rebase){
		"no more":    func(first, next *Rebase) { first.More = false },
		"seq":        func(first, next *Rebase) { next.Seq++ },
		"base":       func(first, next *Rebase) { next.Base++ },
		"old":        func(first, next *Rebase) { next.Old++ },
		"new":        func(first, next *Rebase) { next.New++ },
		"no voids":   func(first, next *Rebase) { next.Voids = nil },
		"overlapped": func(first, next *Rebase) { next.Voids = []Extent{{4096, 4096}} },
	} {
		m, next := first(), &Rebase{Seq: 9, Base: 1, Old: 2, New: 3, Voids: []Extent{{8192, 4096}}}
		edit(m, next)
		before := *m
		if err := m.Join(next); !errors.Is(err, ErrProtocol) || !reflect.DeepEqual(*m, before) {
			t.Errorf("%s: %v, and %+v is left", name, err, m)
		}
	}
}

// TestReserved sets each byte that the diagrams call reserved.
func TestReserved(t *testing.T) {
	reserved := map[Type][]int{
		TypeHello: {37, 38, 39, 46, 47}, TypeOpen: {92, 93, 94, 95},
		TypeData: {33, 34, 35, 36, 37, 38, 39}, TypeZero: {36, 37, 38, 39}, TypeAck: {17, 18, 19, 20, 21, 22, 23, 56 + 17},
		TypeNak: {17, 18, 19, 20, 21, 22, 23}, TypeCommit: {68, 69, 70, 71}, TypeDoubt: {1, 2, 3, 4, 5, 6, 7},
		TypeAttach: {116, 117, 118, 119}, TypeRebase: {33, 34, 35, 36, 37, 38, 39}, TypeReport: {33, 34, 35},
		TypeOffer: {28, 29, 30, 31}, TypeSuspect: {1, 2, 3, 4, 5, 6, 7, 28, 29, 30, 31, 80 + 28}, TypeQuarantine: {4, 5, 6, 7},
		TypeRepair: {1, 2, 3, 4, 5, 6, 7}, TypeFetch: {12, 13, 14, 15}, TypeFetched: {12, 13, 14, 15},
		TypeAsk: {22, 23}, TypeTold: {34, 35, 36, 37, 38, 39}, TypeEnded: {30, 31},
		TypeDoor:   {2, 3, 4, 5, 6, 7},
		TypeSurvey: {4, 5, 6, 7}, TypeSurveyed: {39, 40 + 6 + 3 + 11, 40 + 6 + 3 + 15}, TypeLoad: {1, 2, 3}, TypeLoaded: {28, 29, 30, 31},
	}
	for _, m := range samples() {
		for _, at := range reserved[m.Type()] {
			b := frame(t, m)
			h, err := parseHeader(b[:HeaderSize])
			if err != nil {
				t.Fatal(err)
			}
			meta := b[HeaderSize : HeaderSize+h.meta]
			meta[at] = 1
			if _, err := decodeMeta(h, meta); !errors.Is(err, ErrProtocol) {
				t.Errorf("%v with byte %d set: %v", m.Type(), at, err)
			}
		}
	}
}
