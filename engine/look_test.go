package engine

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/blockdev"
)

// hangingLive is a live volume that does not tell its state before it may.
type hangingLive struct {
	fakeLive
	asked chan struct{} // one token each time it is asked
	may   chan struct{}
}

func (h *hangingLive) fill(v *VolumeStatus) {
	h.asked <- struct{}{}
	<-h.may
	h.fakeLive.fill(v)
}

// TestLookWaitsForNoDisk: a volume that does not answer is told as such, the others as always, and however often
// one looks, one goroutine waits.
func TestLookWaitsForNoDisk(t *testing.T) {
	h := &hangingLive{asked: make(chan struct{}, 100), may: make(chan struct{})}
	control, _ := controlOf(t, h)
	for range 5 {
		st, err := FetchStatus(t.Context(), control)
		if err != nil || len(st.Volumes) != 2 {
			t.Fatal(err, st)
		}
		db, disk := st.Volumes[0], st.Volumes[1]
		if db.State != "failed" || db.Role != "unknown" || db.Error != errHangs.Error() || db.Next == "" || disk.State != "ok" {
			t.Fatalf("%+v", st.Volumes)
		}
		if got := st.Problems(0); !slices.Equal(got, []string{"db: failed: does not answer: a disk hangs"}) {
			t.Errorf("%q", got)
		}
	}
	if n := len(h.asked); n != 1 {
		t.Errorf("%d goroutines wait for it", n)
	}
	close(h.may)
	eventually(t, "it answers again", func() bool {
		st, err := FetchVolume(t.Context(), control, "db")
		return err == nil && st.Volumes[0].State == "ok" && st.Volumes[0].Role == "primary"
	})
}

// TestLateAnswerCounts: who asked while it was late, and who asks after that.
func TestLateAnswerCounts(t *testing.T) {
	h := &hangingLive{asked: make(chan struct{}, 100), may: make(chan struct{})}
	v := &volume{name: "db", live: h}
	both := make(chan VolumeStatus)
	for range 2 {
		go func() { both <- v.soon(time.Millisecond) }()
	}
	for range 2 {
		if st := <-both; st.Role != "unknown" {
			t.Errorf("%+v", st)
		}
	}
	close(h.may)
	eventually(t, "all answers have come", func() bool {
		v.inquiry.mu.Lock()
		defer v.inquiry.mu.Unlock()
		return v.inquiry.late == 0
	})
	if st := v.soon(time.Minute); st.Role != "primary" {
		t.Errorf("%+v", st)
	}
}

// openedPrimary is a primary without a node around it. Its mirror is never reached.
func openedPrimary(t *testing.T) (*volume, *primary) {
	t.Helper()
	dir := t.TempDir()
	s := &server{ServerOptions: ServerOptions{StateDir: dir, Insecure: true, Log: func(text string) { t.Log(text) }}, id: "id"}
	s.gate, s.disconnects, s.listening = newGate(nil, "", s.log), newDisconnects(s.log, time.Now), make(chan struct{})
	v := &volume{name: "v", path: filepath.Join(dir, "image"), config: VolumeConfig{Path: filepath.Join(dir, "image"), Mirrors: []MirrorConfig{{Name: "east", Address: "127.0.0.1:1"}}}}
	if err := os.WriteFile(v.path, make([]byte, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	s.openLive(t.Context(), v)
	live, ok := v.getLive().(*primary)
	if !ok {
		t.Fatalf("%+v", v.status())
	}
	t.Cleanup(func() { live.stop(context.Background()) })
	return v, live
}

// TestFactsAreToldWhileTheyBecomeDurable: somebody holds their lock for as long as a disk hangs.
func TestFactsAreToldWhileTheyBecomeDurable(t *testing.T) {
	v, live := openedPrimary(t)
	told := make(chan VolumeStatus, 1)
	live.facts.mu.Lock()
	defer live.facts.mu.Unlock()
	go func() { told <- v.status() }()
	select {
	case st := <-told:
		if st.UUID == "" || st.State != "ok" {
			t.Errorf("%+v", st)
		}
	case <-time.After(time.Minute):
		t.Error("a status waits for the journal")
	}
}

// TestQuarantineIsCounted: the first blocks are named, all are counted, and one that two extents touch once.
func TestQuarantineIsCounted(t *testing.T) {
	numbers, all := blockNumbers([]blockdev.Extent{{Offset: 0, Length: 10}, {Offset: 20, Length: 10}, {Offset: 150, Length: 100}, {Offset: 1000, Length: 1 << 20}}, 100)
	if want := int64(1 + 2 + (1000+1<<20-1)/100 - 10 + 1); all != want || len(numbers) != maxBlocksTold || !slices.Equal(numbers[:5], []int64{0, 1, 2, 10, 11}) {
		t.Errorf("%d blocks of %d, the first are %v", len(numbers), all, numbers[:5])
	}
}

// hangingDevice writes and flushes when it may.
type hangingDevice struct {
	device
	hangs *atomic.Bool
	may   chan struct{}
}

func (d *hangingDevice) wait() {
	if d.hangs.Load() {
		<-d.may
	}
}

func (d *hangingDevice) WriteAt(b []byte, off int64) (int, error) {
	d.wait()
	return d.device.WriteAt(b, off)
}

func (d *hangingDevice) Flush() error {
	d.wait()
	return d.device.Flush()
}

// TestStatusOfAHangingDevice: either side tells its whole state while its device takes nothing.
func TestStatusOfAHangingDevice(t *testing.T) {
	p := newLivePair(t, 1, nil)
	p.settle()
	var hangs atomic.Bool
	may := make(chan struct{})
	for _, n := range []*liveNode{p.primary, p.mirrors[0]} {
		n.stop()
		n.device = func(path string, o blockdev.Options) (device, error) {
			d, err := openFile(path, o)
			return &hangingDevice{d, &hangs, may}, err
		}
		n.start()
	}
	c := p.client()
	p.write(c, 0, mib)
	p.settle()
	hangs.Store(true)
	written := make(chan error, 1)
	go func() { written <- c.Write(make([]byte, mib), 0, 0) }()
	for range 20 {
		if st := p.primary.status(); st.Role != "primary" || st.UUID == "" || len(st.Mirrors) != 1 {
			t.Errorf("the primary: %+v", st)
		}
		if st := p.mirrors[0].status(); st.Role != "mirror" || st.Primary == nil {
			t.Errorf("the mirror: %+v", st)
		}
	}
	select {
	case err := <-written:
		t.Errorf("it did not hang: %v", err)
	default:
	}
	hangs.Store(false)
	close(may)
	if err := <-written; err != nil {
		t.Error(err)
	}
	p.settle()
	p.equal(0)
}

// countedConn has carried so much, and does nothing.
type countedConn struct {
	Conn
	sent, received int64
}

func (c *countedConn) Sent() int64     { return c.sent }
func (c *countedConn) Received() int64 { return c.received }

// TestWireBytesNeverGoBack: a connection counts while it stands, when its session is over and it is not closed yet, and
// after that; once.
func TestWireBytesNeverGoBack(t *testing.T) {
	v, live := openedPrimary(t)
	s := live.shippers()[0]
	want := func(when string, bytes int64) {
		t.Helper()
		if got := v.status().Mirrors[0].WireBytes; got != bytes {
			t.Errorf("%s: %d bytes, not %d", when, got, bytes)
		}
	}
	want("before", 0)
	c := &countedConn{sent: 40, received: 2}
	s.mu.Lock()
	s.carrying = c
	s.mu.Unlock()
	want("without a session", 42)
	c.sent++ // a farewell
	s.carried(c)
	want("closed", 43)
}
