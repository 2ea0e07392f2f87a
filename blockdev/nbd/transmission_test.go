package nbd

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/blockdev/devtest"
)

func memory(size int64) (*disk, *devtest.Faults) {
	f := devtest.NewFaults(devtest.NewMem(size, 512, 1))
	return &disk{Device: f}, f
}

// A slow request holds up no other: replies come as they are ready.
func TestOutOfOrder(t *testing.T) {
	d, faults := memory(1 << 20)
	entered, release := make(chan struct{}), make(chan struct{})
	faults.Inject(devtest.Rule{Op: devtest.OpRead, When: devtest.Touches(0, 4096), Effect: devtest.Hook(func(devtest.Call) {
		close(entered)
		<-release
	})})
	s := serve(t, Options{}, Export{Name: "vol", Backend: d})
	c := attach(t, s, "vol")
	c.send(request{command: cmdRead, cookie: 1, length: 4096}, "")
	<-entered
	for i := range uint64(3 * maxWorkers) { // the slow one holds one worker, not the connection
		c.must(request{command: cmdWrite, cookie: 100 + i, offset: 4096 * (i + 1), length: 3}, "abc")
	}
	close(release)
	if g := c.recv(); g.cookie != 1 || g.code != codeOK {
		t.Errorf("the slow one: %+v", g)
	}
}

// Requests of one connection are handled together, up to the limit, and no more.
func TestWorkersAreBounded(t *testing.T) {
	d, faults := memory(1 << 20)
	var entered sync.WaitGroup
	entered.Add(maxWorkers)
	release := make(chan struct{})
	faults.Inject(devtest.Rule{Op: devtest.OpRead, Effect: devtest.Hook(func(call devtest.Call) {
		if call.Nth > maxWorkers {
			select {
			case <-release:
			default:
				t.Errorf("request %d beside %d others", call.Nth, maxWorkers)
			}
			return
		}
		entered.Done()
		<-release
	})})
	s := serve(t, Options{}, Export{Name: "vol", Backend: d})
	c := attach(t, s, "vol")
	for i := range uint64(2 * maxWorkers) {
		c.send(request{command: cmdRead, cookie: i, length: 512}, "")
	}
	entered.Wait()
	close(release)
	seen := map[uint64]bool{}
	for range 2 * maxWorkers {
		seen[c.recv().cookie] = true
	}
	if len(seen) != 2*maxWorkers {
		t.Errorf("%d replies", len(seen))
	}
}

// What one connection was told is written survives a power cut after a flush on another.
func TestFlushCoversAllConnections(t *testing.T) {
	mem := devtest.NewMem(1<<20, 512, 1)
	s := serve(t, Options{}, Export{Name: "vol", Backend: &disk{Device: mem}})
	a, b := attach(t, s, "vol"), attach(t, s, "vol")
	payload := strings.Repeat("a", 4096)
	a.must(request{command: cmdWrite, cookie: 1, length: 4096}, payload)
	b.must(request{command: cmdFlush, cookie: 2}, "")
	if have := mem.CrashKeepNone().Bytes()[:4096]; string(have) != payload {
		t.Error("the write is gone after the crash")
	}
	a.must(request{command: cmdWrite, cookie: 3, offset: 4096, length: 4096}, payload)
	if have := mem.CrashKeepNone().Bytes()[4096:8192]; string(have) == payload {
		t.Error("the test proves nothing: a write is durable by itself")
	}
	for i, r := range []request{
		{command: cmdWrite, offset: 8192, length: 4096},
		{command: cmdWriteZeroes, offset: 0, length: 4096},
		{command: cmdTrim, offset: 512 << 10, length: 4096},
	} {
		body := ""
		if r.command == cmdWrite {
			body = payload
		}
		a.must(request{command: cmdWrite, cookie: 9, offset: 12288, length: 1}, "x") // something to flush
		r.flags, r.cookie = cmdFlagFUA, uint64(10+i)
		a.must(r, body)
		if !bytes.Equal(mem.CrashKeepNone().Bytes(), mem.Bytes()) {
			t.Errorf("%s with FUA is not durable when it is answered", r.name())
		}
	}
}

// Each failure of the backend becomes its code, with the text where the client can take it, stands in the
// log, and harms nothing else.
func TestBackendErrors(t *testing.T) {
	for _, c := range []struct {
		op    devtest.Op
		r     request
		errno syscall.Errno
		want  Code
	}{
		{devtest.OpRead, request{command: cmdRead, length: 10}, syscall.EIO, codeIO},
		{devtest.OpWrite, request{command: cmdWrite, length: 2}, syscall.ENOSPC, codeNoSpace},
		{devtest.OpWrite, request{command: cmdWrite, length: 2}, syscall.EROFS, codePerm},
		{devtest.OpZero, request{command: cmdWriteZeroes, length: 2}, syscall.EOPNOTSUPP, codeIO},
		{devtest.OpZero, request{command: cmdWriteZeroes, length: 2, flags: cmdFlagFastZero}, syscall.EOPNOTSUPP, codeNotSup},
		{devtest.OpDiscard, request{command: cmdTrim, length: 2}, syscall.EIO, codeIO},
		{devtest.OpFlush, request{command: cmdFlush}, syscall.EIO, codeIO},
		{devtest.OpFlush, request{command: cmdWrite, length: 2, flags: cmdFlagFUA}, syscall.EDQUOT, codeNoSpace},
	} {
		for _, structured := range []bool{false, true} {
			d, faults := memory(1 << 20)
			faults.Inject(devtest.Rule{Op: c.op, Effect: devtest.Fail(c.errno)})
			s := serve(t, Options{}, Export{Name: "vol", Backend: d})
			join := attach
			if structured {
				join = attachStructured
			}
			client := join(t, s, "vol")
			body := ""
			if c.r.command == cmdWrite {
				body = "ab"
			}
			g := client.do(c.r, body)
			if g.code != c.want || structured != strings.Contains(g.data, c.errno.Error()) {
				t.Errorf("%s with %v, structured %v: %+v, want %d", c.r.name(), c.errno, structured, g, c.want)
			}
			if c.want != codeNotSup && !strings.Contains(s.log.String(), c.errno.Error()) {
				t.Errorf("%s: %v is not in the log: %s", c.r.name(), c.errno, s.log)
			}
			faults.Clear()
			client.must(request{command: cmdRead, cookie: 5, length: 10}, "")
			if st := s.Stats(); st.Errors != 1 || st.Requests != 2 || st.Connections != 1 {
				t.Errorf("stats: %+v", st)
			}
		}
	}
}

// A read-only volume says so, offers nothing that writes, and refuses it; also when it becomes so later.
// The payload of a refused write is skipped.
func TestReadOnly(t *testing.T) {
	d, faults := memory(1 << 20)
	s := serve(t, Options{}, Export{Name: "vol", Backend: d})
	c := attachStructured(t, s, "vol")
	c.must(request{command: cmdWrite, cookie: 1, length: 3}, "abc")
	d.readOnly.Store(true)
	for i, r := range []request{{command: cmdWrite, length: 100000}, {command: cmdTrim, length: 5}, {command: cmdWriteZeroes, length: 5}} {
		body := ""
		if r.command == cmdWrite {
			body = strings.Repeat("x", int(r.length))
		}
		r.cookie = uint64(i)
		if g := c.do(r, body); g.code != codePerm || g.data != ErrReadOnly.Error() {
			t.Errorf("%s: %+v", r.name(), g)
		}
	}
	c.must(request{command: cmdFlush, cookie: 7}, "")
	if data := c.must(request{command: cmdRead, cookie: 8, length: 4}, ""); data[8:] != "abc\x00" {
		t.Errorf("read %q", data)
	}
	if n := faults.Calls(devtest.OpWrite) + faults.Calls(devtest.OpZero) + faults.Calls(devtest.OpDiscard); n != 1 {
		t.Errorf("%d requests reached the backend", n)
	}
	late := dial(t, s).hello()
	late.option(optExportName, "vol")
	if flags := be.Uint16(late.read(10)[8:]); flags != flagHasFlags|flagReadOnly|flagFlush|flagFUA|flagMultiConn {
		t.Errorf("flags of a read-only export: %#x", flags)
	}
}

// The longest requests pass; longer ones are refused, and what a client sends with them is skipped.
func TestPayloadLimit(t *testing.T) {
	d, _ := memory(maxPayload + 8192)
	s := serve(t, Options{MaxInflight: 1}, Export{Name: "vol", Backend: d})
	c := attach(t, s, "vol")
	big := bytes.Repeat([]byte("0123456789abcdef"), maxPayload/16)
	c.must(request{command: cmdWrite, cookie: 1, offset: 1, length: maxPayload}, string(big))
	if have := c.must(request{command: cmdRead, cookie: 2, offset: 1, length: maxPayload}, ""); have != string(big) {
		t.Error("the longest request came back different")
	}
	if g := c.do(request{command: cmdRead, cookie: 3, length: maxPayload + 1}, ""); g.code != codeInvalid {
		t.Errorf("a longer read: %+v", g)
	}
	if g := c.do(request{command: cmdWrite, cookie: 4, length: maxPayload + 1}, string(big)+"x"); g.code != codeInvalid {
		t.Errorf("a longer write: %+v", g)
	}
	c.must(request{command: cmdRead, cookie: 5, length: 512}, "")
	await(t, "buffers go back", func() bool { return s.Stats().Inflight == 0 })
}

// Nothing in nothing out, but no harm either.
func TestEmptyRequests(t *testing.T) {
	d, faults := memory(4096)
	s := serve(t, Options{}, Export{Name: "vol", Backend: d})
	c := attach(t, s, "vol")
	for i, command := range []uint16{cmdRead, cmdWrite, cmdTrim, cmdWriteZeroes} {
		c.must(request{command: command, cookie: uint64(i), offset: 4096}, "")
	}
	c.must(request{command: cmdWrite, flags: cmdFlagFUA, cookie: 9}, "")
	if faults.Calls(devtest.OpWrite) != 0 || faults.Calls(devtest.OpFlush) != 1 {
		t.Error("nothing was written, or FUA ignored")
	}
}

// aligned checks what the Backend is promised of its buffers.
type aligned struct {
	*disk
	t *testing.T
}

func (a aligned) check(p []byte) {
	if uintptr(unsafe.Pointer(unsafe.SliceData(p)))%blockdev.Alignment != 0 {
		a.t.Errorf("a buffer at %p", unsafe.SliceData(p))
	}
}

func (a aligned) ReadAt(p []byte, off int64) error  { a.check(p); return a.disk.ReadAt(p, off) }
func (a aligned) WriteAt(p []byte, off int64) error { a.check(p); return a.disk.WriteAt(p, off) }

// Random requests on several connections at once, each with its own part of the volume, against a slice.
func TestAgainstModel(t *testing.T) {
	const part, clients, rounds = 256 << 10, 4, 150
	d, _ := memory(part * clients)
	s := serve(t, Options{MaxInflight: 1}, Export{Name: "vol", Backend: aligned{d, t}})
	var group sync.WaitGroup
	for i := range clients {
		c := attachStructured(t, s, "vol")
		group.Go(func() { againstModel(c, uint64(i), part, rounds) })
	}
	group.Wait()
	await(t, "buffers go back", func() bool { return s.Stats().Inflight == 0 })
}

func againstModel(c *client, seed uint64, part, rounds int) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	model := make([]byte, part)
	base := seed * uint64(part)
	for i := range rounds {
		off := rnd.IntN(part)
		n := rnd.IntN(min(part-off, 100_000) + 1)
		r := request{cookie: uint64(i), offset: base + uint64(off), length: uint32(n)}
		switch rnd.IntN(5) {
		case 0, 1:
			r.command = cmdWrite
			for j := range model[off : off+n] {
				model[off+j] = byte(rnd.Uint32())
			}
			c.do(r, string(model[off:off+n]))
		case 2:
			r.command = cmdWriteZeroes
			clear(model[off : off+n])
			c.do(r, "")
		default:
			r.command = cmdRead
			if err := sameRead(c.do(r, ""), r, model[off:off+n]); err != nil {
				c.t.Errorf("client %d, round %d: %v", seed, i, err)
			}
		}
	}
}

// sameRead compares a structured reply to a read with what must be in it.
func sameRead(g got, r request, want []byte) error {
	switch {
	case g.code != codeOK:
		return fmt.Errorf("error %d %q", g.code, g.data)
	case len(want) == 0:
		if g.kind != chunkNone {
			return fmt.Errorf("nothing was asked for, and %+v is the answer", g)
		}
	case be.Uint64([]byte(g.data)) != r.offset:
		return fmt.Errorf("an answer for offset %d, not %d", be.Uint64([]byte(g.data)), r.offset)
	case g.kind == chunkHole:
		if !blockdev.IsZero(want) || be.Uint32([]byte(g.data[8:])) != r.length {
			return fmt.Errorf("a hole at %d+%d is none", r.offset, r.length)
		}
	case g.data[8:] != string(want):
		return fmt.Errorf("%d+%d differs", r.offset, r.length)
	}
	return nil
}

// Close lets requests in flight finish, and answers them, before it hangs up.
func TestCloseAnswersWhatIsInFlight(t *testing.T) {
	d, faults := memory(1 << 20)
	entered, release := make(chan struct{}), make(chan struct{})
	faults.Inject(devtest.Rule{Op: devtest.OpWrite, Effect: devtest.Hook(func(devtest.Call) {
		close(entered)
		<-release
	})})
	s := serve(t, Options{}, Export{Name: "vol", Backend: d})
	c, idle, half := attach(t, s, "vol"), attach(t, s, "vol"), dial(t, s)
	half.read(greetingSize)
	c.send(request{command: cmdWrite, cookie: 1, length: 3}, "abc")
	<-entered
	closed := make(chan error, 1)
	go func() { closed <- s.Close(context.Background()) }()
	idle.mustEnd()
	half.mustEnd()
	select {
	case err := <-closed:
		t.Fatalf("closed with a request in flight: %v", err)
	default:
	}
	close(release)
	if g := c.recv(); g.code != codeOK {
		t.Errorf("the request in flight: %+v", g)
	}
	c.mustEnd()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if st := s.Stats(); st.Connections != 0 || st.BytesWritten != 3 {
		t.Errorf("stats: %+v", st)
	}
}

// When the time for that is over connections are cut, and what the backend has begun is waited for.
func TestCloseCuts(t *testing.T) {
	d, faults := memory(1 << 20)
	entered, release := make(chan struct{}), make(chan struct{})
	faults.Inject(devtest.Rule{Op: devtest.OpWrite, Effect: devtest.Hook(func(devtest.Call) {
		close(entered)
		<-release
	})})
	s := serve(t, Options{}, Export{Name: "vol", Backend: d})
	c := attach(t, s, "vol")
	c.send(request{command: cmdWrite, cookie: 1, length: 3}, "abc")
	<-entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	closed := make(chan error, 1)
	go func() { closed <- s.Close(ctx) }()
	c.mustEnd()
	close(release)
	if err := <-closed; err == nil {
		t.Error("requests were cut, and Close does not say so")
	}
	if err := s.Close(context.Background()); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}
