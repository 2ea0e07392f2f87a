package nbd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/blkmirror/blkmirror/blockdev"
)

// Code is an error as it stands in a reply. The protocol has these and no others; the numbers are the
// errno values of Linux.
type Code uint32

// The codes that this server uses. Success is 0.
const (
	codeOK       Code = 0
	codePerm     Code = 1
	codeIO       Code = 5
	codeNoMem    Code = 12
	codeInvalid  Code = 22
	codeNoSpace  Code = 28
	codeNotSup   Code = 95
	codeShutdown Code = 108
)

// CodeOf is what a client is told of a backend's error.
func CodeOf(err error) Code {
	switch {
	case err == nil:
		return codeOK
	case errors.Is(err, ErrReadOnly), errors.Is(err, blockdev.ErrReadOnly):
		return codePerm
	case errors.Is(err, os.ErrClosed):
		return codeShutdown
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return codeIO
	}
	switch errno {
	case syscall.EPERM, syscall.EROFS:
		return codePerm
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return codeNoSpace
	case syscall.ENOMEM:
		return codeNoMem
	case syscall.EINVAL:
		return codeInvalid
	case syscall.EOPNOTSUPP:
		return codeNotSup
	case syscall.ESHUTDOWN:
		return codeShutdown
	}
	return codeIO
}

// refusal is why a request is answered with an error without the backend being asked. The zero refusal
// is none.
type refusal struct {
	code Code
	text string
}

func refuse(code Code, format string, args ...any) refusal {
	return refusal{code: code, text: fmt.Sprintf(format, args...)}
}

// Why a connection ended. io.EOF stands for a client that closed between two requests, and is no fault.
var (
	errDisconnect = errors.New("the client said goodbye")
	errMagic      = errors.New("wrong magic number")
	errClientFlag = errors.New("unknown client flags")
	errFlood      = errors.New("too many options")
	errNoExport   = errors.New("no such export")
	errMalformed  = errors.New("malformed option")
	errStalled    = errors.New("the client held buffers that others need, without taking replies or sending payload")
	errSoftEnd    = errors.New("the client ended the handshake")
)

// ordinary tells a connection's normal end from one that is worth a line in the log.
func ordinary(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, errDisconnect) || errors.Is(err, errSoftEnd)
}
