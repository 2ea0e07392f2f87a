package stamp

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// Numbers of the NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md). Big-endian throughout.
const (
	nbdMagic      = 0x4e42444d41474943
	optionMagic   = 0x49484156454F5054
	optReplyMagic = 0x3e889045565a9
	requestMagic  = 0x25609513
	simpleMagic   = 0x67446698

	optGo      = 7
	replyAck   = 1
	replyInfo  = 3
	replyError = 1 << 31
	infoExport = 0

	flagFixed    = 1 << 0
	flagNoZeroes = 1 << 1

	cmdRead  = 0
	cmdWrite = 1
	cmdClose = 2
	cmdFlush = 3
	cmdTrim  = 4
	cmdZero  = 6

	// FUA asks for a reply only when the write is durable.
	FUA = 1 << 0
	// NoHole asks that zeroes stay allocated.
	NoHole = 1 << 1
)

// ErrLost is wrapped by the error of a request whose connection ended before its reply: nobody knows
// whether it was done.
var ErrLost = errors.New("connection lost")

// Errno is an error that the server answered.
type Errno uint32

func (e Errno) Error() string { return "server answered: " + syscall.Errno(e).Error() }

// Client is one connection to an NBD server, with simple replies. Any number of goroutines may have
// requests under way.
type Client struct {
	Size  int64
	Flags uint16 // of the transmission phase, as the server sent them
	nc    net.Conn

	sending sync.Mutex // one request at a time on the wire

	mu      sync.Mutex
	handle  uint64
	waiting map[uint64]*call
	lost    error // sticky
}

type call struct {
	into []byte // of a read
	done chan error
}

// Dial connects and opens an export.
func Dial(network, address, export string) (*Client, error) {
	nc, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	c := &Client{nc: nc, waiting: map[uint64]*call{}}
	r := bufio.NewReaderSize(nc, 1<<16)
	if err := c.negotiate(r, export); err != nil {
		nc.Close()
		return nil, fmt.Errorf("open NBD export %q: %w", export, err)
	}
	go c.receive(r)
	return c, nil
}

func (c *Client) negotiate(r io.Reader, export string) error {
	var greeting struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(r, binary.BigEndian, &greeting); err != nil {
		return err
	}
	if greeting.Magic != nbdMagic || greeting.Option != optionMagic || greeting.Flags&flagFixed == 0 {
		return fmt.Errorf("no fixed newstyle server: %x", greeting)
	}
	b := binary.BigEndian.AppendUint32(nil, flagFixed|uint32(greeting.Flags&flagNoZeroes))
	b = binary.BigEndian.AppendUint64(b, optionMagic)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(b, export...)
	b = binary.BigEndian.AppendUint16(b, 0) // no further information wanted
	if _, err := c.nc.Write(b); err != nil {
		return err
	}
	for {
		var reply struct {
			Magic             uint64
			Option, Type, Len uint32
		}
		if err := binary.Read(r, binary.BigEndian, &reply); err != nil {
			return err
		}
		if reply.Magic != optReplyMagic || reply.Len > 1<<16 {
			return fmt.Errorf("no option reply: %x", reply)
		}
		data := make([]byte, reply.Len)
		if _, err := io.ReadFull(r, data); err != nil {
			return err
		}
		switch {
		case reply.Type&replyError != 0:
			return fmt.Errorf("refused with %#x: %s", reply.Type, data)
		case reply.Type == replyAck:
			return nil
		case reply.Type == replyInfo && len(data) == 12 && binary.BigEndian.Uint16(data) == infoExport:
			c.Size, c.Flags = int64(binary.BigEndian.Uint64(data[2:])), binary.BigEndian.Uint16(data[10:])
		}
	}
}

// receive hands replies to those who wait, until the connection ends.
func (c *Client) receive(r io.Reader) {
	var head [16]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			c.fail(err)
			return
		}
		if m := binary.BigEndian.Uint32(head[:]); m != simpleMagic {
			c.fail(fmt.Errorf("reply with magic %#x", m))
			return
		}
		handle := binary.BigEndian.Uint64(head[8:])
		c.mu.Lock()
		w := c.waiting[handle]
		delete(c.waiting, handle)
		c.mu.Unlock()
		if w == nil {
			c.fail(fmt.Errorf("reply to handle %d, that is not under way", handle))
			return
		}
		if code := binary.BigEndian.Uint32(head[4:]); code != 0 {
			w.done <- Errno(code)
			continue
		}
		if _, err := io.ReadFull(r, w.into); err != nil {
			w.done <- fmt.Errorf("%w: %w", ErrLost, err)
			c.fail(err)
			return
		}
		w.done <- nil
	}
}

// fail ends the connection and all requests on it.
func (c *Client) fail(err error) {
	c.nc.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost == nil {
		c.lost = fmt.Errorf("%w: %w", ErrLost, err)
	}
	for handle, w := range c.waiting {
		delete(c.waiting, handle)
		w.done <- c.lost
	}
}

// do sends a request and waits for its reply.
func (c *Client) do(flags, command uint16, off int64, n int, payload, into []byte) error {
	w := &call{into: into, done: make(chan error, 1)}
	c.mu.Lock()
	if c.lost != nil {
		defer c.mu.Unlock()
		return c.lost
	}
	c.handle++
	handle := c.handle
	c.waiting[handle] = w
	c.mu.Unlock()

	head := binary.BigEndian.AppendUint32(make([]byte, 0, 28), requestMagic)
	head = binary.BigEndian.AppendUint16(head, flags)
	head = binary.BigEndian.AppendUint16(head, command)
	head = binary.BigEndian.AppendUint64(head, handle)
	head = binary.BigEndian.AppendUint64(head, uint64(off))
	head = binary.BigEndian.AppendUint32(head, uint32(n))
	c.sending.Lock()
	bufs := net.Buffers{head, payload}
	_, err := bufs.WriteTo(c.nc)
	c.sending.Unlock()
	if err != nil {
		c.fail(err)
	}
	return <-w.done
}

// Read fills b from off.
func (c *Client) Read(b []byte, off int64) error { return c.do(0, cmdRead, off, len(b), nil, b) }

// Write writes b at off. flags: FUA.
func (c *Client) Write(b []byte, off int64, flags uint16) error {
	return c.do(flags, cmdWrite, off, len(b), b, nil)
}

// Zero writes n zeroes at off. flags: FUA, NoHole.
func (c *Client) Zero(off int64, n int, flags uint16) error {
	return c.do(flags, cmdZero, off, n, nil, nil)
}

// Trim discards n bytes at off.
func (c *Client) Trim(off int64, n int) error { return c.do(0, cmdTrim, off, n, nil, nil) }

// Bytes is the size of the export.
func (c *Client) Bytes() int64 { return c.Size }

// Flush makes durable what was answered before.
func (c *Client) Flush() error { return c.do(0, cmdFlush, 0, 0, nil, nil) }

// Close says goodbye and ends the connection.
func (c *Client) Close() {
	head := binary.BigEndian.AppendUint32(make([]byte, 0, 28), requestMagic)
	head = binary.BigEndian.AppendUint16(head, 0)
	head = binary.BigEndian.AppendUint16(head, cmdClose)
	c.sending.Lock()
	c.nc.Write(head[:28]) // nobody answers
	c.sending.Unlock()
	c.fail(net.ErrClosed)
}
