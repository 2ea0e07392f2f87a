package wire

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzHeader: any 24 bytes are refused, or are a header that encodes to the same bytes and keeps the
// limits of its type.
func FuzzHeader(f *testing.F) {
	for _, m := range samples() {
		f.Add(frame(f, m)[:HeaderSize])
	}
	f.Add([]byte("HTTP/1.1 400 Bad Request"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err != nil {
			mustClassify(t, err)
			// Behind a right checksum there is more to be found.
			if len(b) == HeaderSize {
				checkHeader(t, header{kind: Type(b[6]), meta: le.Uint32(b[8:]), payload: le.Uint32(b[12:]), metaCRC: le.Uint32(b[16:])})
			}
			return
		}
		again := make([]byte, HeaderSize)
		putHeader(again, h)
		if !bytes.Equal(b, again) {
			t.Errorf("header %x encodes to %x", b, again)
		}
	})
}

func checkHeader(t *testing.T, h header) {
	b := make([]byte, HeaderSize)
	putHeader(b, h)
	got, err := parseHeader(b)
	if err != nil {
		mustClassify(t, err)
		return
	}
	if got != h || h.meta > maxMeta || h.payload > MaxBlock || h.payload > 0 && specs[h.kind].payload == 0 {
		t.Errorf("header %+v was taken as %+v", h, got)
	}
}

// mustClassify: no input leads to an error that a counter could not name.
func mustClassify(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotBlkmirror) && !errors.Is(err, ErrVersion) {
		t.Errorf("error of no kind: %v", err)
	}
}

// FuzzMessage: any meta of any type is refused, or is a message that encodes to the same bytes.
func FuzzMessage(f *testing.F) {
	for _, m := range samples() {
		b := frame(f, m)
		h, err := parseHeader(b[:HeaderSize])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(m.Type()), h.payload, b[HeaderSize:HeaderSize+h.meta])
	}
	f.Fuzz(func(t *testing.T, kind uint8, payload uint32, meta []byte) {
		if int(kind) >= len(specs) || payload > specs[kind].payload || len(meta) < int(specs[kind].min) || len(meta) > int(specs[kind].max) {
			return // parseHeader lets none of these pass
		}
		m, err := decodeMeta(header{kind: Type(kind), payload: payload, meta: uint32(len(meta))}, meta)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("%v: %v", Type(kind), err)
			}
			return
		}
		if m.Type() != Type(kind) {
			t.Errorf("%v decodes to %v", Type(kind), m.Type())
		}
		if err := check(m); err != nil {
			t.Errorf("decoded %+v: %v", m, err)
		}
		if again := appendMeta(nil, m); !bytes.Equal(again, meta) {
			t.Errorf("%v %x encodes to %x", m.Type(), meta, again)
		}
	})
}

// FuzzUnpack: any payload is refused or fills dst exactly, and nothing behind dst is touched; what is
// packed unpacks to itself.
func FuzzUnpack(f *testing.F) {
	p := NewPacker()
	for _, src := range contents(4096) {
		codec, packed := p.Compress(nil, src)
		f.Add(uint8(codec), uint16(4096), bytes.Clone(packed))
	}
	f.Fuzz(func(t *testing.T, codec uint8, n uint16, src []byte) {
		const guard = 64
		room := bytes.Repeat([]byte{0xa5}, int(n)+guard)
		err := Unpack(Codec(codec), room[:n], src)
		if err != nil && !errors.Is(err, ErrCodec) {
			t.Errorf("error of another kind: %v", err)
		}
		if !bytes.Equal(room[n:], bytes.Repeat([]byte{0xa5}, guard)) {
			t.Error("wrote behind dst")
		}
		if len(src) == 0 || len(src) > MaxBlock {
			return
		}
		again, packed := p.Compress(nil, src)
		out := make([]byte, len(src))
		if err := Unpack(again, out, packed); err != nil || !bytes.Equal(out, src) {
			t.Errorf("packed and unpacked %x: %x, %v", src, out, err)
		}
	})
}

// FuzzConn feeds a stream of bytes to a Conn, as it is and as frames with right checksums: every message
// that comes out keeps the rules, and the connection ends with an error of a known class.
func FuzzConn(f *testing.F) {
	var all []byte
	for _, m := range samples() {
		all = append(all, frame(f, m)...)
		f.Add(frame(f, m), false)
	}
	f.Add(all, false)
	f.Add(append(frame(f, block(1, 0, 100, 200)), frame(f, block(2, 100, 200, 0))...), false)
	f.Add([]byte("SSH-2.0-OpenSSH_9.2\r\n"), false)
	f.Add([]byte{7, 72, 0, 0, 0, 20, 8, 8, 0, 0, 0}, true)
	f.Fuzz(func(t *testing.T, b []byte, framed bool) {
		if framed {
			b = reframe(b)
		}
		ms, _, err := receiveAll(bareConn(b))
		if err == nil || Classify(err) == "" || Classify(err) == ClassLocalStop {
			t.Errorf("the stream ended with %v, class %q", err, Classify(err))
		}
		var run run
		for _, m := range ms {
			if err := check(m); err != nil {
				t.Errorf("received %+v: %v", m, err)
			}
			if err := run.next(m); err != nil {
				t.Errorf("received %+v: %v", m, err)
			}
		}
	})
}

// reframe makes frames with right checksums of bytes: type, meta length, payload length, and the rest.
func reframe(b []byte) (stream []byte) {
	for len(b) >= 4 {
		kind, meta, payload := Type(int(b[0])%len(specs)), int(b[1]), int(le.Uint16(b[2:]))%512
		if s := specs[kind]; s.min == s.max {
			meta = int(s.min)
		}
		b = b[4:]
		meta = min(meta, len(b))
		payload = min(payload, len(b)-meta)
		var head [HeaderSize]byte
		h := header{kind: kind, meta: uint32(meta), payload: uint32(payload)}
		h.metaCRC = checksum(b[:meta])
		putHeader(head[:], h)
		stream = append(stream, head[:]...)
		stream = append(stream, b[:meta+payload]...)
		b = b[meta+payload:]
	}
	return stream
}
