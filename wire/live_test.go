package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// brisk options make the tests short; nothing is asserted about how long anything takes.
var brisk = ConnOptions{PingEvery: 10 * time.Millisecond, DeadAfter: 100 * time.Millisecond}

// TestSilentPeer: a peer that takes bytes and says nothing, and one that takes none, are given up as
// timeouts, for the reader and the writer.
func TestSilentPeer(t *testing.T) {
	for _, network := range networks {
		for _, reads := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, reads %v", network, reads), func(t *testing.T) {
				t.Parallel() // each waits a moment for a peer that does not close
				x, y := ends(t, network)
				silentPeer(t, x, y, reads)
			})
		}
	}
}

func silentPeer(t *testing.T, x, y net.Conn, reads bool) {
	conn := NewConn(x, brisk)
	defer conn.Close(nil)
	conn.Established()
	writer := make(chan error, 1)
	if reads {
		go io.Copy(io.Discard, y) // ends with the connection
		writer <- ErrSilent
	} else {
		go func() {
			for {
				if err := conn.Send(block(1, 0, MaxBlock, 0)); err != nil {
					writer <- err
					return
				}
			}
		}()
	}
	if _, err := conn.Next(); !errors.Is(err, ErrSilent) || Classify(err) != ClassTimeout {
		t.Errorf("reader got %v", err)
	}
	if err := <-writer; !errors.Is(err, ErrSilent) {
		t.Errorf("writer got %v", err)
	}
}

// TestIdle: two that have nothing to say stay together for many times DeadAfter, and measure.
func TestIdle(t *testing.T) {
	for _, network := range networks {
		a, b := pair(t, network, ConnOptions{PingEvery: 5 * time.Millisecond, DeadAfter: time.Minute})
		for _, c := range []*Conn{a, b} {
			go c.Next() // ends with the connection
		}
		for a.RTT() == 0 || b.RTT() == 0 || a.Received() < 50*(HeaderSize+pingSize) {
			if a.Err() != nil || b.Err() != nil {
				t.Fatalf("%s: %v, %v", network, a.Err(), b.Err())
			}
			yield()
		}
	}
}

// TestSlowWrite: one frame that takes many times DeadAfter is no silence as long as some of it moves,
// though the peer says nothing all the while.
func TestSlowWrite(t *testing.T) {
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			x, y := ends(t, network)
			o := ConnOptions{PingEvery: 50 * time.Millisecond, DeadAfter: 500 * time.Millisecond}
			conn := NewConn(x, o)
			defer conn.Close(nil)
			go conn.Next() // ends with the connection
			const frames = 24
			whole := make([]Message, frames)
			for i := range whole {
				whole[i] = block(uint64(i), 0, MaxBlock, 0)
			}
			sent := make(chan error, 1)
			go func() { sent <- conn.Send(whole...) }()
			waitBlocked(conn)
			conn.Established() // all pings wait behind it
			// A sip every 20 ms takes the peer several times DeadAfter.
			total, sip := 0, make([]byte, 384<<10)
			for total < frames*MaxBlock {
				least := 1
				if network == "tls" { // a read returns one record of it
					least = min(len(sip), frames*MaxBlock-total)
				}
				n, err := io.ReadAtLeast(y, sip, least)
				if err != nil {
					t.Fatalf("after %d bytes: %v, connection %v", total, err, conn.Err())
				}
				total += n
				time.Sleep(20 * time.Millisecond) // the slow link itself, not synchronisation
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestBusyHere: while this side does not read, the peer is not called dead.
func TestBusyHere(t *testing.T) {
	w, _ := watched()
	for range 100 {
		if err := w.look(time.Second); err != nil {
			t.Fatal(err)
		}
	}
	w.conn.live.reading.Store(true)
	w.kernel = blind
	for i := range 20 {
		err := w.look(time.Second)
		if dead := i >= 9; dead != errors.Is(err, ErrSilent) {
			t.Fatalf("%d s of silence: %v", i+1, err)
		}
	}
	// Bytes are life, in whichever direction; pings that went out are not.
	for i := range 100 {
		if i%2 == 0 {
			w.conn.received.Add(1)
		} else {
			w.conn.sent.Add(1)
		}
		if err := w.look(9 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	for i := 0; i < 20 && err == nil; i++ {
		w.conn.control.Add(32)
		w.conn.sent.Add(32)
		err = w.look(time.Second)
	}
	if !errors.Is(err, ErrSilent) {
		t.Errorf("pings alone kept the connection alive: %v", err)
	}
	// A long round trip makes it wait longer.
	w.conn.rtt.Store(int64(20 * time.Second))
	w.silent = 0
	for i := range 90 {
		err := w.look(time.Second)
		if dead := i >= 79; dead != errors.Is(err, ErrSilent) {
			t.Fatalf("round trip of 20 s, %d s of silence: %v", i+1, err)
		}
	}
}

// silence is after how many seconds of it a connection ends that did all it can.
func silence(t *testing.T, c *Conn) int {
	t.Helper()
	w := watch{conn: c, kernel: blind, records: c.records}
	for i := range 1000 {
		if err := w.look(time.Second); err != nil {
			if Classify(err) != ClassTimeout {
				t.Fatal(err)
			}
			return i + 1
		}
	}
	t.Fatal("the connection outlives its peer")
	return 0
}

func quietConn(samples ...time.Duration) *Conn {
	w, _ := watched()
	c := w.conn
	c.live.reading.Store(true)
	for _, took := range samples {
		c.measured(took)
	}
	return c
}

// TestSpike: a hundred times the usual round trip ends nothing, whatever the path; a peer that is dead is found
// within tens of seconds; and a spike is not usual at once.
func TestSpike(t *testing.T) {
	for _, usual := range []time.Duration{100 * time.Microsecond, time.Millisecond, 20 * time.Millisecond, 90 * time.Millisecond,
		100 * time.Millisecond, 200 * time.Millisecond, 600 * time.Millisecond, 2 * time.Second} {
		found := time.Duration(silence(t, quietConn(usual))) * time.Second
		if found < 10*time.Second || found < min(spike*usual, spikeMost) || found > spikeMost+5*time.Second {
			t.Errorf("usual round trip %v: a dead peer is found after %v", usual, found)
		}
	}
	// 1 ms, then 3 s for as long as a few pings take, then 1 ms.
	c := quietConn(time.Millisecond)
	for range 10 {
		c.measured(3 * time.Second)
	}
	if found := silence(t, c); found > 13 {
		t.Errorf("a dead peer is found after %d s: ten samples of 3 s are usual already", found)
	}
	for range 100 {
		c.measured(time.Millisecond)
	}
	if found := silence(t, c); found != 10 {
		t.Errorf("a dead peer is found after %d s, long after the spike", found)
	}
	// What lasts becomes usual, and what was too high when it was first measured does not.
	c = quietConn(time.Millisecond)
	for range 1000 {
		c.measured(300 * time.Millisecond)
	}
	if found := silence(t, c); found < 30 {
		t.Errorf("a path of 300 ms for an hour: given up after %d s", found)
	}
	c = quietConn(10 * time.Second)
	for range firstSamples - 1 {
		c.measured(time.Millisecond)
	}
	if found := silence(t, c); found != 10 {
		t.Errorf("first sample in a spike: a dead peer is found after %d s", found)
	}
}

// TestLifetime: a connection knows how old it became and how long it was quiet.
func TestLifetime(t *testing.T) {
	a, b := pair(t, "tcp", ConnOptions{DeadAfter: time.Minute})
	go b.Next() // ends with the connection
	if _, err := func() (Message, error) { b.Send(&Window{1}); return a.Next() }(); err != nil {
		t.Fatal(err)
	}
	age, quiet := a.Lifetime()
	if age <= 0 || quiet > age {
		t.Errorf("age %v, quiet for %v", age, quiet)
	}
	a.Close(nil)
	age, quiet = a.Lifetime()
	time.Sleep(2 * time.Millisecond)
	if later, still := a.Lifetime(); later != age || still != quiet {
		t.Errorf("a connection that has ended grew from %v to %v", age, later)
	}
}

// TestHandshakeTimeout: a peer that connects and says nothing does not stay; one that is established may.
func TestHandshakeTimeout(t *testing.T) {
	x, _ := ends(t, "tcp")
	conn := NewConn(x, ConnOptions{HandshakeTimeout: 20 * time.Millisecond})
	defer conn.Close(nil)
	if _, err := conn.Next(); !errors.Is(err, ErrHandshakeTimeout) || Classify(err) != ClassTimeout {
		t.Errorf("got %v", err)
	}
}

// TestPingWhileSending: the reader takes Pings while its own side's Send is blocked, and the Pong comes
// as soon as the write moves on.
func TestPingWhileSending(t *testing.T) {
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			x, y := ends(t, network)
			conn := NewConn(x, ConnOptions{DeadAfter: time.Minute})
			defer conn.Close(nil)
			got := make(chan Message)
			go func() {
				for {
					m, err := conn.Next()
					if err != nil {
						close(got)
						return
					}
					got <- m
				}
			}()
			go func() {
				for conn.Send(block(1, 0, MaxBlock, 0)) == nil { // until the connection ends
				}
			}()
			waitBlocked(conn)
			if _, err := y.Write(append(frame(t, &Ping{42}), frame(t, &Window{7})...)); err != nil {
				t.Fatal(err)
			}
			// The Window behind the Ping arrives while the Send is blocked: the reader did not wait.
			if m := <-got; m.(*Window).Granted != 7 {
				t.Fatalf("received %v", m)
			}
			findPong(t, y, 42)
			y.Close()
			<-got
		})
	}
}

// findPong reads frames off a connection until the Pong comes.
func findPong(t *testing.T, nc net.Conn, want int64) {
	t.Helper()
	head := make([]byte, HeaderSize)
	for {
		if _, err := io.ReadFull(nc, head); err != nil {
			t.Fatal(err)
		}
		h, err := parseHeader(head)
		if err != nil {
			t.Fatal(err)
		}
		body := make([]byte, h.meta+h.payload)
		if _, err := io.ReadFull(nc, body); err != nil {
			t.Fatal(err)
		}
		if h.kind != TypePong {
			continue
		}
		m, err := decodeMeta(h, body)
		if err != nil || m.(*Pong).Sent != want {
			t.Fatalf("Pong %v, %v; want %d", m, err, want)
		}
		return
	}
}

// TestReset: a connection that is cut in the middle of a frame is a reset for both directions.
func TestReset(t *testing.T) {
	whole := frame(t, block(1, 0, 64<<10, 0))
	for _, hard := range []bool{true, false} {
		for _, n := range []int{3, HeaderSize, HeaderSize + 10, len(whole) - 1} {
			x, y := ends(t, "tcp")
			conn := NewConn(x, ConnOptions{})
			if _, err := y.Write(whole[:n]); err != nil {
				t.Fatal(err)
			}
			if hard {
				y.(*net.TCPConn).SetLinger(0) // close sends a reset
			}
			y.Close()
			_, _, err := receiveAll(conn)
			if Classify(err) != ClassReset {
				t.Errorf("hard %v, cut after %d bytes: %v (%s)", hard, n, err, Classify(err))
			}
		}
	}
}
