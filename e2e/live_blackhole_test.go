package e2e

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
	"github.com/blkmirror/blkmirror/paths"
)

// newHop is network namespaces in a row, or the end of the test where there can be none.
func newHop(t testing.TB, mtu int) *paths.Hop {
	t.Helper()
	h, err := paths.NewHop(t.Context(), mtu)
	if err != nil && paths.NotHere(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

const (
	farPort = "7417"
	far     = paths.RightAddr + ":" + farPort
)

// at has a daemon run in a place of the hop, and listen there.
func (n *node) at(h *paths.Hop, place int, address string) {
	line := slices.Clone(n.line)
	line[slices.Index(line, "--listen")+1] = address + ":" + farPort
	wrap := h.Wrap(place)
	n.binary, n.line = wrap[0], slices.Concat(wrap[1:], []string{n.binary}, line)
}

// from runs a command in a place of the hop.
func from(t testing.TB, h *paths.Hop, place int, args ...string) *proc {
	t.Helper()
	return launch(t, nil, slices.Concat(h.Wrap(place), []string{checked}, args)...)
}

// hopPair is a pair that talks TLS across a hop, primary left, and a writer on its export. It returns before the two
// are connected.
func hopPair(t *testing.T, h *paths.Hop) *stamped {
	return hopPairWith(t, h, stamp.Load{Depth: 2, Pause: 5 * time.Millisecond, NoTrim: true})
}

// hopPairWith is hopPair under another load.
func hopPairWith(t *testing.T, h *paths.Hop, load stamp.Load) *stamped {
	const size = 32 * mib
	p := newKeyedPair(t, size)
	p.trust()
	p.primary.line[slices.Index(p.primary.line, "v="+p.link.addr)] = "v=" + far
	p.primary.at(h, paths.Left, paths.LeftAddr)
	p.mirror.at(h, paths.Right, paths.RightAddr)
	p.mirror.up()
	p.primary.up()
	return stampedOn(p, size, load)
}

// narrowed expects that the primary names the black hole everywhere, and that it replicates with small segments.
func (s *stamped) narrowed(most int) {
	s.t.Helper()
	m := s.primary.peer()
	if m.Flow == nil || m.Flow.Segment == 0 || m.Flow.Segment > most || !strings.Contains(m.Flow.MTU, "large packets vanish") {
		s.t.Errorf("flow %+v of %+v", m.Flow, m)
	}
	if m.Disconnect == nil || m.Disconnect.Class != "mtu" {
		s.t.Errorf("last disconnect %+v", m.Disconnect)
	}
	all, counts := s.primary.history("primary")
	if counts["mtu"] == 0 || !slices.ContainsFunc(all, func(d disconnect) bool { return d.Class == "mtu" && strings.Contains(d.Next, "ICMP") }) {
		s.t.Errorf("history %+v, counts %v", all, counts)
	}
	for _, word := range []string{": mtu: ", "a path-MTU black hole"} {
		if !strings.Contains(s.primary.err.String(), word) {
			s.t.Errorf("the log does not say %q:\n%s", word, tail(s.primary.err.String()))
		}
	}
	if text := s.primary.ask("status").ok(s.t).stdout; !strings.Contains(text, "(mtu)") {
		s.t.Errorf("status:\n%s", text)
	}
}

// TestBlackHole: between two daemons there is a hop that drops large packets and tells nobody, from the beginning or
// from the middle of a session on. It is named, and replication goes on with smaller segments.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		first  int // the MTU of the way
		before int // if not 0, before anybody is there
		later  int // if not 0, in the middle of a session
		most   int // bytes of segments in the end
	}{
		"from the start":        {first: 1280, most: 1200},
		"much smaller":          {first: 700, most: 536},
		"in the middle":         {first: 1500, later: 1280, most: 1200},
		"jumbo frames":          {first: 9000, before: 1500, most: 1200},
		"with room: no trouble": {first: 1500},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHop(t, c.first)
			narrow := func(mtu int) {
				for _, to := range []int{paths.Left, paths.Right} {
					if err := h.Narrow(t.Context(), to, mtu); err != nil {
						t.Fatal(err)
					}
				}
			}
			if c.before > 0 {
				narrow(c.before)
			}
			began := time.Now()
			s := hopPair(t, h)
			s.settled()
			if c.later > 0 {
				s.written(50)
				began = time.Now()
				narrow(c.later)
				until(t, "the black hole to be named", func() bool {
					d := s.primary.peer().Disconnect
					return d != nil && d.Class == "mtu"
				})
				t.Logf("named %.1f s after it appeared", time.Since(began).Seconds())
				s.settled()
			}
			t.Logf("a cut arrived after %.1f s", time.Since(began).Seconds())
			s.written(100)
			s.settled()
			if c.most > 0 {
				s.narrowed(c.most)
			} else if m := s.primary.peer(); m.Disconnect != nil || m.Flow == nil || m.Flow.Segment <= 1200 || m.Flow.MTU != "" {
				t.Errorf("with room: %+v, flow %+v", m, m.Flow)
			}
			s.finish()
		})
	}
}

// TestBlackHoleAnswers: the hole is in the middle of a session, and in the direction of the mirror's answers alone, which are
// large where much is shipped. The mirror sees it and cannot choose the segments, and the primary sees a reset. A hole that swallows
// the mirror's part of a TLS handshake is seen by the primary in the next one. Where that gets through, between jumbo frames,
// it is the mirror that tells, with code 24.
func TestBlackHoleAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		first, later int // MTU of the way
		told         bool
	}{
		"handshakes too": {1500, 1280, false},
		"answers alone":  {9000, 2500, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHop(t, c.first)
			s := hopPairWith(t, h, stamp.Load{Depth: 16, Longest: 1, Pause: 5 * time.Millisecond, NoTrim: true}) // many records, and so acks
			s.settled()
			s.written(50)
			if err := h.Narrow(t.Context(), paths.Left, c.later); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			until(t, "the black hole to be named", func() bool {
				d := s.primary.peer().Disconnect
				return d != nil && d.Class == "mtu"
			})
			t.Logf("named %.1f s after it appeared", time.Since(began).Seconds())
			s.settled()
			s.written(100)
			s.settled()
			s.narrowed(1200)
			all, _ := s.primary.history("primary")
			told := slices.ContainsFunc(all, func(d disconnect) bool { return d.Class == "mtu" && strings.Contains(d.Error, "what this side sends") })
			if told != c.told {
				t.Errorf("told by the mirror: %v; %+v", told, all)
			}
			s.finish()
		})
	}
}

// TestBlackHoleMended: what was learned of a way is kept by new connections on it, and no longer when another way leads
// to the mirror.
func TestBlackHoleMended(t *testing.T) {
	h := newHop(t, 1500)
	narrow := func(mtu int) {
		for _, to := range []int{paths.Left, paths.Right} {
			if err := h.Narrow(t.Context(), to, mtu); err != nil {
				t.Fatal(err)
			}
		}
	}
	narrow(1280)
	s := hopPair(t, h)
	s.settled()
	s.narrowed(1200)
	narrow(1500)
	again := func() livePeer {
		t.Helper()
		s.mirror.kill()
		s.mirror.up()
		s.settled()
		until(t, "the flow", func() bool { f := s.primary.peer().Flow; return f != nil && f.Segment > 0 })
		return s.primary.peer()
	}
	if m := again(); m.Flow.Segment > 1200 || m.Flow.MTU == "" {
		t.Errorf("on the same way, within the hour: flow %+v", m.Flow)
	}
	if err := h.Reroute(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m := again(); m.Flow.Segment <= 1200 || m.Flow.MTU != "" {
		t.Errorf("on another way: flow %+v", m.Flow)
	}
	if !strings.Contains(s.primary.err.String(), "another way leads there now") {
		t.Errorf("it is not told:\n%s", tail(s.primary.err.String()))
	}
	s.finish()
}

// TestNoBlackHole: where everything vanishes in one direction, and not what is large alone, nobody says mtu.
func TestNoBlackHole(t *testing.T) {
	t.Parallel()
	for name, to := range map[string]int{"there": paths.Right, "back": paths.Left} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHop(t, 1500)
			s := hopPair(t, h)
			s.settled()
			s.written(50)
			if err := h.Cut(t.Context(), to); err != nil {
				t.Fatal(err)
			}
			until(t, "the loss to be noticed", func() bool { return s.primary.peer().Disconnect != nil })
			if err := h.Mend(t.Context(), to); err != nil {
				t.Fatal(err)
			}
			s.settled()
			for _, n := range []*node{s.primary, s.mirror} {
				all, counts := n.history("primary")
				t.Logf("%+v", all)
				if counts["mtu"] != 0 {
					t.Errorf("%+v, counts %v", all, counts)
				}
			}
			s.finish()
		})
	}
}

// TestBlackHoleSync: a one-shot sync in either role, with a hole in the direction of the data alone.
func TestBlackHoleSync(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		to     int // the hole is on the way there
		middle bool
		jumbo  bool // it lets a handshake through, and is found by who sends in bulk alone: code 24
	}{
		"push, from the start":        {to: paths.Right},
		"push, in the middle":         {to: paths.Right, middle: true},
		"fetch, from the start":       {to: paths.Left},
		"fetch, in the middle":        {to: paths.Left, middle: true},
		"fetch, between jumbo frames": {to: paths.Left, jumbo: true},
		"push, answers are lost":      {to: paths.Left},
		"fetch, answers are lost":     {to: paths.Right},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, later := 1500, 1280
			if c.jumbo {
				first, later = 9000, 4000
			}
			h := newHop(t, first)
			narrow := func() {
				if err := h.Narrow(t.Context(), c.to, later); err != nil {
					t.Fatal(err)
				}
			}
			if !c.middle {
				narrow()
			}
			dir := folder(t)
			push := strings.HasPrefix(name, "push")
			local, remote := filepath.Join(dir, "local"), filepath.Join(dir, "remote")
			src, dst := remote, local
			args := []string{"blk://" + far + "/v", local}
			if push {
				src, dst = local, remote
				args = []string{local, "blk://" + far + "/v"}
			}
			randomImage(t, src, 12*mib)
			n := newNode(t, checked, filepath.Join(dir, "n"), "--volume", "v="+remote)
			n.line = slices.DeleteFunc(n.line, func(arg string) bool { return arg == "--insecure" })
			n.at(h, paths.Right, paths.RightAddr)
			state := filepath.Join(dir, "s")
			keys(t, n.state, "trust", "near", idOf(t, state)).ok(t)
			keys(t, state, "trust", "far", idOf(t, n.state)).ok(t)
			n.up()
			began := time.Now()
			rate := "100M"
			if c.middle {
				rate = "3M"
			}
			p := from(t, h, paths.Left, append([]string{"sync", "--json", "--rate", rate, "--state", state}, args...)...)
			if c.middle {
				until(t, "the sync", func() bool { return strings.Contains(n.err.String(), "begins") })
				narrow()
			}
			r := p.wait().ok(t)
			t.Logf("%.1f s; %s", time.Since(began).Seconds(), r.stderr)
			if !strings.Contains(r.stderr, "black hole") {
				t.Error("it is not named")
			}
			if told := strings.Contains(r.stderr, "what this side sends"); told != c.jumbo {
				t.Errorf("the other side told: %v", told)
			}
			equal(t, src, dst)
		})
	}
}

// TestBlackHoleDoctor: doctor names it, and measures the rest with smaller segments; probe gives it its class.
func TestBlackHoleDoctor(t *testing.T) {
	h := newHop(t, 1280)
	dir := folder(t)
	state := filepath.Join(dir, "s")
	n := newNode(t, checked, filepath.Join(dir, "n"), "--volume", "v="+filepath.Join(dir, "v"))
	n.line = slices.DeleteFunc(n.line, func(arg string) bool { return arg == "--insecure" })
	n.at(h, paths.Right, paths.RightAddr)
	keys(t, n.state, "trust", "near", idOf(t, state)).ok(t)
	keys(t, state, "trust", "far", idOf(t, n.state)).ok(t)
	n.up()
	r := from(t, h, paths.Left, "doctor", "--json", "--time", "1s", "--state", state, far).wait()
	var rep doctorReport
	if err := json.Unmarshal([]byte(r.stdout), &rep); err != nil {
		t.Fatalf("%v\n%s%s", err, r.stdout, r.stderr)
	}
	bad := map[string]string{}
	for _, f := range rep.Findings {
		t.Logf("%-4s %-10s %s; %s", f.Grade, f.Check, f.Evidence, f.Next)
		if f.Grade == "bad" {
			bad[f.Check] = f.Evidence
		}
	}
	if !strings.Contains(bad["mtu"], "a black hole") || len(bad) > 1 || r.code != 7 || rep.LimitedBy == "" {
		t.Errorf("exit code %d, bad: %v, limited by %q", r.code, bad, rep.LimitedBy)
	}
	if r := from(t, h, paths.Left, "probe", "--state", state, far).wait(); r.code != 3 || !strings.Contains(r.stdout, "\nmtu: ") {
		t.Errorf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}
