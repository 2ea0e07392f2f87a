package engine

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/blkmirror/blkmirror/wire"
)

// CheckExport refuses an address that an export cannot have: anything but unix:PATH and tcp:HOST:PORT,
// and, as NBD is not encrypted, a HOST that is not this machine.
func CheckExport(spec string) error {
	kind, addr, _ := strings.Cut(spec, ":")
	switch {
	case kind == "unix" && len(addr) > maxSocketPath:
		return fmt.Errorf("the path of a socket has at most %d bytes", maxSocketPath)
	case kind == "unix" && addr != "":
		return nil
	case kind != "tcp":
		return errors.New("give unix:PATH or tcp:HOST:PORT")
	}
	if _, err := portOf(addr); err != nil {
		return fmt.Errorf("behind tcp: %w", err)
	}
	return wire.CheckPlain(addr)
}

// CheckPeer refuses an address that no mirror can have. Names are looked up for every connection.
func CheckPeer(addr string) error {
	port, err := portOf(addr)
	if err != nil {
		return err
	}
	if port == 0 {
		return errors.New("nobody listens at port 0")
	}
	return nil
}

// portOf reads HOST:PORT.
func portOf(addr string) (uint64, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return 0, fmt.Errorf("%q is not HOST:PORT", addr)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q has no port from 0 to 65535", addr)
	}
	return port, nil
}
