package nbd

// terms is what was agreed on in the handshake.
type terms struct {
	size       int64
	structured bool // structured replies
	allocation bool // base:allocation
}

// allowed are the flags that a command may have. FUA is allowed on all: clients are known to set it where
// nothing is written.
func (t terms) allowed(command uint16) (flags uint16, known bool) {
	switch command {
	case cmdRead:
		if t.structured {
			return cmdFlagFUA | cmdFlagDF, true
		}
		return cmdFlagFUA, true
	case cmdWrite, cmdFlush, cmdTrim:
		return cmdFlagFUA, true
	case cmdWriteZeroes:
		return cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero, true
	case cmdBlockStatus:
		return cmdFlagFUA | cmdFlagReqOne, t.allocation
	}
	return 0, false
}

// volume is what a check asks of the backend.
type volume interface {
	ReadOnly() bool
	CheapZero() bool
}

// check says why a request must be refused, if it must. A request that passes has a range inside the
// volume and, where it has a payload either way, one of at most maxPayload.
func (t terms) check(r request, v volume) refusal {
	flags, known := t.allowed(r.command)
	if !known {
		return refuse(codeInvalid, "command %d is not known, or was not negotiated", r.command)
	}
	if r.flags&^flags != 0 {
		return refuse(codeInvalid, "command %d does not know flags %#x", r.command, r.flags&^flags)
	}
	if r.command == cmdFlush {
		if r.offset != 0 || r.length != 0 {
			return refuse(codeInvalid, "a flush has neither offset nor length")
		}
		return refusal{}
	}
	if r.carries() && r.length > maxPayload {
		return refuse(codeInvalid, "a request of %d bytes, at most %d are allowed", r.length, maxPayload)
	}
	if r.changes() && v.ReadOnly() {
		return refusal{code: codePerm, text: ErrReadOnly.Error()}
	}
	if size := uint64(t.size); r.offset > size || uint64(r.length) > size-r.offset {
		code := codeInvalid
		if r.command == cmdWrite || r.command == cmdWriteZeroes {
			code = codeNoSpace
		}
		return refuse(code, "the range %d+%d is not inside the volume of %d bytes", r.offset, r.length, t.size)
	}
	if r.command == cmdBlockStatus && r.length == 0 {
		return refuse(codeInvalid, "the status of nothing was asked for")
	}
	if r.flags&cmdFlagFastZero != 0 && !v.CheapZero() {
		return refuse(codeNotSup, "zeroing would take as long as writing")
	}
	return refusal{}
}

// carries tells whether a payload of the request's length goes either way.
func (r request) carries() bool { return r.command == cmdRead || r.command == cmdWrite }

// changes tells whether the request may change the volume.
func (r request) changes() bool {
	return r.command == cmdWrite || r.command == cmdTrim || r.command == cmdWriteZeroes
}

// name is for the log.
func (r request) name() string {
	switch r.command {
	case cmdRead:
		return "read"
	case cmdWrite:
		return "write"
	case cmdFlush:
		return "flush"
	case cmdTrim:
		return "trim"
	case cmdWriteZeroes:
		return "write zeroes"
	case cmdBlockStatus:
		return "block status"
	}
	return "command"
}
