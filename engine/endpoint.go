package engine

import (
	"fmt"
	"net"
	"strings"
	"unicode"

	"github.com/blkmirror/blkmirror/wire"
)

// Endpoint is one end of a sync: a local path, or a volume of a remote blkmirror.
type Endpoint struct {
	Path   string // local
	Addr   string // remote, HOST:PORT
	Volume string // remote
}

const scheme = "blk://"

// Remote tells whether the endpoint is a volume of another node.
func (e Endpoint) Remote() bool { return e.Addr != "" }

func (e Endpoint) String() string {
	if e.Remote() {
		return scheme + e.Addr + "/" + e.Volume
	}
	return e.Path
}

// ParseEndpoint reads a path or blk://HOST:PORT/VOLUME.
func ParseEndpoint(s string) (Endpoint, error) {
	rest, remote := strings.CutPrefix(s, scheme)
	switch {
	case s == "":
		return Endpoint{}, usageError(s, "an empty path")
	case !remote && strings.Contains(s, "://"):
		return Endpoint{}, usageError(s, "only blk:// addresses and paths are known")
	case !remote:
		return Endpoint{Path: s}, nil
	}
	addr, volume, ok := strings.Cut(rest, "/")
	if !ok || volume == "" {
		return Endpoint{}, usageError(s, "no volume name")
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" {
		return Endpoint{}, usageError(s, "no HOST:PORT")
	}
	if err := CheckVolumeName(volume); err != nil {
		return Endpoint{}, err
	}
	return Endpoint{Addr: addr, Volume: volume}, nil
}

// CheckVolumeName accepts what is safe as a file name, in a URL and in a log line.
func CheckVolumeName(name string) error {
	bad := func(r rune) bool {
		return r > unicode.MaxASCII || !(unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("._-", r))
	}
	if name == "" || len(name) > wire.MaxName || strings.IndexFunc(name, bad) >= 0 || strings.Trim(name, ".") == "" {
		return &Error{Kind: KindUsage, Op: "use volume name", On: fmt.Sprintf("%q", name),
			Err:  fmt.Errorf("must be 1 to %d letters, digits, '.', '_' or '-'", wire.MaxName),
			Next: "choose another name"}
	}
	return nil
}

func usageError(s, why string) error {
	return &Error{Kind: KindUsage, Op: "parse endpoint", On: fmt.Sprintf("%q", s), Err: fmt.Errorf("%s", why),
		Next: "give a path or blk://HOST:PORT/VOLUME"}
}
