package wire

// Code says why a session or handshake ended. Codes are frozen: only ever added to.
type Code uint16

const (
	CodeDone      Code = 1  // finished
	CodeStopped   Code = 2  // the sender is being stopped; come back later
	CodeVersion   Code = 3  // no common protocol version
	CodeProtocol  Code = 4  // the peer broke the protocol
	CodeIntegrity Code = 5  // a checksum does not match, and retries did not clear it
	CodeDevice    Code = 6  // the sender's disk or state directory failed: missing, unreadable, EIO, read-only
	CodeNoSpace   Code = 7  // the sender's disk is full
	CodeUnknown   Code = 8  // no such volume
	CodeBusy      Code = 9  // the volume is in use by another session or program
	CodeMounted   Code = 10 // the device is mounted
	CodeSmaller   Code = 11 // the target is smaller than the source
	CodeLarger    Code = 12 // the target is larger, and that was not allowed
	CodeSame      Code = 13 // source and target are one device
	CodeState     Code = 14 // any other refusal by state
	CodeAuth      Code = 15 // not trusted
	CodeHistory   Code = 16 // the mirror holds another volume, or a history that the primary must not overwrite
	CodeOlder     Code = 17 // the primary is of an older generation than the mirror has seen
	CodeReplaced  Code = 18 // a newer connection of the same session took over
	CodePaused    Code = 19 // a person paused the volume at the sender's side
	CodeDamaged   Code = 20 // a frame arrived damaged: another connection may do better
	CodeReadOnly  Code = 21 // the mirror is read-only after a mismatch: a repair leaves that state
	CodeSilent    Code = 22 // the sender saw no life of the peer
	CodeTLS       Code = 23 // plain text came to a port that speaks TLS
	CodeMTU       Code = 24 // the sender's large segments did not reach the peer, last time: dial with smaller ones
)
