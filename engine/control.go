package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
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

// The control socket speaks HTTP and JSON over a unix socket with mode 0600: GET /status.

// Status is what the control socket answers (GET /status), and `status --json` prints. The JSON form is
// an interface: only ever added to.
type Status struct {
	Node    NodeStatus     `json:"node"`
	Listen  string         `json:"listen"` // as bound: with the port that was chosen for :0
	Volumes []VolumeStatus `json:"volumes"`
}

// NodeStatus names the node.
type NodeStatus struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
}

// VolumeStatus tells the state of one volume.
type VolumeStatus struct {
	Name     string          `json:"name"`
	Device   string          `json:"device"`
	Size     int64           `json:"size"`
	Role     string          `json:"role"`  // "idle", "source", "target": of the sessions under way
	State    string          `json:"state"` // "ok", "missing", "failed"
	Error    string          `json:"error,omitempty"`
	Sessions []SessionStatus `json:"sessions"`
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
	controlTimeout = 10 * time.Second // for one request, on both sides
	maxStatus      = 16 << 20         // bytes that a client believes
	software       = "blkmirror"
	nodeIDFile     = "node-id"
	maxSocketPath  = 107 // sun_path of unix(7), less its final zero
)

// controlSocket serves requests until it is closed.
type controlSocket struct {
	path    string
	http    *http.Server
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
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", s.answerStatus)
	c := &controlSocket{path: s.Control, http: &http.Server{Handler: mux, ReadTimeout: controlTimeout, WriteTimeout: controlTimeout}}
	c.routine.Go(func() {
		if err := c.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log(fmt.Sprintf("control socket: %v", err))
		}
	})
	return c, nil
}

func (c *controlSocket) close() {
	os.Remove(c.path)
	c.http.Close()
	c.routine.Wait()
}

func (s *server) answerStatus(w http.ResponseWriter, _ *http.Request) {
	st := Status{
		Node:    NodeStatus{ID: s.id, Name: hostName(), Version: s.Version},
		Listen:  s.listener.Addr().String(),
		Volumes: []VolumeStatus{},
	}
	for _, name := range s.names {
		st.Volumes = append(st.Volumes, s.volumes[name].status())
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(st) // an error here is the client's connection
}

// FetchStatus asks the daemon behind a control socket.
func FetchStatus(ctx context.Context, control string) (Status, error) {
	var st Status
	client := http.Client{
		Timeout: controlTimeout,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", control)
		}},
	}
	fail := func(err error) (Status, error) {
		return Status{}, &Error{Kind: KindNetwork, Op: "ask daemon on", On: control, Err: err,
			Next: "start `blkmirror serve`, or name its socket with --control or BLKMIRROR_CONTROL"}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://control/status", nil)
	if err != nil {
		return fail(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fail(fmt.Errorf("it answered %s", resp.Status))
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxStatus)).Decode(&st); err != nil {
		return fail(fmt.Errorf("its answer makes no sense: %w", err))
	}
	return st, nil
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
