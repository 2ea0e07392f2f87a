package nbd

import "encoding/binary"

// What the protocol fixes. Everything is big-endian.

var be = binary.BigEndian

// Magic numbers.
const (
	magicServer     uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   uint64 = 0x0003e889045565a9
	magicRequest    uint32 = 0x25609513
	magicReply      uint32 = 0x67446698
	magicStructured uint32 = 0x668e33ef
)

// Handshake flags, and the client's flags: the same bits.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags.
const (
	flagHasFlags     = 1 << 0
	flagReadOnly     = 1 << 1
	flagFlush        = 1 << 2
	flagFUA          = 1 << 3
	flagTrim         = 1 << 5
	flagWriteZeroes  = 1 << 6
	flagDontFragment = 1 << 7
	flagMultiConn    = 1 << 8
	flagFastZero     = 1 << 11
)

// Options.
const (
	optExportName      uint32 = 1
	optAbort           uint32 = 2
	optList            uint32 = 3
	optStartTLS        uint32 = 5
	optInfo            uint32 = 6
	optGo              uint32 = 7
	optStructuredReply uint32 = 8
	optListMeta        uint32 = 9
	optSetMeta         uint32 = 10
)

// Replies to options. Errors have the highest bit set, and a text as their data.
const (
	repAck    uint32 = 1
	repServer uint32 = 2
	repInfo   uint32 = 3
	repMeta   uint32 = 4

	repErrUnsup    uint32 = 1<<31 + 1
	repErrPolicy   uint32 = 1<<31 + 2
	repErrInvalid  uint32 = 1<<31 + 3
	repErrUnknown  uint32 = 1<<31 + 6
	repErrShutdown uint32 = 1<<31 + 7
	repErrTooBig   uint32 = 1<<31 + 9
)

// Types of information in repInfo.
const (
	infoExport      uint16 = 0
	infoName        uint16 = 1
	infoDescription uint16 = 2
	infoBlockSize   uint16 = 3
)

// Commands.
const (
	cmdRead        uint16 = 0
	cmdWrite       uint16 = 1
	cmdDisconnect  uint16 = 2
	cmdFlush       uint16 = 3
	cmdTrim        uint16 = 4
	cmdWriteZeroes uint16 = 6
	cmdBlockStatus uint16 = 7
)

// Command flags.
const (
	cmdFlagFUA      uint16 = 1 << 0
	cmdFlagNoHole   uint16 = 1 << 1
	cmdFlagDF       uint16 = 1 << 2
	cmdFlagReqOne   uint16 = 1 << 3
	cmdFlagFastZero uint16 = 1 << 4
)

// Chunks of structured replies.
const (
	chunkDone uint16 = 1 // the only flag: the last chunk of this reply

	chunkNone        uint16 = 0
	chunkData        uint16 = 1
	chunkHole        uint16 = 2
	chunkBlockStatus uint16 = 5
	chunkError       uint16 = 1<<15 + 1
)

// The states of base:allocation.
const (
	stateHole uint32 = 1 << 0
	stateZero uint32 = 1 << 1
)

const (
	metaAllocation   = "base:allocation"
	metaAllocationID = 1
)

// Sizes.
const (
	greetingSize    = 18
	optionSize      = 16
	optReplySize    = 20
	requestSize     = 28
	replySize       = 16
	chunkSize       = 20
	chunkDataSize   = chunkSize + 8  // with the offset
	chunkHoleSize   = chunkSize + 12 // with offset and length
	chunkStatusSize = chunkSize + 4  // with the context
	chunkErrorSize  = chunkSize + 6  // with code and length of the text
	headMax         = chunkHoleSize
	descriptorSize  = 8
	reservedZeroes  = 124  // behind the answer to EXPORT_NAME, unless the client can do without
	maxString       = 4096 // names, queries, texts
)

// putGreeting writes what a server says first.
//
//	8 "NBDMAGIC"  8 "IHAVEOPT"  2 flags
func putGreeting(b []byte) {
	be.PutUint64(b, magicServer)
	be.PutUint64(b[8:], magicOption)
	be.PutUint16(b[16:], flagFixedNewstyle|flagNoZeroes)
}

// parseOption reads the head of an option. ok is false where its magic is wrong.
//
//	8 "IHAVEOPT"  4 option  4 length of the data behind it
func parseOption(b []byte) (option, length uint32, ok bool) {
	return be.Uint32(b[8:]), be.Uint32(b[12:]), be.Uint64(b) == magicOption
}

// appendOptReply appends the head of a reply to an option.
//
//	8 magic  4 option  4 kind of reply  4 length of the data behind it
func appendOptReply(b []byte, option, kind uint32, length int) []byte {
	b = be.AppendUint64(b, magicOptReply)
	b = be.AppendUint32(b, option)
	b = be.AppendUint32(b, kind)
	return be.AppendUint32(b, uint32(length))
}

// request is a request's header.
type request struct {
	flags   uint16
	command uint16
	cookie  uint64
	offset  uint64
	length  uint32
}

// parseRequest reads a request's header. ok is false where its magic is wrong.
//
//	4 magic  2 flags  2 command  8 cookie  8 offset  4 length
func parseRequest(b []byte) (r request, ok bool) {
	r = request{
		flags:   be.Uint16(b[4:]),
		command: be.Uint16(b[6:]),
		cookie:  be.Uint64(b[8:]),
		offset:  be.Uint64(b[16:]),
		length:  be.Uint32(b[24:]),
	}
	return r, be.Uint32(b) == magicRequest
}

// putReply writes a simple reply.
//
//	4 magic  4 error  8 cookie
func putReply(b []byte, code Code, cookie uint64) {
	be.PutUint32(b, magicReply)
	be.PutUint32(b[4:], uint32(code))
	be.PutUint64(b[8:], cookie)
}

// putChunk writes the head of a chunk that is the only one of its reply.
//
//	4 magic  2 flags  2 kind  8 cookie  4 length of what follows
func putChunk(b []byte, kind uint16, cookie uint64, length int) {
	be.PutUint32(b, magicStructured)
	be.PutUint16(b[4:], chunkDone)
	be.PutUint16(b[6:], kind)
	be.PutUint64(b[8:], cookie)
	be.PutUint32(b[16:], uint32(length))
}

// appendDescriptor appends one extent of a block status.
//
//	4 length  4 state
func appendDescriptor(b []byte, length int64, state uint32) []byte {
	b = be.AppendUint32(b, uint32(length))
	return be.AppendUint32(b, state)
}
