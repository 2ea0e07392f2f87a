package nbd

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

// FuzzOptionData: any bytes are refused, or are data that is encoded by the same bytes.
func FuzzOptionData(f *testing.F) {
	f.Add([]byte(infoFor("vol")))
	f.Add([]byte(text("vol") + "\x00\x02\x00\x01\x00\x03"))
	f.Add([]byte(metaFor("vol", metaAllocation, "base:")))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := parseInfo(b); err == nil {
			again := be.AppendUint16([]byte(text(d.name)), uint16(len(d.wanted)))
			for _, kind := range d.wanted {
				again = be.AppendUint16(again, kind)
			}
			if !bytes.Equal(again, b) {
				t.Errorf("info %q is %+v, which encodes to %q", b, d, again)
			}
		}
		if d, err := parseMeta(b); err == nil {
			if again := metaFor(d.name, d.queries...); again != string(b) {
				t.Errorf("meta %q is %+v, which encodes to %q", b, d, again)
			}
		}
	})
}

// FuzzRequest: what passes the check lies inside the volume and within the limits.
func FuzzRequest(f *testing.F) {
	f.Add(make([]byte, requestSize), int64(1<<20), true)
	f.Add(bytes.Repeat([]byte{0xff}, requestSize), int64(0), false)
	f.Fuzz(func(t *testing.T, b []byte, size int64, agreed bool) {
		if len(b) < requestSize || size < 0 {
			return
		}
		be.PutUint32(b, magicRequest)
		r, ok := parseRequest(b)
		if !ok {
			t.Fatal("the magic number is not seen")
		}
		d, _ := memory(512)
		if (terms{size: size, structured: agreed, allocation: agreed}).check(r, d).code != codeOK {
			return
		}
		off, n := int64(r.offset), int64(r.length)
		if off < 0 || n < 0 || off+n < off || off+n > size {
			t.Errorf("%+v passes on a volume of %d bytes", r, size)
		}
		if r.carries() && n > maxPayload {
			t.Errorf("%+v passes", r)
		}
	})
}

// FuzzConnection: whatever a client sends, the server answers or hangs up, leaves no buffer behind and
// never reaches beyond the volume, which Mem would refuse with an error of its own.
func FuzzConnection(f *testing.F) {
	head := func(parts ...any) []byte {
		c := client{t: f, nc: &record{}}
		c.write(parts...)
		return c.nc.(*record).Bytes()
	}
	name := infoFor("vol")
	start := []any{uint32(3), magicOption, optStructuredReply, uint32(0),
		magicOption, optSetMeta, uint32(len(metaFor("vol", metaAllocation))), metaFor("vol", metaAllocation),
		magicOption, optGo, uint32(len(name)), name}
	for command := range uint16(9) {
		f.Add(head(append(start, magicRequest, uint16(0), command, uint64(1), uint64(4096), uint32(512), string(make([]byte, 512)),
			magicRequest, uint16(1), command, uint64(2), uint64(4090), uint32(100000))...))
	}
	f.Add(head(uint32(0), magicOption, optExportName, uint32(0), magicRequest, uint16(0), cmdRead, uint64(1), uint64(0), uint32(9)))
	f.Add(head(uint32(3), magicOption, optList, uint32(0), magicOption, optAbort, uint32(0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var log lines
		s := NewServer(Options{Log: log.add}, Export{Name: "vol", Backend: &disk{Device: devtest.NewMem(64<<10, 512, 1)}})
		here, there := net.Pipe()
		s.admit(there)
		drained := make(chan struct{})
		go func() {
			io.Copy(io.Discard, here)
			close(drained)
		}()
		here.SetWriteDeadline(time.Now().Add(patience))
		here.Write(b) // fails where the server hangs up in its middle
		here.Close()
		<-drained
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if st := s.Stats(); st.Inflight != 0 || st.Connections != 0 {
			t.Errorf("left behind: %+v", st)
		}
		if bytes.Contains([]byte(log.String()), []byte("outside the device")) {
			t.Error(log.String())
		}
	})
}

// record is a net.Conn that only remembers.
type record struct {
	net.Conn
	bytes.Buffer
}

func (r *record) Read(p []byte) (int, error)  { return r.Buffer.Read(p) }
func (r *record) Write(p []byte) (int, error) { return r.Buffer.Write(p) }
