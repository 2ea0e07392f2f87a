package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// server is a running `serve`.
type server struct {
	*proc
	state, control, addr string
}

// status is what `status --json` prints.
type status struct {
	Listen  string `json:"listen"`
	Volumes []struct {
		Name     string            `json:"name"`
		State    string            `json:"state"`
		Role     string            `json:"role"`
		Size     int64             `json:"size"`
		Sessions []json.RawMessage `json:"sessions"`
	} `json:"volumes"`
}

var addresses atomic.Uint32

// ownAddress is one of this machine's own where nobody else listens. A daemon that is dead has left its port, which the
// kernel may give to the next one that asks: who still dials there must not find the daemon of another test.
func ownAddress() string {
	n := addresses.Add(1)
	return fmt.Sprintf("127.1.%d.%d", n>>8, n&0xff)
}

// serve starts a server with the race detector and waits until it is ready.
func serve(t testing.TB, state string, volumes ...string) *server {
	t.Helper()
	return serveWith(t, checked, state, volumes...)
}

// serveWith takes volumes as NAME=PATH.
func serveWith(t testing.TB, binary, state string, volumes ...string) *server {
	t.Helper()
	line := []string{binary, "serve", "--insecure", "--state", state, "--listen", ownAddress() + ":0"}
	for _, v := range volumes {
		line = append(line, "--volume", v)
	}
	s := &server{proc: launch(t, nil, line...), state: state, control: filepath.Join(state, "control.sock")}
	until(t, "the control socket", func() bool {
		if s.ended() {
			t.Fatalf("serve ended: %s", s.err.String())
		}
		nc, err := net.Dial("unix", s.control) // one that a killed server left refuses
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
	s.addr = s.status().Listen
	return s
}

func (s *server) status() status {
	s.t.Helper()
	r := launch(s.t, nil, plain, "status", "--json", "--control", s.control).wait().ok(s.t)
	var st status
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		s.t.Fatalf("status --json: %v\n%s", err, r.stdout)
	}
	return st
}

// sessions counts the syncs under way.
func (s *server) sessions() int {
	n := 0
	for _, v := range s.status().Volumes {
		n += len(v.Sessions)
	}
	return n
}

// url names a volume of it.
func (s *server) url(volume string) string { return "blk://" + s.addr + "/" + volume }
