package engine

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// webNode runs a node with one volume, whose image is there if wanted, until stop is called or the test ends.
func webNode(t *testing.T, image bool) (st Status, stop func()) {
	t.Helper()
	dir := t.TempDir()
	o := ServerOptions{StateDir: dir, Listen: "127.0.0.1:0", HTTP: "127.0.0.1:0", Insecure: true, Version: "v1.2.3", Log: func(text string) { t.Log(text) },
		Volumes: map[string]VolumeConfig{"one": {Path: filepath.Join(dir, "one.img")}}}
	if image {
		if err := os.WriteFile(o.Volumes["one"].Path, make([]byte, mib), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, o) }()
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			if err := <-ended; err != nil {
				t.Errorf("serve: %v", err)
			}
		}
	}
	t.Cleanup(stop)
	eventually(t, "the control socket appears", func() (ok bool) {
		var err error
		st, err = FetchStatus(t.Context(), filepath.Join(dir, "control.sock"))
		return err == nil
	})
	return st, stop
}

// askWeb sends a request. Its connection is not kept.
func askWeb(t *testing.T, method, url string) (code int, body string, head http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text), answer.Header
}

func TestWebPages(t *testing.T) {
	st, _ := webNode(t, true)
	for _, c := range []struct {
		method, path string
		code         int
		has          string
	}{
		{"GET", "/metrics", 200, "\nblkmirror_build_info{version=\"v1.2.3\"} 1\n"},
		{"GET", "/metrics", 200, "\nblkmirror_volume_state{state=\"ok\",volume=\"one\"} 1\n"},
		{"GET", "/metrics", 200, "\ngo_goroutines "},
		{"GET", "/metrics", 200, "\nprocess_resident_memory_bytes "},
		{"GET", "/healthz", 200, "ok\n"},
		{"GET", "/", 200, "blkmirror: /metrics /healthz\n"},
		{"HEAD", "/metrics", 200, ""},
		{"HEAD", "/healthz", 200, ""},
		{"POST", "/metrics", 405, ""},
		{"PUT", "/healthz", 405, ""},
		{"DELETE", "/", 405, ""},
		{"GET", "/status", 404, ""},
		{"GET", "/metrics/", 404, ""},
		{"POST", "/cut?volume=one", 404, ""},
		{"GET", "/debug/pprof/", 404, ""},
	} {
		if code, body, _ := askWeb(t, c.method, "http://"+st.HTTP+c.path); code != c.code || !strings.Contains(body, c.has) || c.method == "HEAD" && body != "" {
			t.Errorf("%s %s: %d %.200q", c.method, c.path, code, body)
		}
	}
	if _, _, head := askWeb(t, "GET", "http://"+st.HTTP+"/metrics"); !strings.HasPrefix(head.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("%v", head)
	}
	nc, err := net.Dial("tcp", st.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	fmt.Fprintf(nc, "GET / HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 2*webHeaderBytes))
	if line, err := bufio.NewReader(nc).ReadString('\n'); err != nil || !strings.Contains(line, "431") {
		t.Errorf("a header of %d bytes: %q, %v", 2*webHeaderBytes, line, err)
	}
}

func TestWebHealth(t *testing.T) {
	st, _ := webNode(t, false)
	code, body, _ := askWeb(t, "GET", "http://"+st.HTTP+"/healthz")
	if want := strings.Join(st.Problems(0), "\n") + "\n"; code != 503 || body != want || !strings.HasPrefix(body, "one: missing: ") {
		t.Errorf("%d %q, status says %q", code, body, want)
	}
}

func TestWebTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	o := ServerOptions{StateDir: dir, Listen: "127.0.0.1:0", HTTP: l.Addr().String(), Insecure: true, Volumes: map[string]VolumeConfig{"one": {Path: filepath.Join(dir, "x")}}}
	for http, kind := range map[string]Kind{o.HTTP: KindNetwork, "9117": KindUsage, "localhost": KindUsage} {
		o.HTTP = http
		err := Serve(t.Context(), o)
		if e, ok := err.(*Error); !ok || e.Kind != kind || e.On != http || e.Next == "" || !strings.Contains(err.Error(), "serve metrics on") {
			t.Errorf("%s: %v", http, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "control.sock")); err == nil {
		t.Error("there is a control socket")
	}
}

// TestWebStopsWhoIsSlow: neither one who never ends his request nor one who never reads the answer keeps the
// daemon from its stop, or the others from their answers.
func TestWebStopsWhoIsSlow(t *testing.T) {
	st, stop := webNode(t, true)
	var slow []net.Conn
	for _, text := range []string{"", "GET /metr", "GET /metrics HTTP/1.1\r\nHost: x\r\n", strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 500)} {
		nc, err := net.Dial("tcp", st.HTTP)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		slow = append(slow, nc)
		go io.WriteString(nc, text) // the last one ends when the connection does
	}
	if code, _, _ := askWeb(t, "GET", "http://"+st.HTTP+"/healthz"); code != 200 {
		t.Errorf("beside slow ones: %d", code)
	}
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(webRequestTime - time.Second): // that time-out would have ended them
		t.Fatal("the daemon does not stop")
	}
	for i, nc := range slow {
		nc.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(io.Discard, nc); err != nil && os.IsTimeout(err) {
			t.Errorf("connection %d is still open", i)
		}
	}
	if _, err := net.Dial("tcp", st.HTTP); err == nil {
		t.Error("somebody still listens")
	}
}
