package wire

import (
	"testing"
	"time"
)

const benchBlock = 64 << 10

func BenchmarkSum(b *testing.B) {
	src := contents(benchBlock)["random"]
	b.SetBytes(benchBlock)
	b.ReportAllocs()
	for b.Loop() {
		Sum(src)
	}
}

func BenchmarkPack(b *testing.B) {
	for _, name := range []string{"random", "half", "text"} {
		b.Run(name, func(b *testing.B) {
			src, dst, p := contents(benchBlock)[name], make([]byte, benchBlock), NewPacker()
			b.SetBytes(benchBlock)
			b.ReportAllocs()
			var packed []byte
			for b.Loop() {
				_, packed = p.Compress(dst, src)
			}
			b.ReportMetric(float64(len(packed))/benchBlock, "ratio")
		})
	}
}

func BenchmarkUnpack(b *testing.B) {
	for _, name := range []string{"random", "half", "text"} {
		b.Run(name, func(b *testing.B) {
			codec, packed := NewPacker().Compress(nil, contents(benchBlock)[name])
			dst := make([]byte, benchBlock)
			b.SetBytes(benchBlock)
			b.ReportAllocs()
			for b.Loop() {
				if err := Unpack(codec, dst, packed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	offer := &Offer{Length: MaxOffer * benchBlock, Unit: benchBlock, Hashes: make([]Hash, MaxOffer)}
	for _, m := range []Message{block(1, 0, benchBlock, 0), &Ack{make([]AckEntry, 64)}, offer} {
		if a, ok := m.(*Ack); ok {
			for i := range a.Entries {
				a.Entries[i].Level = LevelWritten
			}
		}
		b.Run(m.Type().String(), func(b *testing.B) {
			var buf []byte
			var err error
			b.ReportAllocs()
			for b.Loop() {
				if buf, err = appendFrame(buf[:0], m); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(m.Type().String()+"/decode", func(b *testing.B) {
			buf, err := appendFrame(nil, m)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				h, err := parseHeader(buf[:HeaderSize])
				if err != nil {
					b.Fatal(err)
				}
				if err := checkMeta(h, buf[HeaderSize:]); err != nil {
					b.Fatal(err)
				}
				if _, err := decodeMeta(h, buf[HeaderSize:]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkConn sends runs of 1 MiB in blocks of 64 KiB to a reader that takes each payload into one
// buffer for the run, as the engine does.
func BenchmarkConn(b *testing.B) {
	for _, network := range networks {
		b.Run(network, func(b *testing.B) {
			x, y := ends(b, network)
			from, to := NewConn(x, ConnOptions{}), NewConn(y, ConnOptions{})
			from.Established()
			to.Established()
			defer to.Close(nil)
			defer from.Close(nil)
			go from.Next() // answers pings; ends with the connection
			var run []Message
			payload := contents(MaxRun)["random"]
			for at := 0; at < MaxRun; at += benchBlock {
				run = append(run, &Data{
					Offset: int64(at), RawLength: benchBlock, Follow: uint32(MaxRun - at - benchBlock),
					Codec: CodecRaw, Payload: payload[at : at+benchBlock],
				})
			}
			received := make(chan error, 1)
			go func() { received <- takeRuns(to) }()
			b.SetBytes(MaxRun)
			b.ReportAllocs()
			for b.Loop() {
				if err := from.Send(run...); err != nil {
					b.Fatal(err)
				}
			}
			if err := from.Send(&Bye{CodeDone, ""}); err != nil {
				b.Fatal(err)
			}
			if err := <-received; err != nil {
				b.Fatal(err)
			}
		})
	}
}

func takeRuns(c *Conn) error {
	buf := make([]byte, MaxRun)
	for {
		m, err := c.Next()
		if err != nil {
			return err
		}
		d, ok := m.(*Data)
		if !ok {
			return nil
		}
		at := MaxRun - int(d.Follow) - int(d.RawLength)
		if err := c.ReadPayload(buf[at : at+d.PayloadLength]); err != nil {
			return err
		}
	}
}

// BenchmarkRoundTrip is a small frame there and back.
func BenchmarkRoundTrip(b *testing.B) {
	for _, network := range networks {
		b.Run(network, func(b *testing.B) {
			x, y := pair(b, network, ConnOptions{DeadAfter: time.Minute})
			go func() {
				for {
					m, err := y.Next()
					if err != nil || y.Send(m) != nil {
						return
					}
				}
			}()
			m := &Flushed{1, 2}
			b.ReportAllocs()
			for b.Loop() {
				if err := x.Send(m); err != nil {
					b.Fatal(err)
				}
				if _, err := x.Next(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
