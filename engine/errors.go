package engine

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/blkmirror/blkmirror/blockdev"
	"github.com/blkmirror/blkmirror/journal"
	"github.com/blkmirror/blkmirror/wire"
)

// Kind groups errors by what a user has to do about them. The command line turns it into an exit code
// (DESIGN §10); nothing decides by an error's text.
type Kind int

const (
	KindOther     Kind = iota // exit 1
	KindUsage                 // exit 2
	KindNetwork               // exit 3: not blkmirror, hangs, garbage, reset, other version
	KindAuth                  // exit 4
	KindIntegrity             // exit 5: a mismatch that retries did not clear
	KindDevice                // exit 6: device, state directory or journal I/O
	KindState                 // exit 7: refused by state: busy, mounted, too small, unknown volume
)

// Error says what was tried, on what, what happened, and what to do next.
type Error struct {
	Kind Kind
	Op   string // "open target", "read source", "connect to"
	On   string // path or address
	Err  error
	Next string // the next step for a person; may be empty

	code wire.Code // what a peer is told; 0: by Kind
	told error     // what it is told in place of Err, which says more than it may know; nil: Err
}

func (e *Error) Error() string { return fmt.Sprintf("%s %s: %v", e.Op, e.On, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// errMismatch is a checksum that does not match and that retries did not clear.
var errMismatch = errors.New("checksum mismatch")

// causes orders what can go wrong with a device by what it means; the first that matches counts.
var causes = []struct {
	is   error
	kind Kind
	code wire.Code
	next string
}{
	{blockdev.ErrMounted, KindState, wire.CodeMounted, "unmount it first"},
	{blockdev.ErrBusy, KindState, wire.CodeBusy, "end the other program or sync, or wait for it"},
	{journal.ErrLocked, KindState, wire.CodeBusy, "end the other blkmirror that uses it, or wait for it"},
	{journal.ErrVersion, KindDevice, wire.CodeDevice, "this is no damage: run the version of blkmirror that has written it"},
	{syscall.ENOSPC, KindDevice, wire.CodeNoSpace, "free some space and run the same sync again: it goes on where it stopped"},
	{journal.ErrIndexNoRoom, KindDevice, wire.CodeNoSpace, "free some space for the state directory and run the same sync again: it goes on where it stopped"},
	{syscall.EDQUOT, KindDevice, wire.CodeNoSpace, "raise the quota and run the same sync again: it goes on where it stopped"},
	{blockdev.ErrDirectory, KindDevice, wire.CodeDevice, "name a disk image or a block device"},
	{blockdev.ErrNotDisk, KindDevice, wire.CodeDevice, "name a disk image or a block device"},
	{blockdev.ErrReadOnly, KindDevice, wire.CodeDevice, "make it writable (blockdev --setrw), or choose another target"},
	{syscall.EROFS, KindDevice, wire.CodeDevice, "remount the file system writable, or choose another target"},
	{blockdev.ErrEmpty, KindDevice, wire.CodeDevice, "check that it is the right one"},
	{syscall.ENOTDIR, KindDevice, wire.CodeDevice, "check the path: a part of it is a file"},
	{syscall.ENOENT, KindDevice, wire.CodeDevice, "check the path"},
	{syscall.EACCES, KindDevice, wire.CodeDevice, "check the permissions, or run as a user who may"},
	{syscall.EPERM, KindDevice, wire.CodeDevice, "check the permissions, or run as a user who may"},
	{syscall.EIO, KindDevice, wire.CodeDevice, "check the disk (dmesg, smartctl); the sync goes on where it stopped when it can be used again"},
}

// isDeviceError tells whether a device said no, rather than the session.
func isDeviceError(err error) bool {
	var e *blockdev.Error
	return errors.As(err, &e)
}

// deviceError wraps what a device or the state directory said. path is used where err names none.
func deviceError(op, path string, err error) error {
	var done *Error
	if errors.As(err, &done) || errors.Is(err, context.Canceled) {
		return err
	}
	e := &Error{Kind: KindDevice, Op: op, On: path, Err: err, code: wire.CodeDevice,
		Next: "check the device and its file system, then run the same command again"}
	var dev *blockdev.Error
	if errors.As(err, &dev) {
		e.On, e.Err = dev.Path, dev.Err
		if dev.Length > 0 {
			e.On = fmt.Sprintf("%s at %d+%d", dev.Path, dev.Offset, dev.Length)
		}
	}
	for _, c := range causes {
		if errors.Is(err, c.is) {
			e.Kind, e.code, e.Next = c.kind, c.code, c.next
			break
		}
	}
	return e
}

// mismatchError says which block differs, and both hashes.
func mismatchError(off, n int64, want, got wire.Hash) error {
	return &Error{Kind: KindIntegrity, Op: "confirm block", On: fmt.Sprintf("at %d+%d", off, n),
		Err:  fmt.Errorf("%w: source has %x, target computed %x, after %d tries", errMismatch, want[:6], got[:6], maxReships+1),
		Next: "check memory, network and the target's disk, then run the same sync again; the block was not taken"}
}

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", wire.ErrProtocol, fmt.Sprintf(format, args...))
}

// codeOf is what a peer is told about our own error.
func codeOf(err error) wire.Code {
	var e *Error
	switch {
	case errors.As(err, &e) && e.code != 0:
		return e.code
	case errors.Is(err, errMismatch):
		return wire.CodeIntegrity
	case errors.Is(err, wire.ErrCorrupt):
		return wire.CodeDamaged
	case errors.Is(err, wire.ErrVersion):
		return wire.CodeVersion
	case errors.Is(err, wire.ErrProtocol):
		return wire.CodeProtocol
	case errors.Is(err, context.Canceled):
		return wire.CodeStopped
	}
	return wire.CodeState
}

// kindOfCode is codeOf's other half: what a peer's word means to our user.
func kindOfCode(c wire.Code) Kind {
	switch c {
	case wire.CodeIntegrity, wire.CodeReadOnly:
		return KindIntegrity
	case wire.CodeDevice, wire.CodeNoSpace:
		return KindDevice
	case wire.CodeAuth:
		return KindAuth
	case wire.CodeUnknown, wire.CodeBusy, wire.CodeMounted, wire.CodeSmaller, wire.CodeLarger, wire.CodeSame, wire.CodeState,
		wire.CodeHistory, wire.CodeOlder, wire.CodeReplaced, wire.CodePaused:
		return KindState
	}
	return KindNetwork
}

const nextMTU = "nothing at once: smaller segments are used; let ICMP \"fragmentation needed\" through the firewalls on the way, or lower the MTU of the interface"

// nextByCode tells what a person can do about a peer's refusal.
var nextByCode = map[wire.Code]string{
	wire.CodeStopped:   "start the other side again; the next sync goes on where this one stopped",
	wire.CodeVersion:   "run the same version on both sides",
	wire.CodeProtocol:  "run the same version on both sides; if they are, report this as a bug",
	wire.CodeIntegrity: "check memory, network and disks, then run the same sync again",
	wire.CodeDamaged:   "the connection damages data: check memory and network; another connection is tried",
	wire.CodeReadOnly:  "`blkmirror repair VOLUME` compares the blocks in quarantine and brings what differs",
	wire.CodeDevice:    "check the disk and the log on the other side",
	wire.CodeNoSpace:   "free space on the other side and run the same sync again: it goes on where it stopped",
	wire.CodeUnknown:   "check the name; `blkmirror status` on the other side lists its volumes",
	wire.CodeBusy:      "wait for the other session to end, or end it",
	wire.CodeMounted:   "unmount the target on the other side",
	wire.CodeSmaller:   "use a target that is at least as large as the source",
	wire.CodeLarger:    "say --grow-ok if that is meant",
	wire.CodeSame:      "choose another target",
	wire.CodeAuth:      "compare `blkmirror keys list` on both sides: each must trust the other's ID for this volume",
	wire.CodeState:     "see `blkmirror status` on the other side",
	wire.CodeHistory:   "see the mirror's log; `blkmirror rebuild VOLUME` takes the volume's identity over from it, `blkmirror resume VOLUME --overwrite-mirror NAME` replaces what it holds",
	wire.CodeOlder:     "find out which of the two primaries is the right one; this one has an older history",
	wire.CodeReplaced:  "nothing: a newer connection of the same session took over",
	wire.CodeSilent:    "what this side sends does not arrive there: check that nothing on the way drops packets",
	wire.CodePaused:    "say `blkmirror resume VOLUME` on the other side",
	wire.CodeTLS:       "leave --insecure away: keys are exchanged with `blkmirror keys show` and `blkmirror keys trust`, on both sides",
	wire.CodeMTU:       nextMTU,
}

// sessionError turns what ended a session into an *Error for the user. peer is the other side.
func sessionError(err error, peer string) error {
	var own *Error
	var remote *wire.RemoteError
	switch {
	case err == nil || errors.As(err, &own):
		return err
	case errors.As(err, &remote):
		return &Error{Kind: kindOfCode(remote.Code), Op: "sync with", On: peer, Err: remote, Next: nextByCode[remote.Code]}
	case isDeviceError(err):
		return deviceError("use", peer, err)
	case errors.Is(err, context.Canceled):
		return &Error{Kind: KindOther, Op: "sync with", On: peer, Err: fmt.Errorf("interrupted: %w", context.Canceled),
			Next: "run the same sync again: it goes on where this one stopped"}
	case isAuth(err):
		return &Error{Kind: KindAuth, Op: "sync with", On: peer, Err: err, Next: nextByClass[wire.ClassAuth], code: wire.CodeAuth}
	case errors.Is(err, errMismatch):
		return &Error{Kind: KindIntegrity, Op: "sync with", On: peer, Err: err, Next: nextByCode[wire.CodeIntegrity]}
	}
	return &Error{Kind: KindNetwork, Op: "sync with", On: peer, Err: err, Next: nextByClass[wire.Classify(err)]}
}

// isAuth tells whether one of the two sides does not trust the other.
func isAuth(err error) bool {
	return wire.Classify(err) == wire.ClassAuth && !errors.Is(err, wire.ErrNotLoopback)
}

// nextByClass tells what a person can do about a connection that failed. docs/DISCONNECTS.md says the same.
var nextByClass = map[wire.Class]string{
	wire.ClassReset:       "see the log of the other side; a firewall or a crash resets connections",
	wire.ClassTimeout:     "check that the other side runs at this address and that nothing on the way drops packets",
	wire.ClassRefused:     "start `blkmirror serve` there, or check the port",
	wire.ClassUnreachable: "check the route and the firewall",
	wire.ClassDNS:         "check the host name and the name server",
	wire.ClassTLS:         "run a blkmirror of this version there, both sides with --insecure or both without",
	wire.ClassAuth:        "compare `blkmirror keys list` on both sides: each must trust the other's ID for this volume",
	wire.ClassVersion:     "run the same version on both sides",
	wire.ClassMTU:         nextMTU,
	wire.ClassIntegrity:   "the connection damages data: check memory and network; another connection is tried",
	wire.ClassProtocol:    "check that the address is that of a `blkmirror serve`",
	wire.ClassPeerStopped: "nothing, if that was meant: it is dialled until it is back",
	wire.ClassLocalStop:   "nothing: this side ended it",
}
