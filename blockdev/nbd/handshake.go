package nbd

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// maxOptions is how many options a client may send before it has chosen an export.
const maxOptions = 128

// handshake is one connection's negotiation. It runs in one goroutine, under a deadline that the server
// has set on the socket; options have one answer each, and the client waits for it.
type handshake struct {
	s   *Server
	in  *reader
	out io.Writer

	noZeroes   bool    // the client can do without the reserved zeroes
	structured bool    // structured replies were agreed on
	meta       *Export // the export for which base:allocation was selected last
	reply      []byte  // what is sent when the option has been dealt with
	chosen     *Export // set when the transmission begins
}

// run negotiates until an export is chosen, and says what was agreed on. errSoftEnd is a client that
// only wanted to ask.
func (h *handshake) run() (*Export, terms, error) {
	if err := h.greet(); err != nil {
		return nil, terms{}, err
	}
	for range maxOptions {
		err := h.option()
		if len(h.reply) > 0 {
			if _, werr := h.out.Write(h.reply); err == nil && werr != nil {
				err = fmt.Errorf("answer an option: %w", werr)
			}
			h.reply = h.reply[:0]
		}
		if err != nil {
			return nil, terms{}, err
		}
		if h.chosen != nil {
			t := terms{size: h.chosen.Backend.Size(), structured: h.structured, allocation: h.meta == h.chosen}
			return h.chosen, t, nil
		}
	}
	return nil, terms{}, errFlood
}

func (h *handshake) greet() error {
	greeting := make([]byte, greetingSize)
	putGreeting(greeting)
	if _, err := h.out.Write(greeting); err != nil {
		return fmt.Errorf("greet the client: %w", err)
	}
	b, err := h.in.next(4)
	if err != nil {
		return fmt.Errorf("the client's flags: %w", err)
	}
	flags := be.Uint32(b)
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("%w: %#x", errClientFlag, flags)
	}
	h.noZeroes = flags&flagNoZeroes != 0
	return nil
}

// option reads one option and prepares the answer. An error ends the connection, after what was prepared.
func (h *handshake) option() error {
	b, err := h.in.next(optionSize)
	if err != nil {
		return err
	}
	option, length, ok := parseOption(b)
	if !ok {
		return fmt.Errorf("%w in front of an option", errMagic)
	}
	if length > maxOptionData {
		if option == optExportName {
			return fmt.Errorf("%w: a name of %d bytes", errMalformed, length)
		}
		h.refuse(option, repErrTooBig, fmt.Sprintf("%d bytes of data, at most %d are allowed", length, maxOptionData))
		return h.in.discard(int64(length))
	}
	data, err := h.in.next(int(length))
	if err != nil {
		return fmt.Errorf("the data of option %d: %w", option, err)
	}
	return h.answer(option, data)
}

func (h *handshake) answer(option uint32, data []byte) error {
	switch option {
	case optExportName:
		return h.exportName(data)
	case optAbort:
		h.say(option, repAck, nil)
		return errSoftEnd
	case optList:
		h.list(data)
	case optInfo, optGo:
		h.info(option, data)
	case optStructuredReply:
		if len(data) > 0 {
			h.refuse(option, repErrInvalid, "this option has no data")
			break
		}
		h.structured = true
		h.say(option, repAck, nil)
	case optListMeta, optSetMeta:
		h.metaContext(option, data)
	case optStartTLS:
		h.refuse(option, repErrUnsup, "this server has no TLS")
	default:
		h.refuse(option, repErrUnsup, "unknown option")
	}
	return nil
}

func (h *handshake) say(option, kind uint32, data []byte) {
	h.reply = append(appendOptReply(h.reply, option, kind, len(data)), data...)
}

func (h *handshake) refuse(option, kind uint32, text string) { h.say(option, kind, []byte(text)) }

// exportName begins the transmission; it knows no errors, so the connection ends where the name is wrong.
//
//	8 size  2 flags  124 zeroes
func (h *handshake) exportName(data []byte) error {
	e := h.s.find(string(data))
	if e == nil {
		return fmt.Errorf("%w: %.300q", errNoExport, data)
	}
	h.reply = be.AppendUint64(h.reply, uint64(e.Backend.Size()))
	h.reply = be.AppendUint16(h.reply, h.flags(e))
	if !h.noZeroes {
		h.reply = append(h.reply, make([]byte, reservedZeroes)...)
	}
	h.chosen = e
	return nil
}

// list names every export.
//
//	4 length  name  description
func (h *handshake) list(data []byte) {
	if len(data) > 0 {
		h.refuse(optList, repErrInvalid, "this option has no data")
		return
	}
	for _, e := range h.s.exports {
		d := be.AppendUint32(nil, uint32(len(e.Name)))
		d = append(d, e.Name...)
		h.say(optList, repServer, append(d, e.Description...))
	}
	h.say(optList, repAck, nil)
}

// info answers INFO and GO.
func (h *handshake) info(option uint32, data []byte) {
	d, err := parseInfo(data)
	if err != nil {
		h.refuse(option, repErrInvalid, err.Error())
		return
	}
	e := h.export(option, d.name)
	if e == nil {
		return
	}
	b := be.AppendUint16(nil, infoExport)
	b = be.AppendUint64(b, uint64(e.Backend.Size()))
	h.say(option, repInfo, be.AppendUint16(b, h.flags(e)))
	if slices.Contains(d.wanted, infoName) {
		h.say(option, repInfo, append(be.AppendUint16(nil, infoName), e.Name...))
	}
	if slices.Contains(d.wanted, infoDescription) && e.Description != "" {
		h.say(option, repInfo, append(be.AppendUint16(nil, infoDescription), e.Description...))
	}
	if slices.Contains(d.wanted, infoBlockSize) {
		b := be.AppendUint16(nil, infoBlockSize)
		b = be.AppendUint32(b, 1) // any alignment will do
		b = be.AppendUint32(b, uint32(h.s.o.BlockSize))
		h.say(option, repInfo, be.AppendUint32(b, maxPayload))
	}
	h.say(option, repAck, nil)
	if option == optGo {
		h.chosen = e
	}
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT. The latter forgets what was set before,
// even where it fails.
func (h *handshake) metaContext(option uint32, data []byte) {
	set := option == optSetMeta
	if set {
		h.meta = nil
	}
	d, err := parseMeta(data)
	if err == nil && !h.structured {
		err = errors.New("structured replies come first")
	}
	if err != nil {
		h.refuse(option, repErrInvalid, err.Error())
		return
	}
	e := h.export(option, d.name)
	if e == nil {
		return
	}
	if d.allocation(!set) {
		id := uint32(0)
		if set {
			id = metaAllocationID
			h.meta = e
		}
		h.say(option, repMeta, append(be.AppendUint32(nil, id), metaAllocation...))
	}
	h.say(option, repAck, nil)
}

// export finds the export that an option names, or refuses the option.
func (h *handshake) export(option uint32, name string) *Export {
	if h.s.isClosing() {
		h.refuse(option, repErrShutdown, "the server is being stopped")
		return nil
	}
	e := h.s.find(name)
	if e == nil {
		h.refuse(option, repErrUnknown, fmt.Sprintf("there is no export %.300q", name))
	}
	return e
}

// flags are the transmission flags of an export. What changes a volume is not offered on a read-only one.
func (h *handshake) flags(e *Export) uint16 {
	flags := uint16(flagHasFlags | flagFlush | flagFUA | flagMultiConn)
	if e.Backend.ReadOnly() {
		flags |= flagReadOnly
	} else {
		flags |= flagTrim | flagWriteZeroes | flagFastZero
	}
	if h.structured {
		flags |= flagDontFragment
	}
	return flags
}
