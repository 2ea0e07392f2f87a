package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// disconnect is an entry of `status --history --json`.
type disconnect struct {
	Class       string  `json:"class"`
	Error       string  `json:"error"`
	Next        string  `json:"next"`
	Tries       int     `json:"tries"`
	Role        string  `json:"role"`
	Peer        string  `json:"peer"`
	Established bool    `json:"established"`
	Seconds     float64 `json:"seconds"`
	Sent        int64   `json:"sent_bytes"`
}

// history is what a node tells of its disconnects: those of one role, and how many of each class.
func (n *node) history(role string) (all []disconnect, counts map[string]int) {
	n.t.Helper()
	var h struct {
		Node struct {
			Disconnects map[string]int `json:"disconnects"`
		} `json:"node"`
		History []disconnect `json:"history"`
	}
	r := n.ask("status", "--history", "--json").ok(n.t)
	if err := json.Unmarshal([]byte(r.stdout), &h); err != nil {
		n.t.Fatalf("status --history --json: %v\n%s", err, r.stdout)
	}
	for _, d := range h.History {
		if d.Role == role {
			all = append(all, d)
		}
	}
	if len(h.Node.Disconnects) != 13 {
		n.t.Errorf("counts of %d classes: %v", len(h.Node.Disconnects), h.Node.Disconnects)
	}
	return all, h.Node.Disconnects
}

// connected waits until the mirror of a primary is there.
func (p *livePair) connected() {
	p.t.Helper()
	until(p.t, "the mirror to be connected", func() bool { return p.primary.peer().State == "connected" })
}

// A mirror that is stopped says so, and knocks when it is started: the history tells one clean stop, on both sides and
// over restarts, and nothing else.
func TestLiveStopAndKnock(t *testing.T) {
	t.Parallel()
	p := startLivePair(t, checked, 16*mib)
	p.mirror.down()
	until(t, "the stop to be told", func() bool {
		d := p.primary.peer().Disconnect
		return d != nil && d.Class == "peer-stopped"
	})
	heard := strings.Count(p.primary.err.String(), "knocks")
	p.mirrorUp()
	until(t, "the knock", func() bool { return strings.Count(p.primary.err.String(), "knocks") > heard })
	p.connected()
	p.cut()
	p.same()
	check := func(when string, counted int) {
		t.Helper()
		all, counts := p.primary.history("primary")
		if len(all) != 1 || all[0].Class != "peer-stopped" || !all[0].Established || all[0].Seconds <= 0 || all[0].Sent == 0 || all[0].Next == "" {
			t.Errorf("%s: the primary tells %+v", when, all)
		}
		if counts["peer-stopped"] != counted {
			t.Errorf("%s: counts %v", when, counts)
		}
	}
	check("the mirror is back", 1)
	if all, _ := p.mirror.history("mirror"); len(all) != 1 || all[0].Class != "local-stop" {
		t.Errorf("the mirror tells %+v", all)
	}
	p.primary.down()
	p.primary.up()
	p.connected()
	all, counts := p.primary.history("primary")
	if len(all) != 2 || all[1].Class != "local-stop" || counts["local-stop"] != 0 {
		t.Errorf("after a clean restart the primary tells %+v, counts %v", all, counts)
	}
	if all, _ := p.mirror.history("mirror"); len(all) != 2 || all[0].Class != "local-stop" || all[1].Class != "peer-stopped" {
		t.Errorf("the mirror tells %+v", all)
	}
	p.primary.kill()
	until(t, "the mirror to tell a reset", func() bool {
		all, _ := p.mirror.history("mirror")
		return len(all) == 3 && all[2].Class == "reset"
	})
	r := p.mirror.ask("status", "--history").ok(t)
	for _, word := range []string{"CLASS", "local-stop", "reset", "peer-stopped", "next: "} {
		if !strings.Contains(r.stdout, word) {
			t.Errorf("status --history does not say %q:\n%s", word, r.stdout)
		}
	}
}

// A peer that accepts and drops at once, at any point of the handshake, is not dialled in a loop, and is one entry.
func TestLiveAcceptAndDrop(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(net.Conn){
		"at once": func(net.Conn) {},
		"after Hello": func(nc net.Conn) {
			if _, err := readFrame(nc); err == nil {
				nc.Write(helloOf(4).bytes())
				readFrame(nc) // Attach, which is a type that this file does not know: never mind
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var count atomic.Int64
			var all sync.WaitGroup
			all.Go(func() {
				for {
					nc, err := l.Accept()
					if err != nil {
						return
					}
					count.Add(1)
					nc.SetDeadline(time.Now().Add(patience))
					answer(nc)
					nc.Close()
				}
			})
			t.Cleanup(func() { l.Close(); all.Wait() })
			dir := folder(t)
			sized(t, dir, "src", 4*mib)
			n := newNode(t, checked, filepath.Join(dir, "p"), "--volume", "v="+filepath.Join(dir, "src"), "--mirror", "v="+l.Addr().String())
			began := time.Now()
			n.up()
			until(t, "some attempts", func() bool { return count.Load() >= 6 })
			// The first few come within a second or two, later ones at most every one and a half.
			if got, most := count.Load(), int64(8+time.Since(began).Seconds()); got > most {
				t.Errorf("%d connections in %v", got, time.Since(began))
			}
			entries, counts := n.history("primary")
			if len(entries) != 1 || entries[0].Class != "reset" || entries[0].Established || entries[0].Tries < 4 || counts["reset"] != 1 {
				t.Errorf("%+v, counts %v", entries, counts)
			}
			if lines := strings.Count(n.err.String(), "no session: reset"); lines != 1 {
				t.Errorf("%d lines of the log:\n%s", lines, n.err.String())
			}
		})
	}
}

// A path that holds everything back is one disconnect, of class timeout, and is used again when it passes.
func TestLiveHeldBack(t *testing.T) {
	t.Parallel()
	p := startLivePair(t, checked, 16*mib)
	p.connected()
	p.link.hold()
	until(t, "the silence to be noticed", func() bool {
		d := p.primary.peer().Disconnect
		return d != nil && d.Class == "timeout"
	})
	until(t, "another attempt to fail", func() bool {
		all, _ := p.primary.history("primary")
		return len(all) > 0 && all[len(all)-1].Tries > 0
	})
	p.link.pass()
	passed := time.Now()
	p.connected()
	t.Logf("connected %v after the path came back", time.Since(passed).Round(time.Millisecond))
	p.cut()
	p.same()
	all, counts := p.primary.history("primary")
	if len(all) != 1 || all[0].Class != "timeout" || !all[0].Established || counts["timeout"] != 1 {
		t.Errorf("the primary tells %+v, counts %v", all, counts)
	}
}

// A connection of which one half is gone: the new one replaces it and never runs beside it, whichever side knows.
func TestLiveHalfOpen(t *testing.T) {
	t.Parallel()
	for _, primary := range []bool{true, false} {
		t.Run(fmt.Sprintf("primary knows %v", primary), func(t *testing.T) {
			p := startLivePair(t, checked, 16*mib)
			p.connected()
			p.link.halve(primary)
			want := map[bool]string{true: "reset", false: "timeout"}[primary]
			until(t, "the loss to be noticed", func() bool {
				d := p.primary.peer().Disconnect
				return d != nil && d.Class == want
			})
			p.connected()
			p.cut()
			p.same()
			if all, _ := p.primary.history("primary"); len(all) != 1 || !all[0].Established {
				t.Errorf("the primary tells %+v", all)
			}
			var all []disconnect
			until(t, "the mirror to part with the old one", func() bool { // it still says farewell to it
				all, _ = p.mirror.history("mirror")
				return len(all) > 0
			})
			if primary && (all[0].Class != "local-stop" || !strings.Contains(all[0].Error, "newer connection")) {
				t.Errorf("the mirror was not told by the newer connection: %+v", all)
			}
		})
	}
}

// A session that is idle, paused or read-only keeps the way open: pings go on (wire's tests say how often), and it is
// not lost.
func TestLivePings(t *testing.T) {
	t.Parallel()
	p, _ := filled(t, 16*mib)
	before := p.primary.peer().Reconnects
	beats := func(state string) {
		t.Helper()
		until(t, "the mirror to be "+state, func() bool { return p.primary.peer().State == state })
		for range 2 {
			last := p.primary.peer().Wire
			until(t, "a ping while it is "+state, func() bool { return p.primary.peer().Wire > last })
		}
		if m := p.primary.peer(); m.State != state || m.Reconnects != before {
			t.Errorf("it was to stay %s: %+v", state, m)
		}
	}
	beats("connected")
	p.primary.ask("pause", "v").ok(t)
	beats("paused")
	p.primary.ask("resume", "v").ok(t)
	p.connected()
	dd(t, p.dst, 5*mib)
	p.primary.ask("verify", "v").fails(t, 5, "read-only")
	before = p.primary.peer().Reconnects // the verdict may end a session
	beats("read-only")
}
