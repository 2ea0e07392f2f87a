package stamp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// disk is an NBD server in memory. Each request that it answers was done in one step, so that a copy of
// its content is a cut.
type disk struct {
	mu       sync.Mutex
	content  []byte
	rng      *rand.Rand
	torn     bool // a request that is done when the connections end leaves only some of its pages
	refusing bool // every change is answered with ENOSPC, and done in half of the cases
	conns    map[net.Conn]bool
}

func newDisk(pages int64) *disk {
	return &disk{content: make([]byte, pages*PageSize), rng: rand.New(rand.NewPCG(5, 6)), conns: map[net.Conn]bool{}}
}

func (d *disk) listen(t *testing.T) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "nbd")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); d.hangUp() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.conns[nc] = true
			d.mu.Unlock()
			go d.serve(nc)
		}
	}()
	return sock
}

// hangUp ends all connections, as a killed server does. A request that is being received may still be done,
// in part.
func (d *disk) hangUp() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for nc := range d.conns {
		nc.Close()
		delete(d.conns, nc)
	}
}

func (d *disk) copy() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.content)
}

func (d *disk) serve(nc net.Conn) {
	defer nc.Close()
	be := binary.BigEndian
	b := be.AppendUint64(nil, nbdMagic)
	b = be.AppendUint64(b, optionMagic)
	nc.Write(be.AppendUint16(b, flagFixed|flagNoZeroes))
	option := make([]byte, 20)
	if _, err := io.ReadFull(nc, option); err != nil {
		return
	}
	io.CopyN(io.Discard, nc, int64(be.Uint32(option[16:])))
	reply := func(kind uint32, data []byte) {
		b := be.AppendUint64(nil, optReplyMagic)
		b = be.AppendUint32(b, optGo)
		b = be.AppendUint32(b, kind)
		b = be.AppendUint32(b, uint32(len(data)))
		nc.Write(append(b, data...))
	}
	info := be.AppendUint64([]byte{0, 0}, uint64(len(d.content)))
	reply(replyInfo, append(info, 0, 1))
	reply(replyAck, nil)
	for head := make([]byte, 28); ; {
		if _, err := io.ReadFull(nc, head); err != nil {
			return
		}
		off, n := be.Uint64(head[16:]), be.Uint32(head[24:])
		command := be.Uint16(head[6:])
		data := make([]byte, n)
		if command == cmdWrite {
			if _, err := io.ReadFull(nc, data); err != nil {
				return
			}
		}
		code := d.do(nc, command, d.content[off:], data)
		answer := be.AppendUint32(nil, simpleMagic)
		answer = be.AppendUint32(answer, code)
		answer = append(answer, head[8:16]...)
		if command == cmdRead {
			answer = append(answer, data...)
		}
		if _, err := nc.Write(answer); err != nil {
			return
		}
	}
}

func (d *disk) do(nc net.Conn, command uint16, at, data []byte) (code uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	alive := d.conns[nc]
	if command == cmdRead {
		copy(data, at)
		return 0
	}
	if d.refusing {
		if d.rng.IntN(2) == 0 {
			return 28
		}
		code = 28
	}
	for i := 0; i < len(data); i += PageSize {
		if !alive && (!d.torn || d.rng.IntN(2) == 0) {
			continue
		}
		if command == cmdTrim && d.rng.IntN(2) == 0 {
			continue
		}
		copy(at[i:], data[i:i+PageSize])
	}
	return code
}

// soon waits for a condition.
func soon(t *testing.T, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !met(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s", what)
		}
	}
}

func checkBytes(t *testing.T, h *History, content []byte) (Cut, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return h.CheckFile(path)
}

// Copies that are taken while many requests are under way, and while the server dies again and again, are
// all cuts, and never go back; what is put together of two of them is none.
func TestWriterAndCheck(t *testing.T) {
	const pages = 512
	d := newDisk(pages)
	d.torn = true
	h := NewHistory(pages, 42)
	saved := filepath.Join(t.TempDir(), "history")
	log, err := os.Create(saved)
	if err == nil {
		err = h.LogTo(log)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	w := NewWriter(h, Load{Network: "unix", Address: d.listen(t), Export: "v", Longest: 8, Seed: 3})
	w.Start()
	var last Cut
	var older []byte
	mixed := 0
	for i := range 30 {
		before := h.Writes()
		soon(t, "writes", func() bool { return h.Writes() > before+200 || w.Err() != nil })
		content := d.copy()
		cut, err := checkBytes(t, h, content)
		if err != nil {
			t.Fatal(err)
		}
		if last.shown != nil {
			if err := h.Forward(last, cut); err != nil {
				t.Error(err)
			}
		}
		last = cut
		if older != nil {
			half := append(bytes.Clone(older[:len(older)/2]), content[len(content)/2:]...)
			if _, err := checkBytes(t, h, half); errors.Is(err, ErrNoCut) {
				mixed++
			}
		}
		older = content
		if i%3 == 0 {
			d.hangUp()
		}
		d.mu.Lock()
		d.refusing = i%7 == 6
		d.mu.Unlock()
	}
	d.mu.Lock()
	d.refusing = false
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.Quiesce(ctx); err != nil {
		t.Fatal(err)
	}
	now, err := w.Flush()
	if err != nil {
		t.Fatal(err)
	}
	cut, err := checkBytes(t, h, d.copy())
	if err != nil || cut.Last < now {
		t.Errorf("at rest at %d: cut %+v, %v", now, cut, err)
	}
	w.Resume()
	if err := w.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d writes, %d lost, %d errors, %d reconnects, %d mixed images refused", h.Writes(), w.Lost.Load(), w.Errors.Load(), w.Reconnects.Load(), mixed)
	if err := h.LogErr(); err != nil {
		t.Error(err)
	}
	if mixed < 25 || w.Reconnects.Load() < 5 || w.Errors.Load() == 0 {
		t.Error("too little of one of these happened")
	}

	again, err := LoadHistory(saved)
	if err != nil {
		t.Fatal(err)
	}
	if twice, err := checkBytes(t, again, d.copy()); err != nil || twice.First != cut.First || twice.Last != cut.Last || again.Flushed() != h.Flushed() {
		t.Errorf("the saved history says %+v, %v", twice, err)
	}
}

// What the export forgot is found by the writer itself.
func TestWriterFindsLostWrite(t *testing.T) {
	d := newDisk(64)
	h := NewHistory(64, 1)
	w := NewWriter(h, Load{Network: "unix", Address: d.listen(t), Longest: 4, NoTrim: true})
	w.Start()
	soon(t, "writes", func() bool { return h.Writes() > 200 })
	d.mu.Lock()
	clear(d.content)
	d.mu.Unlock()
	soon(t, "the writer to notice", func() bool { return w.Err() != nil })
	if err := w.Stop(); err == nil {
		t.Error("no error")
	}
}
