package e2e

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// slowPush starts a push that takes some time, through a proxy, and waits until some of it is durable.
func slowPush(t *testing.T, extra ...string) (p pair, s *server, through *proxy, client *proc) {
	p = newPair(t, 48*mib)
	s = serve(t, p.state, "v="+p.dst)
	through = newProxy(t, s.addr)
	args := []string{"sync", "--insecure", "--rate", "6M", p.src, through.url("v")}
	client = start(t, append(args, extra...)...)
	until(t, "durable progress", func() bool { return through.flushed.Load() > 0 || client.ended() })
	return p, s, through, client
}

// resumes runs the sync again and expects that it goes on behind what was durable.
func (p pair) resumes(t *testing.T, s *server, durable int64) {
	t.Helper()
	rep := syncJSON(t, "--insecure", p.src, s.url("v"))
	equal(t, p.src, p.dst)
	t.Logf("durable %d; next run: resumed %d, skipped %d, shipped %d of %d bytes", durable, rep.Resumed, rep.Skipped, rep.Shipped, rep.Size)
	if rep.Resumed < durable {
		t.Errorf("resumed %d, durable were %d", rep.Resumed, durable)
	}
}

func TestInterruptedSync(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			p, s, through, client := slowPush(t)
			client.signal(sig)
			r := client.wait().fails(t, 1, "goes on")
			t.Logf("%s", r.stderr)
			p.resumes(t, s, through.flushed.Load())
		})
	}
}

// The same on one machine.
func TestInterruptedLocalSync(t *testing.T) {
	t.Parallel()
	p := newPair(t, 64*mib)
	c := start(t, "sync", "--state", p.state, "--rate", "6M", p.src, p.dst)
	until(t, "recorded progress", func() bool {
		dirs, _ := filepath.Glob(filepath.Join(p.state, "sync", "*"))
		if len(dirs) == 0 {
			return c.ended()
		}
		r := launch(t, nil, plain, "inspect", filepath.Join(dirs[0], "log")).wait()
		return strings.Contains(r.stdout, "progress") || c.ended()
	})
	c.signal(syscall.SIGINT)
	c.wait().fails(t, 1, "goes on")
	rep := p.sync(t, p.src, p.dst).ok(t).report(t)
	equal(t, p.src, p.dst)
	t.Logf("next run: resumed %d, skipped %d, shipped %d", rep.Resumed, rep.Skipped, rep.Shipped)
	if rep.Resumed == 0 {
		t.Error("nothing was resumed")
	}
}

// SIGTERM of the server in the middle of a sync ends both in order; with a client that waits, a new server
// is found.
func TestTerminatedServer(t *testing.T) {
	t.Parallel()
	t.Run("client gives up", func(t *testing.T) {
		p, s, through, client := slowPush(t, "--retry", "0s")
		s.signal(syscall.SIGTERM)
		if r := s.wait(); r.code != 0 || strings.Contains(r.stderr, "goroutine ") {
			t.Errorf("serve: exit code %d: %s", r.code, r.stderr)
		}
		absent(t, s.control)
		client.wait().fails(t, 3)
		p.resumes(t, serve(t, p.state, "v="+p.dst), through.flushed.Load())
	})
	t.Run("client waits", func(t *testing.T) {
		p, s, through, client := slowPush(t, "--json")
		s.signal(syscall.SIGTERM)
		s.wait().ok(t)
		s = serve(t, p.state, "v="+p.dst)
		through.backend.Store(s.addr)
		rep := client.wait().ok(t).report(t)
		equal(t, p.src, p.dst)
		t.Logf("one run over two servers: %+v", rep)
		if rep.Reconnects == 0 {
			t.Error("no reconnect is reported")
		}
	})
}
