package engine

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// Disconnect is one entry of a node's history: a session that was lost or a connection that did not come about,
// and with it all that failed after it for the same reason. docs/DISCONNECTS.md tells of the classes. The JSON form
// is that of `status --history --json` and of the file that keeps it: only ever added to.
type Disconnect struct {
	Class       string  `json:"class"`
	Error       string  `json:"error"`
	Next        string  `json:"next"` // what a person can do
	At          string  `json:"at"`   // RFC 3339
	Last        string  `json:"last"` // of the last that failed for the same reason
	Tries       int64   `json:"tries"`
	Role        string  `json:"role"`   // ours: primary, mirror, source, target; acceptor: whoever dialled had no session
	Volume      string  `json:"volume"` // "": not known
	Peer        string  `json:"peer"`   // its name; "": not known
	Address     string  `json:"address"`
	Established bool    `json:"established"` // there was a session
	Seconds     float64 `json:"seconds"`     // age of the connection; 0: there was none
	Quiet       float64 `json:"quiet_seconds"`
	Sent        int64   `json:"sent_bytes"`
	Received    int64   `json:"received_bytes"`
}

// parting is how a connection ended, or why there is none.
type parting struct {
	err            error
	established    bool          // as a session
	age, quiet     time.Duration // of the connection, and since the last byte from the peer
	sent, received int64
	rtt            time.Duration // 0: not measured
}

// partingOf looks at a connection that has ended. One that was found dead ended by that, whatever came while the
// peer was still being told: a newer connection, most likely.
func partingOf(conn Conn, established bool, err error) parting {
	p := parting{err: err, established: established, sent: conn.Sent(), received: conn.Received(), rtt: conn.RTT()}
	if c, ok := conn.(interface {
		Lifetime() (age, quiet time.Duration)
	}); ok {
		p.age, p.quiet = c.Lifetime()
	}
	if c, ok := conn.(interface{ Err() error }); ok && errors.Is(c.Err(), wire.ErrSilent) {
		p.err = c.Err()
	}
	return p
}

// provenAfter is the age from which a connection counts as one that works. What ends before is no better than
// one that did not come about: it is tried again with growing pauses, and is no entry of its own.
const provenAfter = 2 * time.Second

func (p *parting) brief() bool { return !p.established || p.age < provenAfter }

const (
	maxHistory = 100     // entries
	maxCause   = 1 << 10 // bytes of a text in one of them
	awaited    = 2 * time.Minute
	sameFor    = time.Hour // without another one: then it is news again
	// A pattern is so many resets, each within a tenth of the mean, and none of connections so young.
	patternOf  = 3
	patternMin = 5 * time.Second
)

// disconnects counts what ended connections of a node, tells each of it once, and keeps the last of it. add never
// waits for a disk (disconnectsfile.go).
type disconnects struct {
	log  func(string)
	now  func() time.Time
	path string // "": nothing outlives the process

	mu      sync.Mutex
	history []Disconnect // oldest first
	counts  map[seat]*classCounts

	unsaved chan struct{} // one token: the file is behind
	stop    chan struct{}
	saver   sync.WaitGroup
}

func newDisconnects(log func(string), now func() time.Time) *disconnects {
	return &disconnects{log: log, now: now, counts: map[seat]*classCounts{}, unsaved: make(chan struct{}, 1), stop: make(chan struct{})}
}

// classCounts are numbers of disconnects, in the order of wire.Classes.
type classCounts [len(wire.Classes)]int64

// seat is whom an entry is counted for. Of those that a primary has not dialled itself only the volume counts: what
// a peer calls itself must not make as many counters as it likes.
func (e *Disconnect) seat() seat {
	if e.Role == "primary" {
		return seat{e.Volume, e.Peer}
	}
	return seat{volume: e.Volume}
}

// add takes a disconnect in: role, volume, peer and address are set in about. What fails for the same reason as
// before is counted there, and not told again.
func (d *disconnects) add(about Disconnect, p parting) {
	e, at := about, d.now()
	e.Class, e.Error, e.Next = string(classOf(p.err)), cut(p.err.Error()), cut(nextStep(p.err))
	e.At = at.UTC().Format(time.RFC3339)
	e.Last = e.At
	e.Peer, e.Established, e.Sent, e.Received = cut(e.Peer), p.established, p.sent, p.received
	e.Seconds, e.Quiet = inMillis(p.age), inMillis(p.quiet)

	if d.enter(&e, p.brief(), at) {
		d.log(e.text())
	}
	select {
	case d.unsaved <- struct{}{}:
	default:
	}
}

// enter counts an entry with one that is there, or makes it one of its own.
func (d *disconnects) enter(e *Disconnect, brief bool, at time.Time) (anew bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := d.sameLocked(e, brief, at); i >= 0 {
		d.history[i].Tries++
		d.history[i].Last = e.Last
		return false
	}
	if e.Class == string(wire.ClassReset) && e.Established {
		if pattern := d.patternLocked(e); pattern != "" {
			e.Next = pattern + "; " + e.Next
		}
	}
	d.history = append(d.history[max(0, len(d.history)+1-maxHistory):], *e)
	counts := d.counts[e.seat()]
	if counts == nil {
		counts = new(classCounts)
		d.counts[e.seat()] = counts
	}
	counts[slices.Index(wire.Classes[:], wire.Class(e.Class))]++
	return true
}

// sameLocked finds the entry that e is more of the same of; -1: there is none. A session that has lived is always
// an entry of its own, and ends the search: what failed before it was another outage. While a peer is awaited
// that said it stops, nothing that fails is news.
func (d *disconnects) sameLocked(e *Disconnect, brief bool, now time.Time) int {
	if !brief {
		return -1
	}
	for i, o := range slices.Backward(d.history) {
		if o.Role != e.Role || o.Volume != e.Volume || o.Peer != e.Peer || now.Sub(timeOf(o.Last)) > sameFor {
			continue
		}
		if o.Class == e.Class && o.basicNext() == e.Next || !e.Established && o.stopped() && now.Sub(timeOf(o.At)) < awaited {
			return i
		}
		if o.Established && o.Seconds >= provenAfter.Seconds() {
			break
		}
	}
	return -1
}

func (e *Disconnect) stopped() bool {
	return e.Established && e.Class == string(wire.ClassPeerStopped)
}

// basicNext is the next step without what a pattern added.
func (e *Disconnect) basicNext() string {
	_, basic, found := strings.Cut(e.Next, patternEnd+"; ")
	if !found {
		return e.Next
	}
	return basic
}

const patternEnd = "of a firewall or proxy on the way"

// patternLocked says what the last resets of e's peer have in common, if anything: who forgets idle connections, or
// ends all of a certain age, resets them at about the same time.
func (d *disconnects) patternLocked(e *Disconnect) string {
	ages, quiets := []float64{e.Seconds}, []float64{e.Quiet}
	for _, o := range slices.Backward(d.history) {
		same := o.Role == e.Role && o.Volume == e.Volume && o.Peer == e.Peer
		if same && o.Established && o.Class == e.Class && len(ages) < patternOf {
			ages, quiets = append(ages, o.Seconds), append(quiets, o.Quiet)
		}
	}
	if idle := alike(quiets); idle > 0 {
		return fmt.Sprintf("the last %d resets came after %.0f s in which nothing was received: this looks like an idle time-out %s", patternOf, idle, patternEnd)
	}
	if age := alike(ages); age > 0 {
		return fmt.Sprintf("the last %d resets came at an age of about %.0f s: this looks like a time limit %s", patternOf, age, patternEnd)
	}
	return ""
}

// alike is the mean of values that are about the same; 0: they are too few, too different or too small.
func alike(values []float64) float64 {
	mean := 0.0
	for _, v := range values {
		mean += v / float64(len(values))
	}
	for _, v := range values {
		if len(values) < patternOf || v < patternMin.Seconds() || math.Abs(v-mean) > max(mean/10, 1) {
			return 0
		}
	}
	return mean
}

// text is what the log says.
func (e *Disconnect) text() string {
	what := map[string]string{"primary": "mirror ", "mirror": "primary ", "source": "target ", "target": "source "}[e.Role]
	text := strings.TrimSpace(what+e.Peer) + " (" + e.Address + ")"
	if e.Role == roleAcceptor && e.Peer == "" {
		text = e.Address
	}
	if e.Volume != "" {
		text = "volume " + e.Volume + ": " + text
	}
	if e.Established {
		text += fmt.Sprintf(": connection lost after %.1f s, %d bytes sent, %d received", e.Seconds, e.Sent, e.Received)
	} else {
		text += ": no session"
	}
	text += fmt.Sprintf(": %s: %s", e.Class, e.Error)
	if e.Next != "" {
		text += "; next: " + e.Next
	}
	return text
}

// last is the last disconnect of a peer; nil: there was none. Without a peer it is any of that role in the volume.
func (d *disconnects) last(role, volume, peer string) *DisconnectCause {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range slices.Backward(d.history) {
		if o.Role == role && o.Volume == volume && (peer == "" || o.Peer == peer) {
			return &DisconnectCause{Class: o.Class, Error: o.Error, At: o.Last, Next: o.Next}
		}
	}
	return nil
}

// list is the history, oldest first, of one volume or of all.
func (d *disconnects) list(volume string) []Disconnect {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := []Disconnect{}
	for _, e := range d.history {
		if volume == "" || e.Volume == volume {
			all = append(all, e)
		}
	}
	return all
}

// count is how many there were since the start, each class with its number.
func (d *disconnects) count() map[string]int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	counts := map[string]int64{}
	for i, class := range wire.Classes {
		counts[string(class)] = 0
		for _, c := range d.counts {
			counts[string(class)] += c[i]
		}
	}
	return counts
}

// countBySeat is the same for each of whom there were any.
func (d *disconnects) countBySeat() map[seat]classCounts {
	d.mu.Lock()
	defer d.mu.Unlock()
	counts := map[seat]classCounts{}
	for at, c := range d.counts {
		counts[at] = *c
	}
	return counts
}

// classOf is the class of a disconnect, for people and for counting. What this node itself refuses is refused, as it
// is at the other side.
func classOf(err error) wire.Class {
	if errors.Is(err, errMismatch) {
		return wire.ClassIntegrity
	}
	class := wire.Classify(err)
	if own, ok := errors.AsType[*Error](err); ok && class == wire.ClassLocalStop && own.Kind == KindState {
		switch own.code {
		case wire.CodeReplaced, wire.CodePaused, wire.CodeStopped:
		default:
			return wire.ClassRefused
		}
	}
	return class
}

// nextStep is what a person can do about a disconnect: what the error says itself, what its code says where the
// peer gave one, else what goes with its class.
func nextStep(err error) string {
	if own, ok := errors.AsType[*Error](err); ok && own.Next != "" {
		return own.Next
	}
	if remote, ok := errors.AsType[*wire.RemoteError](err); ok && remote.Code != wire.CodeStopped && nextByCode[remote.Code] != "" {
		return nextByCode[remote.Code]
	}
	return nextByClass[classOf(err)]
}

// cut keeps a text within what the file may hold.
func cut(text string) string { return strings.ToValidUTF8(text[:min(len(text), maxCause)], "") }

// inMillis are seconds, to the millisecond.
func inMillis(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// timeOf reads a time of an entry; one that cannot be read is long ago.
func timeOf(at string) time.Time {
	t, _ := time.Parse(time.RFC3339, at)
	return t
}
