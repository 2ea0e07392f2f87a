package campaign

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
)

// The few types and sizes of docs/PROTOCOL.md that the proxy has to know.
const (
	typeData   = 7
	typeAck    = 10
	typeCommit = 16

	headerSize = 24
	hashAt     = 40 // in the meta of a Data
	entrySize  = 56 // of an Ack
	sumAt      = 24 // in an entry
	mostBody   = 1<<20 + 1<<16
)

// frame is a frame of the protocol as it came.
type frame struct {
	header        [headerSize]byte
	meta, payload []byte
}

func (f *frame) kind() byte { return f.header[6] }

// seal computes the checksums of a frame whose meta was changed.
func (f *frame) seal() {
	table := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(f.header[16:], crc32.Checksum(f.meta, table))
	binary.LittleEndian.PutUint32(f.header[20:], crc32.Checksum(f.header[:20], table))
}

func readFrame(r io.Reader) (*frame, error) {
	f := new(frame)
	if _, err := io.ReadFull(r, f.header[:]); err != nil {
		return nil, err
	}
	meta, payload := binary.LittleEndian.Uint32(f.header[8:]), binary.LittleEndian.Uint32(f.header[12:])
	if string(f.header[:4]) != "BLKM" || meta > mostBody || payload > mostBody {
		return nil, fmt.Errorf("no frame: %x", f.header)
	}
	body := make([]byte, meta+payload)
	_, err := io.ReadFull(r, body)
	f.meta, f.payload = body[:meta:meta], body[meta:]
	return f, err
}

func (f *frame) writeTo(w io.Writer) error {
	_, err := (&net.Buffers{f.header[:], f.meta, f.payload}).WriteTo(w)
	return err
}

// proxy stands between a primary and its mirror and lets a trial change frames.
type proxy struct {
	l    net.Listener
	work sync.WaitGroup

	mu      sync.Mutex
	backend string                             // "": nobody is reached
	edit    func(toMirror bool, f *frame) bool // nil: nothing is changed; false cuts the line, before the frame
	conns   map[net.Conn]bool
}

func newProxy() (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{l: l, conns: map[net.Conn]bool{}}
	p.work.Go(p.routineAccept)
	return p, nil
}

func (p *proxy) addr() string { return p.l.Addr().String() }

// to connects to a mirror from now on, and cuts what there is.
func (p *proxy) to(backend string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backend = backend
	for c := range p.conns {
		c.Close()
	}
}

// arm has every frame shown to edit from now on.
func (p *proxy) arm(edit func(toMirror bool, f *frame) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.edit = edit
}

func (p *proxy) close() {
	p.l.Close()
	p.to("")
	p.work.Wait()
}

func (p *proxy) routineAccept() {
	for {
		a, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		backend := p.backend
		p.mu.Unlock()
		b, err := net.Dial("tcp", backend)
		if backend == "" || err != nil {
			if err == nil {
				b.Close()
			}
			a.Close()
			continue
		}
		p.mu.Lock()
		p.conns[a], p.conns[b] = true, true
		same := p.backend == backend
		p.mu.Unlock()
		if !same {
			a.Close()
			b.Close()
		}
		var both sync.WaitGroup
		both.Go(func() { p.pass(a, b, true) })
		both.Go(func() { p.pass(b, a, false) })
		p.work.Go(func() {
			both.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.conns, a)
			delete(p.conns, b)
		})
	}
}

// pass passes frames on in one direction. An end in order is passed on as one.
func (p *proxy) pass(from, to net.Conn, toMirror bool) {
	r := bufio.NewReaderSize(from, 1<<18)
	for {
		f, err := readFrame(r)
		if err == io.EOF {
			to.(*net.TCPConn).CloseWrite()
			return
		}
		if err == nil {
			p.mu.Lock()
			edit := p.edit
			p.mu.Unlock()
			if edit == nil || edit(toMirror, f) {
				err = f.writeTo(to)
			} else {
				err = io.ErrClosedPipe
			}
		}
		if err != nil {
			from.Close()
			to.Close()
			return
		}
	}
}
