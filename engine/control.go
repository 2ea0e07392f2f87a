package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/blkmirror/blkmirror/journal"
)

// The control socket speaks HTTP and JSON over a unix socket with mode 0600:
//
//	GET  /status[?volume=]                       Status
//	GET  /history[?volume=]                      History
//	POST /cut?volume=&wait=1&timeout=60s         CutResult
//	POST /pause?volume=
//	POST /resume?volume=[&overwrite=MIRROR]
//	POST /rebuild?volume=
//
// What fails answers with another code than 200 and a controlError. controlclient.go is the other side.

// Status is what the control socket answers (GET /status), and `status --json` prints. The JSON form is
// an interface: only ever added to.
type Status struct {
	Node    NodeStatus     `json:"node"`
	Listen  string         `json:"listen"`         // as bound: with the port that was chosen for :0
	HTTP    string         `json:"http,omitempty"` // likewise, of the metrics
	Volumes []VolumeStatus `json:"volumes"`
}

// NodeStatus names the node.
type NodeStatus struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Key     string `json:"key,omitempty"` // the ID: what other nodes trust
	// Warnings are what a person has to do about keys, certificates and rights: before they end.
	Warnings []string `json:"warnings,omitempty"`
	// Disconnects counts them since the start, by class; each class is there.
	Disconnects map[string]int64 `json:"disconnects,omitempty"`
}

// History is what the control socket answers (GET /history), and `status --history --json` prints. The JSON form
// is an interface: only ever added to.
type History struct {
	Node    NodeStatus   `json:"node"`
	History []Disconnect `json:"history"` // oldest first; at most 100, also of earlier processes
}

// VolumeStatus tells the state of one volume.
type VolumeStatus struct {
	Name     string          `json:"name"`
	Device   string          `json:"device"`
	Size     int64           `json:"size"`
	Role     string          `json:"role"`  // "primary", "mirror"; else of the syncs under way: "idle", "source", "target"; "unknown": it does not answer
	State    string          `json:"state"` // "ok", "missing", "failed"; live ones also "comparing", "inconsistent", "read-only", "paused"
	Error    string          `json:"error,omitempty"`
	Next     string          `json:"next,omitempty"` // what a person can do about Error
	Sessions []SessionStatus `json:"sessions"`

	// Of a live volume.
	UUID       string         `json:"uuid,omitempty"`
	BlockSize  int            `json:"block_size,omitempty"`
	Generation string         `json:"generation,omitempty"`
	Epoch      uint64         `json:"epoch"` // primary: the last cut; mirror: the committed one
	Mode       string         `json:"mode,omitempty"`
	Export     string         `json:"export,omitempty"`
	Unproven   bool           `json:"unproven"`
	ReadOnly   *ReadOnlyCause `json:"read_only"`
	Compared   int64          `json:"compared_bytes,omitempty"` // state comparing: how far
	MaxLag     float64        `json:"max_lag_seconds,omitempty"`
	Mirrors    []MirrorStatus `json:"mirrors,omitempty"` // of a primary
	Primary    *MirrorStatus  `json:"primary,omitempty"` // of a mirror

	// What a scrub has found on a primary's own disk.
	Rot        []int64         `json:"rot,omitempty"`        // numbers of blocks; the first ones, where there are many
	RotBlocks  int64           `json:"rot_blocks,omitempty"` // how many there are
	Mismatches *MismatchCounts `json:"mismatches,omitempty"` // that concern no mirror

	// Counts of a primary's export since it opened.
	ReadBytes    int64 `json:"read_bytes,omitempty"`
	WrittenBytes int64 `json:"written_bytes,omitempty"`
	DeviceErrors int64 `json:"device_errors,omitempty"`
	HotRegions   int64 `json:"hot_regions,omitempty"`
	IndexNeeds   int64 `json:"index_needs_bytes"` // what a primary's own index does not know yet

	IndexDropped int64 `json:"index_dropped,omitempty"` // how often the index was begun anew, damaged or not usable, since the start
}

// SessionStatus tells one sync under way.
type SessionStatus struct {
	Peer          string  `json:"peer"`
	Role          string  `json:"role"` // ours
	Seconds       float64 `json:"seconds"`
	ScannedBytes  int64   `json:"scanned_bytes"`
	ShippedBytes  int64   `json:"shipped_bytes"`
	SkippedBytes  int64   `json:"skipped_bytes"`
	ZeroBytes     int64   `json:"zero_bytes"`
	WireBytes     int64   `json:"wire_bytes"`
	RetriedBlocks int64   `json:"retried_blocks"`
}

const (
	controlTimeout = 10 * time.Second // to send a request and to read an answer, on both sides
	commandTimeout = 60 * time.Second // for what a request asks for, unless it says how long it will wait
	maxControlWait = 24 * time.Hour   // that it may say
	lastAnswers    = 2 * time.Second  // what requests have for their answers when the daemon stops
	maxAnswer      = 16 << 20         // bytes that a client believes
	software       = "blkmirror"
	nodeIDFile     = "node-id"
	maxSocketPath  = 107 // sun_path of unix(7), less its final zero
)

// controlSocket serves requests until it is closed.
type controlSocket struct {
	path    string
	http    *http.Server
	ctx     context.Context // of every request; ends when the socket is closed
	cancel  context.CancelCauseFunc
	routine sync.WaitGroup
}

// listenControl makes the socket. It gets its name only when it is ready and has its mode, so whoever
// sees it can use it. A socket that a crashed daemon left is replaced: the state directory's lock says
// that no daemon of this state is alive, and a knock that nobody else answers there.
func (s *server) listenControl() (*controlSocket, error) {
	refuse := func(err error, next string) error {
		return &Error{Kind: KindState, Op: "make control socket", On: s.Control, Err: err, Next: next}
	}
	if nc, err := net.DialTimeout("unix", s.Control, controlTimeout); err == nil {
		nc.Close()
		return nil, refuse(errors.New("another daemon answers on it"), "choose another --control or end that daemon")
	}
	if fi, err := os.Lstat(s.Control); err == nil && fi.Mode()&fs.ModeSocket == 0 {
		return nil, refuse(errors.New("something that is no socket is in its place"), "choose another --control")
	}
	temporary := fmt.Sprintf("%s.%d", s.Control, os.Getpid())
	if len(temporary) > maxSocketPath {
		return nil, refuse(fmt.Errorf("its path has more than %d bytes", maxSocketPath), "choose a shorter --control or --state")
	}
	l, err := net.Listen("unix", temporary)
	if err != nil {
		return nil, deviceError("make control socket", s.Control, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err = os.Chmod(temporary, 0o600); err == nil {
		err = os.Rename(temporary, s.Control)
	}
	if err != nil {
		l.Close()
		os.Remove(temporary)
		return nil, deviceError("make control socket", s.Control, err)
	}
	c := &controlSocket{path: s.Control}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.http = &http.Server{Handler: s.controlRequests(), ReadTimeout: controlTimeout, WriteTimeout: controlTimeout,
		BaseContext: func(net.Listener) context.Context { return c.ctx }}
	c.routine.Go(func() {
		if err := c.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log(fmt.Sprintf("control socket: %v", err))
		}
	})
	return c, nil
}

// close ends the requests that wait, and lets them say so.
func (c *controlSocket) close() {
	os.Remove(c.path)
	c.cancel(errDaemonStops)
	ctx, cancel := context.WithTimeout(context.Background(), lastAnswers)
	defer cancel()
	if c.http.Shutdown(ctx) != nil {
		c.http.Close()
	}
	c.routine.Wait()
}

// nodeID reads the node's name for itself, or makes one at the first start.
func nodeID(stateDir string) (string, error) {
	path := filepath.Join(stateDir, nodeIDFile)
	blob, err := os.ReadFile(path)
	if err == nil {
		id := strings.TrimSpace(string(blob))
		if raw, err := hex.DecodeString(id); err != nil || len(raw) != 16 {
			return "", fmt.Errorf("%s does not hold a node id: %w", path, syscall.EINVAL)
		}
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var raw [16]byte
	rand.Read(raw[:])
	id := hex.EncodeToString(raw[:])
	return id, writeDurably(path, []byte(id+"\n"))
}

// writeDurably makes a small file whole or not at all, also across a power cut.
func writeDurably(path string, blob []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(blob)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err == nil {
		err = journal.OS.SyncDir(filepath.Dir(path))
	}
	return err
}

// hostName is how this node introduces itself; it decides nothing.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}
