package wire

import (
	"fmt"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The rules that every message keeps, whoever made it: an encoder checks them before it writes a byte,
// a decoder after it has read the fields. Bounds against a volume's size are the engine's.

// MinBlock is the smallest block of a volume.
const MinBlock = 4 << 10

// check returns what is wrong with m, an error that wraps ErrProtocol.
func check(m Message) error {
	switch m := m.(type) {
	case *Hello:
		return m.check()
	case *Open:
		return m.check()
	case *Opened:
		return m.check()
	case *Refused:
		return checkEnd(m.Code, m.Text)
	case *Offer:
		return m.check()
	case *Want:
		return checkCount("bytes of bits in Want", len(m.Bits), MaxOffer/8)
	case *Data:
		return m.check()
	case *Zero:
		return m.check()
	case *Ack:
		return m.check()
	case *Nak:
		return m.check()
	case *Flush:
		return checkOffset("position", m.Position)
	case *Flushed:
		return checkOffset("position", m.Position)
	case *Commit:
		return m.check()
	case *Doubt:
		return m.check()
	case *Halt:
		return checkEnd(m.Code, m.Text)
	case *Bye:
		switch m.Code {
		case CodeDone, CodeStopped, CodeReplaced, CodePaused:
			return checkEnd(m.Code, m.Text)
		}
		return broken("Bye with code %d", m.Code)
	case *Attach:
		return m.check()
	case *Attached:
		return m.check()
	case *Rebase:
		return m.check()
	case *Report:
		return m.check()
	case *Suspect:
		return m.check()
	case *Quarantine:
		return m.check()
	case *Fetch:
		return checkFetch(m.Offset, m.Length)
	case *Fetched:
		return m.check()
	case *Ask:
		return m.check()
	case *Told:
		return m.check()
	case *Ended:
		return m.check()
	case *Door:
		return m.check()
	case *Knock:
		return m.check()
	case *KeyNext:
		return m.check()
	case *KeyAck:
		return m.check()
	case *Committed, *Ping, *Pong, *Window, *Synced, *Bulk, *Repair:
		return nil
	}
	return checkProbe(m)
}

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

func (m *Hello) check() error {
	if m.Role < RoleSource || m.Role > RoleProbe {
		return broken("unknown role %d", m.Role)
	}
	if m.Role == RoleProbe && (m.Volume != "" || m.BlockSize != 0) {
		return broken("a probe that names a volume")
	}
	if m.BlockSize != 0 && !validBlockSize(m.BlockSize) {
		return broken("block size %d", m.BlockSize)
	}
	if err := checkString("name of the node", m.Name, MaxName); err != nil {
		return err
	}
	if err := checkString("name of the software", m.Software, MaxName); err != nil {
		return err
	}
	return checkString("name of the volume", m.Volume, MaxName)
}

func (m *Open) check() error {
	if !validBlockSize(m.BlockSize) {
		return broken("block size %d", m.BlockSize)
	}
	if err := checkOffset("size", m.Size); err != nil {
		return err
	}
	if len(m.Devices) > MaxDevices {
		return broken("%d devices in Open, limit %d", len(m.Devices), MaxDevices)
	}
	if err := checkFlags("Open", uint32(m.Flags), uint32(OpenDryRun|OpenVerify|OpenTrustIndex|OpenGrowOK)); err != nil {
		return err
	}
	return checkString("name of the volume", m.Volume, MaxName)
}

func (m *Opened) check() error {
	switch {
	case m.Size < 0 || m.DataEnd < 0 || m.DataEnd > m.Size || m.ResumeFrom < 0 || m.ResumeFrom > m.Size:
		return broken("Opened with size %d, data end %d, resume point %d", m.Size, m.DataEnd, m.ResumeFrom)
	case m.Window < MaxRun:
		return broken("first window of %d bytes, want at least %d", m.Window, MaxRun)
	case m.MaxOffers == 0:
		return broken("no offer allowed")
	}
	known := OpenedCreated | OpenedRecheck | OpenedIndexed | OpenedPageCache | OpenedDryRun | OpenedNoCompress
	return checkFlags("Opened", uint32(m.Flags), uint32(known))
}

// check compares the count of hashes with what length and unit make. Which unit it has to be is known to
// the engine, and so is whether the session is one that has flags.
func (m *Offer) check() error {
	if err := checkCount("hashes in Offer", len(m.Hashes), MaxOffer); err != nil {
		return err
	}
	if err := checkRange("Offer", m.Offset, int64(m.Length)); err != nil {
		return err
	}
	if err := checkFlags("Offer", uint32(m.Flags), uint32(OfferVerify|OfferTree)); err != nil {
		return err
	}
	limit := uint32(MaxBlock)
	if m.Flags&OfferTree != 0 {
		limit = MaxTree
	}
	switch {
	case m.Flags&(OfferVerify|OfferTree) == OfferTree:
		return broken("Offer of trees that is no verify")
	case !powerOfTwo(m.Unit, limit):
		return broken("Offer of units of %d bytes", m.Unit)
	}
	if want := (int64(m.Length) + int64(m.Unit) - 1) / int64(m.Unit); want != int64(len(m.Hashes)) {
		return broken("Offer of %d hashes for %d bytes in units of %d, want %d", len(m.Hashes), m.Length, m.Unit, want)
	}
	return nil
}

func (m *Data) check() error {
	if m.RawLength == 0 || m.RawLength > MaxBlock {
		return broken("Data of %d raw bytes, limit %d", m.RawLength, MaxBlock)
	}
	run := int64(m.RawLength) + int64(m.Follow)
	if run > MaxRun {
		return broken("Data in a run of %d bytes, limit %d", run, MaxRun)
	}
	switch m.Codec {
	case CodecRaw:
		if m.PayloadLength != int(m.RawLength) {
			return broken("raw Data with a payload of %d bytes, want %d", m.PayloadLength, m.RawLength)
		}
	case CodecLZ4:
		if m.PayloadLength <= 0 || m.PayloadLength >= int(m.RawLength) {
			return broken("lz4 Data with a payload of %d bytes for %d", m.PayloadLength, m.RawLength)
		}
	default:
		return broken("unknown codec %d", m.Codec)
	}
	return checkRange("Data", m.Offset, run)
}

func (m *Zero) check() error {
	if m.Length < 1 || m.Length > MaxZeroExtent {
		return broken("Zero of %d bytes, limit %d", m.Length, MaxZeroExtent)
	}
	if err := checkFlags("Zero", m.Flags, ZeroMayFree); err != nil {
		return err
	}
	return checkRange("Zero", m.Offset, m.Length)
}

func (m *Ack) check() error {
	if err := checkCount("entries in Ack", len(m.Entries), MaxEntries); err != nil {
		return err
	}
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Level < LevelReceived || e.Level > LevelDurable {
			return broken("unknown level %d in Ack", e.Level)
		}
		if e.Offset < 0 {
			return broken("negative offset %d in Ack", e.Offset)
		}
	}
	return nil
}

func (m *Nak) check() error {
	if err := checkCount("entries in Nak", len(m.Entries), MaxEntries); err != nil {
		return err
	}
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Cause < NakHash || e.Cause > NakRoom {
			return broken("unknown cause %d in Nak", e.Cause)
		}
		if e.Offset < 0 {
			return broken("negative offset %d in Nak", e.Offset)
		}
	}
	return nil
}

// check lets nothing of a live session into a one-shot one, which has no epochs.
func (m *Commit) check() error {
	switch {
	case m.Epoch == 0 && (m.Base != 0 || m.Pages != 0 || len(m.Holes) != 0):
		return broken("Commit of no epoch with base %d, %d pages and %d holes", m.Base, m.Pages, len(m.Holes))
	case m.Epoch > 0 && m.Base >= m.Epoch:
		return broken("Commit of epoch %d on base %d", m.Epoch, m.Base)
	case len(m.Holes) > MaxHoles:
		return broken("%d holes in Commit, limit %d", len(m.Holes), MaxHoles)
	}
	if err := checkFlags("Commit", uint32(m.Flags), uint32(CommitSourceChanged|CommitUnproven)); err != nil {
		return err
	}
	return checkPages("hole", m.Holes, true)
}

func (m *Doubt) check() error {
	if err := checkCount("extents in Doubt", len(m.Extents), MaxEntries); err != nil {
		return err
	}
	for _, e := range m.Extents {
		if err := checkRange("extent in Doubt", e.Offset, e.Length); err != nil {
			return err
		}
	}
	return nil
}

// checkEnd passes codes that this version has no name for: codes are only ever added to, and a peer that
// says why it stops must be heard.
func checkEnd(code Code, text string) error {
	if code == 0 {
		return broken("code 0")
	}
	return checkString("text", text, MaxText)
}

func validBlockSize(n uint32) bool { return powerOfTwo(n, MaxBlock) }

// powerOfTwo reports whether n is one, of at least a page and at most limit.
func powerOfTwo(n, limit uint32) bool {
	return n >= MinBlock && n <= limit && n&(n-1) == 0
}

func checkCount(what string, n, limit int) error {
	if n < 1 || n > limit {
		return broken("%d %s, want 1 to %d", n, what, limit)
	}
	return nil
}

func checkOffset(what string, n int64) error {
	if n < 0 {
		return broken("negative %s %d", what, n)
	}
	return nil
}

func checkRange(what string, offset, length int64) error {
	if offset < 0 || length < 1 || offset > math.MaxInt64-length {
		return broken("%s at %d+%d", what, offset, length)
	}
	return nil
}

func checkFlags(what string, flags, known uint32) error {
	if flags&^known != 0 {
		return broken("unknown flags %#x in %s", flags&^known, what)
	}
	return nil
}

// checkString refuses what could deceive a person who reads it in a terminal or a log.
func checkString(what, s string, limit int) error {
	if len(s) > limit {
		return broken("%s of %d bytes, limit %d", what, len(s), limit)
	}
	if !utf8.ValidString(s) || strings.IndexFunc(s, unicode.IsControl) >= 0 {
		return broken("%s %q, which is no plain UTF-8", what, s)
	}
	return nil
}

// CleanText makes any text fit for Refused, Halt and Bye: control characters become spaces, bytes that
// are no UTF-8 question marks, and what is too long is cut at a character.
func CleanText(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= MaxText {
		return s
	}
	const dots = "..."
	cut := MaxText - len(dots)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + dots
}
