package engine

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
	"github.com/blkmirror/blkmirror/wire"
)

// lyingMirror takes every connection of a primary, consents, and then says what it is told to: at once, or in answer to
// the first message of a type. ended gets how the primary ended each session.
type lyingMirror struct {
	t        *testing.T
	listener net.Listener
	attached func(*wire.Attached)
	say      []wire.Message
	answer   func(wire.Message) wire.Message // nil: nothing
	ended    chan error
}

func newLyingMirror(t *testing.T) *lyingMirror {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return &lyingMirror{t: t, listener: l, ended: make(chan error, 100), attached: func(*wire.Attached) {}, answer: func(wire.Message) wire.Message { return nil }}
}

func (m *lyingMirror) routine() {
	for {
		nc, err := m.listener.Accept()
		if err != nil {
			return
		}
		conn := wire.NewConn(nc, wire.ConnOptions{})
		err = m.serve(conn)
		conn.Close(err)
		select {
		case m.ended <- err:
		default:
		}
	}
}

func (m *lyingMirror) serve(conn *wire.Conn) error {
	if _, err := conn.Next(); err != nil {
		return err
	}
	if err := conn.Send(&wire.Hello{Node: wire.Hash{7}, Name: "liar", Software: software, Role: wire.RoleMirror}); err != nil {
		return err
	}
	next, err := conn.Next()
	if err != nil {
		return err
	}
	a, ok := next.(*wire.Attach)
	if !ok {
		return errors.New("no Attach")
	}
	answer := &wire.Attached{Flags: wire.AttachedBlank, MaxOffers: 8, Size: a.Size, Room: 1 << 30, Window: 32 << 20}
	m.attached(answer)
	if err := conn.Send(append([]wire.Message{answer}, m.say...)...); err != nil {
		return err
	}
	conn.Established()
	for {
		msg, err := conn.Next()
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case *wire.Halt:
			return &wire.RemoteError{Code: msg.Code, Text: msg.Text}
		case *wire.Bye:
			return &wire.RemoteError{Code: msg.Code, Text: msg.Text}
		}
		if reply := m.answer(msg); reply != nil {
			if err := conn.Send(reply); err != nil {
				return err
			}
		}
	}
}

// Whatever a mirror says that cannot be true ends its session and is told by its class; the primary's volume goes on,
// and nothing of it is changed.
func TestPrimaryRefusesLies(t *testing.T) {
	readOnly := func(a *wire.Attached) { a.Flags |= wire.AttachedReadOnly }
	wrong := wire.Hash{1, 2, 3}
	for _, c := range []struct {
		name     string
		attached func(*wire.Attached)
		say      []wire.Message
		answer   func(wire.Message) wire.Message
		class    string
	}{
		{name: "an ack of nothing", say: []wire.Message{&wire.Ack{Entries: []wire.AckEntry{{Seq: 5, Level: wire.LevelStaged}}}}, class: "protocol"},
		{name: "acks with a wrong checksum", class: "integrity", answer: func(m wire.Message) wire.Message {
			if d, ok := m.(*wire.Data); ok {
				return &wire.Ack{Entries: []wire.AckEntry{{Seq: d.Seq, Offset: d.Offset, Level: wire.LevelWritten, Hash: wrong}}}
			}
			return nil
		}},
		{name: "an ack of another block", class: "protocol", answer: func(m wire.Message) wire.Message {
			if d, ok := m.(*wire.Data); ok {
				return &wire.Ack{Entries: []wire.AckEntry{{Seq: d.Seq + 100, Offset: d.Offset, Level: wire.LevelWritten, Hash: d.Hash}}}
			}
			return nil
		}},
		{name: "a commit that was not asked", say: []wire.Message{&wire.Committed{Epoch: 99}}, class: "integrity"},
		{name: "a flush that was not asked", say: []wire.Message{&wire.Flushed{Number: 99}}, class: "protocol"},
		{name: "wants what was not offered", say: []wire.Message{&wire.Want{Seq: 3, Bits: []byte{1}}}, class: "protocol"},
		{name: "doubt beyond the end", say: []wire.Message{&wire.Doubt{Extents: []wire.Extent{{Offset: liveSize, Length: 4096}}}}, class: "protocol"},
		{name: "quarantine without being read-only", say: []wire.Message{&wire.Quarantine{Class: 5, Extents: []wire.Extent{{Offset: 0, Length: 4096}}}}, class: "protocol"},
		{name: "quarantine beyond the end", attached: readOnly, say: []wire.Message{&wire.Quarantine{Class: 5, Extents: []wire.Extent{{Offset: liveSize, Length: 65536}}}}, class: "protocol"},
		{name: "fetch beyond the end", say: []wire.Message{&wire.Fetch{Offset: liveSize, Length: DefaultBlockSize}}, class: "protocol"},
		{name: "fetch of half a block", say: []wire.Message{&wire.Fetch{Offset: 4096, Length: 4096}}, class: "protocol"},
		{name: "fetched what was not asked", say: []wire.Message{&wire.Fetched{Offset: 0, Length: DefaultBlockSize}}, class: "protocol"},
		{name: "two jobs under one id", say: []wire.Message{&wire.Ask{ID: [16]byte{1}, Job: wire.JobVerify}, &wire.Ask{ID: [16]byte{1}, Job: wire.JobRepair}}, class: "protocol"},
		{name: "tells of a job", say: []wire.Message{&wire.Told{ID: [16]byte{1}}}, class: "protocol"},
		{name: "ends a job", say: []wire.Message{&wire.Ended{ID: [16]byte{1}, Flags: wire.EndedResult}}, class: "protocol"},
		{name: "writes to the primary", say: []wire.Message{&wire.Data{Seq: 1, Offset: 0, RawLength: 4096, Codec: wire.CodecRaw, Hash: wrong, Payload: make([]byte, 4096)}}, class: "protocol"},
		{name: "zeroes for the primary", say: []wire.Message{&wire.Zero{Seq: 1, Offset: 0, Length: 4096}}, class: "protocol"},
		{name: "a disk that is too small", attached: func(a *wire.Attached) { a.Size = 4096 }, class: "protocol"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newLyingMirror(t)
			m.say = c.say
			if c.attached != nil {
				m.attached = c.attached
			}
			if c.answer != nil {
				m.answer = c.answer
			}
			dir := t.TempDir()
			image := filepath.Join(dir, "p.img")
			content := bytes.Repeat([]byte{0x5a}, liveSize)
			if err := os.WriteFile(image, content, 0o600); err != nil {
				t.Fatal(err)
			}
			n := &liveNode{t: t, state: filepath.Join(dir, "primary"), listen: "127.0.0.1:0", volume: VolumeConfig{Path: image, Export: "unix:" + filepath.Join(dir, "s"),
				Interval: 50 * time.Millisecond, Mirrors: []MirrorConfig{{Name: "liar", Address: m.listener.Addr().String()}}}}
			done := make(chan struct{})
			go func() { defer close(done); m.routine() }()
			defer func() { n.stop(); m.listener.Close(); <-done }()
			n.start()
			var st VolumeStatus
			eventually(t, "it is told", func() bool {
				st = n.status()
				d := st.Mirrors[0].LastDisconnect
				return d != nil && d.Class == c.class
			})
			if st.State != "ok" || st.Mirrors[0].CommittedEpoch != 0 {
				t.Errorf("status %+v", st)
			}
			client, err := stamp.Dial("unix", filepath.Join(dir, "s"), "v")
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if err := client.Write(content[:4096], 0, 0); err != nil {
				t.Error(err)
			}
			if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, content) {
				t.Errorf("the volume has changed, %v", err)
			}
		})
	}
}
