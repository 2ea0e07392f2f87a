package identity

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

const (
	defaultGrace = 30 * 24 * time.Hour
	lockWait     = 10 * time.Second
	tickLockWait = 100 * time.Millisecond // the next tick tries again
)

// Options of a Node.
type Options struct {
	Dir           string           // keys, below the state directory; made where it is missing
	Lifetime      time.Duration    // 0: keys do not roll over by themselves
	Grace         time.Duration    // 0: 30 days; never less than Lifetime
	Cert, Key, CA string           // PEM files; "": pinned keys only
	Now           func() time.Time // nil: time.Now
	// Elapsed is a clock that nobody sets; nil: since the start.
	Elapsed func() time.Duration
	Log     func(text string) // may be nil; must not call the Node
}

// Node is who we are and whom we trust, backed by its folder. Safe for concurrent use, and beside other
// processes that use the same folder. It has no goroutine of its own.
type Node struct {
	options Options
	folder  folder

	writing sync.Mutex // held while files are changed: before the lock of the folder, which is before mu

	mu      sync.Mutex
	files   *files // as read last; what it points to is never changed
	ca      *ca
	changed bool                 // since the last Tick
	ticked  time.Time            // the last Tick
	broken  string               // why what is on disk now cannot be used
	unkept  string               // why what peers said of their keys could not be kept; until something can
	told    map[string]time.Time // what was logged, and when
	// What connections have shown and the next Tick writes down, by the peer's name.
	knows map[string]ID
	certs map[string]span // of the certificate by which it came
	// From when on, by Elapsed, it is sure that a key is to be destroyed, or to have its successor (overdue.go).
	overdue map[ID]time.Duration
	// How often a peer did not take the key that a Dial showed, since it last took one.
	declined map[string]int
}

// files is the content of the folder.
type files struct {
	ownText, trustText []byte
	own                ring
	trust              *trust
	certificates       []tls.Certificate // of own
}

// Open makes the node's first key where there is none.
func Open(o Options) (*Node, error) {
	d, err := openDir(o.Dir)
	if err != nil {
		return nil, err
	}
	return open(o, d)
}

func open(o Options, f folder) (*Node, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Elapsed == nil {
		began := time.Now()
		o.Elapsed = func() time.Duration { return time.Since(began) }
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	if o.Grace <= 0 {
		o.Grace = defaultGrace
	}
	o.Grace = max(o.Grace, o.Lifetime)
	n := &Node{
		options: o, folder: f, told: map[string]time.Time{}, knows: map[string]ID{}, certs: map[string]span{},
		declined: map[string]int{},
	}
	var err error
	if n.ca, err = openCA(o); err != nil {
		return nil, err
	}
	read, err := n.read()
	if err == nil && len(read.own) == 0 {
		err = n.update(lockWait, func(*files) error { return nil }) // makes the key
	} else if err == nil {
		err = n.install(read)
	}
	if err != nil {
		return nil, err
	}
	n.changed, n.ticked = false, n.now()
	return n, nil
}

func (n *Node) now() time.Time { return n.options.Now() }

// view is what the files say; it does not change.
func (n *Node) view() *files {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.files
}

// ID is that of the current key.
func (n *Node) ID() ID {
	own := n.view().own
	return own[own.current(n.now())].id
}

// read reads both files. No own.pem is a node that has not begun; own is empty then.
func (n *Node) read() (*files, error) {
	own, err := n.readFile(ownFile)
	if err != nil {
		return nil, err
	}
	trusted, err := n.readFile(trustFile)
	if err != nil {
		return nil, err
	}
	switch {
	case own == nil && trusted != nil:
		return nil, fmt.Errorf("%w: %s is missing, and %s is there: take it back from a backup, or move both away to begin as a new node",
			ErrDamaged, n.path(ownFile), trustFile)
	case own == nil:
		return &files{trust: newTrust()}, nil
	}
	f, err := decodeFiles(own, trusted)
	if err != nil {
		return nil, fmt.Errorf("%w in %s; take the file back from a backup, or move it away: without %s it is a new node, without %s it trusts nobody",
			err, n.options.Dir, ownFile, trustFile)
	}
	return f, nil
}

// decodeFiles: trusted is nil where there is none yet.
func decodeFiles(own, trusted []byte) (*files, error) {
	f := &files{ownText: own, trustText: trusted, trust: newTrust()}
	var err error
	if f.own, err = decodeRing(own); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, ownFile, err)
	}
	if trusted != nil {
		if f.trust, err = decodeTrust(trusted); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, trustFile, err)
		}
	}
	return f, nil
}

// again is f as it will be read from what is written of it.
func (f *files) again() (*files, error) {
	own, err := f.own.encode()
	if err != nil {
		return nil, err
	}
	trusted, err := f.trust.encode()
	if err != nil {
		return nil, err
	}
	return decodeFiles(own, trusted)
}

// readFile returns nil for a file that is missing.
func (n *Node) readFile(name string) ([]byte, error) {
	text, mode, err := n.folder.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the keys: %w", err)
	}
	if mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %#o: chmod 0600 %s", ErrExposed, n.path(name), mode.Perm(), n.path(name))
	}
	if text == nil {
		text = []byte{}
	}
	return text, nil
}

// path is for texts.
func (n *Node) path(name string) string { return dir(n.options.Dir).path(name) }

// update changes the files: under the lock it reads them, has change change what they say, and replaces those
// that say something else then. Own keys come first: nothing else speaks of one that is not durable.
func (n *Node) update(wait time.Duration, change func(*files) error) error {
	if wait > tickLockWait {
		n.writing.Lock()
	} else if !n.writing.TryLock() { // whoever has it may wait for other processes for long
		return ErrLocked
	}
	defer n.writing.Unlock()
	unlock, err := n.folder.lock(wait)
	if err != nil {
		return err
	}
	defer unlock()
	f, err := n.read()
	if err != nil {
		return err
	}
	if len(f.own) == 0 {
		first, err := makeKey(n.now(), n.now())
		if err != nil {
			return err
		}
		f.own = ring{first}
	}
	if err := change(f); err != nil {
		return err
	}
	after, err := f.again() // refuses what the next start would not take
	if err != nil {
		return err
	}
	if n := len(after.trustText); n > maxFile {
		return fmt.Errorf("%w: %s would have %d bytes, of at most %d", ErrTooMuch, trustFile, n, maxFile)
	}
	if !bytes.Equal(after.ownText, f.ownText) {
		if err := replace(n.folder, ownFile, after.ownText); err != nil {
			return fmt.Errorf("write %s: %w", n.path(ownFile), err)
		}
	}
	if !bytes.Equal(after.trustText, f.trustText) {
		if err := replace(n.folder, trustFile, after.trustText); err != nil {
			return fmt.Errorf("write %s: %w", n.path(trustFile), err)
		}
	}
	if err := n.install(after); err != nil {
		return err
	}
	n.mu.Lock()
	n.unkept = ""
	n.mu.Unlock()
	return nil
}

// installUnless is install, unless what the node knew is not what it knows any more: f was read without the lock,
// and may be older. The next Tick looks again.
func (n *Node) installUnless(old, f *files) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.files != old {
		return nil
	}
	return n.installLocked(f)
}

// install makes f what the node knows.
func (n *Node) install(f *files) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.installLocked(f)
}

func (n *Node) installLocked(f *files) error {
	for _, k := range f.own {
		if n.files != nil {
			if i := n.files.own.index(k.id); i >= 0 {
				f.certificates = append(f.certificates, n.files.certificates[i])
				continue
			}
		}
		certificate, err := selfSigned(k)
		if err != nil {
			return err
		}
		f.certificates = append(f.certificates, certificate)
	}
	if n.files == nil || !bytes.Equal(n.files.trustText, f.trustText) {
		n.changed = true
	}
	n.files, n.broken = f, ""
	return nil
}

// Tick does what time and other processes bring: reads changed files again, makes and switches keys, drops
// old ones, warns. To be called once a second by a daemon. changed: trust is not what it was at the last
// Tick, so the standing sessions are to be checked with May.
func (n *Node) Tick() (changed bool) {
	n.reload()
	changed = n.ca.reload()
	n.lookAtTime()
	if n.due() {
		if err := n.update(tickLockWait, n.keep); err != nil && !errors.Is(err, ErrLocked) {
			n.fault("the keys cannot be written: " + err.Error())
		}
	}
	now := n.now()
	n.warn(now)
	n.mu.Lock()
	defer n.mu.Unlock()
	changed = changed || n.changed || n.files.trust.ends(n.ticked, now)
	n.changed, n.ticked = false, now
	return changed
}

// fault notes why what is on disk, or the disk, cannot be used.
func (n *Node) fault(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broken = text
}

// reload reads the files where others have changed them.
func (n *Node) reload() {
	old := n.view()
	own, errOwn := n.readFile(ownFile)
	trusted, errTrust := n.readFile(trustFile)
	if errOwn == nil && errTrust == nil && bytes.Equal(own, old.ownText) && bytes.Equal(trusted, old.trustText) {
		n.fault("")
		return
	}
	f, err := n.read()
	if err == nil && (f.ownText == nil || f.trustText == nil && old.trustText != nil) {
		err = fmt.Errorf("%w: a file is missing in %s", ErrDamaged, n.options.Dir)
	}
	if err == nil {
		err = n.installUnless(old, f)
	}
	if err != nil {
		n.fault("the keys on disk cannot be used, those in memory go on to count: " + err.Error())
	}
}

// due tells whether there is anything that keep would change.
func (n *Node) due() bool {
	sure := n.sure()
	n.mu.Lock()
	defer n.mu.Unlock()
	now, f := n.now(), n.files
	if _, due := f.own.due(now, n.options.Lifetime); due && sure(f.own[f.own.current(now)].id) {
		return true
	}
	if !f.own.stretch(now, n.options.Grace).expire(now, sure).equal(f.own) {
		return true
	}
	return len(n.knows)+len(n.certs) > 0 || slices.ContainsFunc(f.trust.Peers, func(p *peer) bool {
		return len(p.kept(now, sure)) < len(p.Keys)
	})
}

// keep writes down what time has brought, and what connections have shown.
func (n *Node) keep(f *files) (err error) {
	now, sure := n.now(), n.sure()
	if at, due := f.own.due(now, n.options.Lifetime); due && sure(f.own[f.own.current(now)].id) {
		if f.own, err = f.own.rotate(now, at, n.options.Grace); err != nil {
			return err
		}
	}
	f.own = f.own.stretch(now, n.options.Grace).expire(now, sure)
	f.trust.expire(now, sure)
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, id := range n.knows {
		if p := f.trust.byName(name); p != nil {
			p.Knows = id
		}
	}
	for name, s := range n.certs {
		if p := f.trust.byName(name); p != nil {
			p.CertificateFrom, p.CertificateUntil = stamp(s.from), stamp(s.until)
		}
	}
	// What is noted from here on waits for the next time; what could not be written is learnt again.
	clear(n.knows)
	clear(n.certs)
	return nil
}

// ends tells whether a right or a key ended in the time after `from`, up to `to`.
func (t *trust) ends(from, to time.Time) bool {
	in := func(until time.Time) bool { return !until.IsZero() && until.After(from) && !until.After(to) }
	return slices.ContainsFunc(t.Peers, func(p *peer) bool {
		return slices.ContainsFunc(p.Grants, func(g Grant) bool { return in(g.Until) }) ||
			slices.ContainsFunc(p.Keys, func(k peerKey) bool { return in(k.Until) })
	})
}

// warn logs all warnings, one that stays once a day.
func (n *Node) warn(now time.Time) {
	texts := n.Warnings()
	for _, p := range n.Peers() {
		texts = append(append(texts, p.Warnings...), p.Notes...)
	}
	n.mu.Lock()
	maps.DeleteFunc(n.told, func(text string, at time.Time) bool {
		return now.Sub(at) >= oneDay || !slices.Contains(texts, text)
	})
	texts = slices.DeleteFunc(texts, func(text string) bool {
		if _, told := n.told[text]; told {
			return true
		}
		n.told[text] = now
		return false
	})
	n.mu.Unlock()
	for _, text := range texts {
		n.options.Log(text)
	}
}

// Trust says that the peer has the key, or a CA's certificate for dns:HOST, and grants it rights. Without
// grants, one who is known is only confirmed, and who is new gets everything.
func (n *Node) Trust(name, id string, grants []Grant) error {
	var key ID
	var host string
	if rest, ok := strings.CutPrefix(id, "dns:"); ok {
		host = strings.ToLower(rest)
		if err := checkHost(host); err != nil {
			return err
		}
	} else {
		var err error
		if key, err = ParseID(id); err != nil {
			return err
		}
	}
	return n.update(lockWait, func(f *files) error {
		if f.own.index(key) >= 0 {
			return fmt.Errorf("%w: %s is this node's own", ErrOtherName, key)
		}
		return f.trust.add(n.now(), name, key, host, grants)
	})
}

// Revoke removes the peer, and remembers its keys as revoked.
func (n *Node) Revoke(name string) error {
	return n.update(lockWait, func(f *files) error { return f.trust.remove(n.now(), name) })
}

// Rotate has the next key take over after `in`; it makes one where there is none.
func (n *Node) Rotate(in time.Duration) (KeyInfo, error) {
	var id ID
	err := n.update(lockWait, func(f *files) (err error) {
		now := n.now()
		successor := f.own.current(now) + 1
		if f.own, err = f.own.rotate(now, now.Add(max(0, in)), n.options.Grace); err != nil {
			return err
		}
		id = f.own[min(successor, len(f.own)-1)].id
		return nil
	})
	if err != nil {
		return KeyInfo{}, err
	}
	own := n.Own()
	return own[slices.IndexFunc(own, func(k KeyInfo) bool { return k.ID == id })], nil
}

// May returns nil where the peer, by the key by which it came, may now be `as` to the volume, else an error
// that wraps wire.ErrAuth. volume "": to any; as 0: anything.
func (n *Node) May(p Peer, volume string, as As) error {
	t := n.view().trust
	known := t.byName(p.Name)
	switch {
	case p.CA != "":
		if known == nil || known.Host != p.CA {
			return fmt.Errorf("%w: the trust in peer %s by dns:%s was revoked", wire.ErrAuth, p.Name, p.CA)
		}
	default:
		var err error
		if known, err = t.identify(n.now(), p.Key); err != nil {
			return err
		}
		if known.Name != p.Name {
			return fmt.Errorf("%w: the key of peer %s was given to another", wire.ErrAuth, p.Name)
		}
	}
	return known.may(n.now(), volume, as)
}
