package cli

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// nbdClient writes to an NBD export, one request at a time: just what quickstart needs. The protocol is
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md; blockdev/nbd draws it.
type nbdClient struct {
	conn net.Conn
	in   *bufio.Reader
	size int64
}

const nbdTimeout = 30 * time.Second // for the handshake and for each reply

// dialNBD opens an export on a unix socket.
func dialNBD(socket, export string) (*nbdClient, error) {
	conn, err := net.DialTimeout("unix", socket, nbdTimeout)
	if err != nil {
		return nil, err
	}
	c := &nbdClient{conn: conn, in: bufio.NewReader(conn)}
	if err := c.open(export); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open the export %q at %s: %w", export, socket, err)
	}
	return c, nil
}

// open goes through the fixed newstyle handshake with one option, NBD_OPT_GO.
func (c *nbdClient) open(export string) error {
	const optionMagic, optGo, replyAck, replyInfo = 0x49484156454f5054, 7, 1, 3
	if err := c.conn.SetDeadline(time.Now().Add(nbdTimeout)); err != nil {
		return err
	}
	var greeting struct {
		Server, Option uint64
		Flags          uint16
	}
	if err := binary.Read(c.in, binary.BigEndian, &greeting); err != nil {
		return err
	}
	if greeting.Server != 0x4e42444d41474943 || greeting.Option != optionMagic {
		return errors.New("no NBD server answers")
	}
	ask := binary.BigEndian.AppendUint32(nil, uint32(greeting.Flags&3)) // newstyle, no padding: what it offers
	ask = binary.BigEndian.AppendUint64(ask, optionMagic)
	ask = binary.BigEndian.AppendUint32(ask, optGo)
	ask = binary.BigEndian.AppendUint32(ask, uint32(4+len(export)+2))
	ask = binary.BigEndian.AppendUint32(ask, uint32(len(export)))
	ask = append(ask, export...)
	ask = append(ask, 0, 0) // no further information wanted
	if _, err := c.conn.Write(ask); err != nil {
		return err
	}
	for {
		var reply struct {
			Magic                uint64
			Option, Type, Length uint32
		}
		if err := binary.Read(c.in, binary.BigEndian, &reply); err != nil {
			return err
		}
		if reply.Length > 1<<16 {
			return fmt.Errorf("an option's reply of %d bytes", reply.Length)
		}
		data := make([]byte, reply.Length)
		if _, err := io.ReadFull(c.in, data); err != nil {
			return err
		}
		switch {
		case reply.Type == replyAck:
			return nil
		case reply.Type == replyInfo && len(data) >= 10 && data[0] == 0 && data[1] == 0:
			c.size = int64(binary.BigEndian.Uint64(data[2:]))
		case reply.Type != replyInfo:
			return fmt.Errorf("it refused: %s", data)
		}
	}
}

func (c *nbdClient) write(b []byte, off int64) error { return c.request(1, off, b) }

// close says goodbye; nobody answers that.
func (c *nbdClient) close() {
	_ = c.send(2, 0, nil)
	c.conn.Close()
}

func (c *nbdClient) request(command uint16, off int64, payload []byte) error {
	if err := c.conn.SetDeadline(time.Now().Add(nbdTimeout)); err != nil {
		return err
	}
	if err := c.send(command, off, payload); err != nil {
		return err
	}
	var reply struct {
		Magic, Errno uint32
		Handle       uint64
	}
	if err := binary.Read(c.in, binary.BigEndian, &reply); err != nil {
		return err
	}
	if reply.Magic != 0x67446698 {
		return fmt.Errorf("a reply with magic %#x", reply.Magic)
	}
	if reply.Errno != 0 {
		return syscall.Errno(reply.Errno)
	}
	return nil
}

func (c *nbdClient) send(command uint16, off int64, payload []byte) error {
	head := binary.BigEndian.AppendUint32(make([]byte, 0, 28+len(payload)), 0x25609513)
	head = binary.BigEndian.AppendUint16(head, 0)
	head = binary.BigEndian.AppendUint16(head, command)
	head = binary.BigEndian.AppendUint64(head, 0)
	head = binary.BigEndian.AppendUint64(head, uint64(off))
	head = binary.BigEndian.AppendUint32(head, uint32(len(payload)))
	_, err := c.conn.Write(append(head, payload...))
	return err
}
