package wire

import (
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

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
	switch kind {
	case TypeHello:
		role, block := Role(1+r.IntN(2)), blockSize()*uint32(r.IntN(2))
		return &Hello{hash(), text(MaxName), text(MaxName), role, text(MaxName), block}
	case TypeOpen:
		id := hash()
		return &Open{
			text(MaxName), [16]byte(id[:]), [16]byte(id[16:]), r.Uint64(), blockSize(), r.Int64(), hash(),
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
		n, size := 1+r.IntN(MaxOffer), blockSize()
		return &Offer{r.Uint64(), r.Int64N(1 << 50), uint32(n)*size - uint32(r.IntN(int(size))), hashes(n)}
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
			m.Entries = append(m.Entries, NakEntry{r.Uint64(), r.Int64(), NakCause(1 + r.IntN(3)), hash()})
		}
		return m
	case TypeFlush:
		return &Flush{r.Uint64(), r.Int64(), hash()}
	case TypeFlushed:
		return &Flushed{r.Uint64(), r.Int64()}
	case TypeCommit:
		return &Commit{r.Uint64(), hash(), CommitFlags(r.IntN(2))}
	case TypeCommitted:
		return &Committed{r.Uint64(), hash()}
	case TypeDoubt:
		m := &Doubt{More: r.IntN(2) == 0}
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
		return &Halt{Code(1 + r.IntN(15)), text(MaxText)}
	case TypeBye:
		return &Bye{Code(1 + r.IntN(2)), text(MaxText)}
	}
	return nil
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
			sent := m
			if d, ok := m.(*Data); ok {
				with := *d
				with.Payload = make([]byte, d.PayloadLength)
				sent = &with
			}
			b, err := appendFrame(nil, sent)
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
	open := func(f func(*Open)) Message { m := *samples()[1].(*Open); f(&m); return &m }
	opened := func(f func(*Opened)) Message { m := *samples()[2].(*Opened); f(&m); return &m }
	data := func(f func(*Data)) Message { m := *samples()[6].(*Data); f(&m); return &m }
	cases := map[string]Message{
		"role":            &Hello{},
		"hello block":     &Hello{Role: RoleSource, BlockSize: 5000},
		"name too long":   &Hello{Role: RoleSource, Name: strings.Repeat("n", MaxName+1)},
		"name with \\n":   &Hello{Role: RoleSource, Volume: "a\nb"},
		"name with C1":    &Hello{Role: RoleSource, Volume: "a\u0085b"},
		"name not UTF-8":  &Hello{Role: RoleSource, Volume: "a\xff"},
		"open block":      open(func(m *Open) { m.BlockSize = 2048 }),
		"open block 0":    open(func(m *Open) { m.BlockSize = 0 }),
		"open size":       open(func(m *Open) { m.Size = -1 }),
		"open flags":      open(func(m *Open) { m.Flags = 1 << 31 }),
		"open devices":    open(func(m *Open) { m.Devices = make([]Hash, MaxDevices+1) }),
		"opened data end": opened(func(m *Opened) { m.DataEnd = m.Size + 1 }),
		"opened resume":   opened(func(m *Opened) { m.ResumeFrom = -1 }),
		"opened window":   opened(func(m *Opened) { m.Window = MaxRun - 1 }),
		"opened offers":   opened(func(m *Opened) { m.MaxOffers = 0 }),
		"opened flags":    opened(func(m *Opened) { m.Flags = 1 << 30 }),
		"code 0":          &Refused{0, "text"},
		"text too long":   &Halt{CodeState, strings.Repeat("t", MaxText+1)},
		"bye code":        &Bye{CodeBusy, ""},
		"offer of none":   &Offer{Length: 4096},
		"offer too many":  &Offer{Length: 4096 * (MaxOffer + 1), Hashes: make([]Hash, MaxOffer+1)},
		"offer length":    &Offer{Length: 4096, Hashes: make([]Hash, 2)},
		"offer too long":  &Offer{Length: MaxBlock + 1, Hashes: make([]Hash, 1)},
		"offer offset":    &Offer{Offset: math.MaxInt64 - 4095, Length: 4096, Hashes: make([]Hash, 1)},
		"want none":       &Want{},
		"want too many":   &Want{Bits: make([]byte, MaxOffer/8+1)},
		"data empty":      data(func(m *Data) { m.RawLength = 0 }),
		"data too long":   data(func(m *Data) { m.RawLength = MaxBlock + 1 }),
		"data run":        data(func(m *Data) { m.Follow = MaxRun }),
		"data run wraps":  data(func(m *Data) { m.Follow = math.MaxUint32 }),
		"data codec":      data(func(m *Data) { m.Codec = 3 }),
		"data raw length": data(func(m *Data) { m.RawLength++ }),
		"data lz4 longer": data(func(m *Data) { m.Codec = CodecLZ4 }),
		"data offset":     data(func(m *Data) { m.Offset = -1 }),
		"data end":        data(func(m *Data) { m.Offset = math.MaxInt64 - 3 }),
		"zero of none":    &Zero{},
		"zero too long":   &Zero{Length: MaxZeroExtent + 1},
		"zero flags":      &Zero{Length: 1, Flags: 2},
		"zero end":        &Zero{Offset: math.MaxInt64, Length: 1},
		"ack of none":     &Ack{},
		"ack too many":    &Ack{make([]AckEntry, MaxEntries+1)},
		"ack level":       &Ack{[]AckEntry{{Level: 5}}},
		"ack offset":      &Ack{[]AckEntry{{Level: 1, Offset: -1}}},
		"nak cause":       &Nak{[]NakEntry{{Cause: 0}}},
		"nak offset":      &Nak{[]NakEntry{{Cause: 1, Offset: -1}}},
		"flush position":  &Flush{Position: -1},
		"flushed":         &Flushed{Position: -1},
		"commit flags":    &Commit{Flags: 2},
		"doubt of none":   &Doubt{},
		"doubt empty":     &Doubt{Extents: []Extent{{0, 0}}},
		"doubt end":       &Doubt{Extents: []Extent{{math.MaxInt64, 1}}},
	}
	for name, m := range cases {
		if _, err := appendFrame(nil, m); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: encoded, %v", name, err)
		}
		meta := appendMeta(nil, m)
		h := header{kind: m.Type(), meta: uint32(len(meta))}
		if d, ok := m.(*Data); ok {
			h.payload = uint32(len(d.Payload))
		}
		if got, err := decodeMeta(h, meta); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: decoded to %+v, %v", name, got, err)
		}
	}
	if _, err := appendFrame(nil, data(func(m *Data) { m.PayloadLength++ })); !errors.Is(err, ErrProtocol) {
		t.Errorf("Data with another PayloadLength than its payload: %v", err)
	}
}

// TestReserved sets each byte that the diagrams call reserved.
func TestReserved(t *testing.T) {
	reserved := map[Type][]int{
		TypeHello: {37, 38, 39, 46, 47}, TypeOpen: {92, 93, 94, 95}, TypeOffer: {20, 21, 22, 23},
		TypeData: {33, 34, 35, 36, 37, 38, 39}, TypeZero: {36, 37, 38, 39}, TypeAck: {17, 18, 19, 20, 21, 22, 23, 56 + 17},
		TypeNak: {17, 18, 19, 20, 21, 22, 23}, TypeCommit: {44, 45, 46, 47}, TypeDoubt: {1, 2, 3, 4, 5, 6, 7},
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

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                        "plain",
		"two\nlines\tand\x1b[31m":      "two lines and [31m",
		"bad\xffbyte":                  "bad?byte",
		strings.Repeat("x", MaxText):   strings.Repeat("x", MaxText),
		strings.Repeat("x", MaxText+1): strings.Repeat("x", MaxText-3) + "...",
	} {
		if got := CleanText(in); got != want {
			t.Errorf("CleanText(%q) = %q, want %q", in, got, want)
		}
	}
	if got := CleanText(strings.Repeat("€", MaxText)); !utf8.ValidString(got) || checkString("text", got, MaxText) != nil {
		t.Errorf("cut within a character: %q", got)
	}
}
