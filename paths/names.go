package paths

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
)

// names is a name server that says the same address of every name, and can be told another one. A daemon asks it in a mount
// namespace with a resolv.conf of its own: nothing changes for the machine. (Not /etc/hosts: a Go program may believe
// what it read there for five seconds.)
type names struct {
	conf string
	l    *net.UDPConn
	work sync.WaitGroup

	mu sync.Mutex
	at netip.Addr
}

const hostName = "mirror.test"

// newNames says at first what at is. In has it listen where the daemon is that will ask.
func newNames(dir string, at netip.Addr, in func(func() error) error) (*names, error) {
	n := &names{conf: filepath.Join(dir, "resolv.conf"), at: at}
	own := netip.AddrFrom4([4]byte{127, byte(1 + rand.N(254)), byte(rand.N(256)), byte(1 + rand.N(254))})
	err := in(func() (err error) {
		// The port is not to be chosen in a resolv.conf.
		n.l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(own, 53)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: no name server of its own: %v", errNotHere, err)
	}
	n.work.Go(n.routineAnswer)
	return n, os.WriteFile(n.conf, fmt.Appendf(nil, "nameserver %s\n", own), 0o644)
}

func (n *names) close() {
	n.l.Close()
	n.work.Wait()
}

// wrap is what a daemon has to be started with.
func (n *names) wrap() []string {
	return []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, n.conf}
}

// move gives the name another address.
func (n *names) move(to netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at = to
}

func (n *names) routineAnswer() {
	b := make([]byte, 1500)
	for {
		size, from, err := n.l.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		n.mu.Lock()
		a := n.at
		n.mu.Unlock()
		if reply := answer(b[:size], a); reply != nil {
			n.l.WriteToUDPAddrPort(reply, from) // one that is lost is asked again
		}
	}
}

// answer makes the reply to a question (RFC 1035, 4.1); nil where it is none. There is one address, and only of type A.
func answer(question []byte, a netip.Addr) []byte {
	const header = 12
	if len(question) < header {
		return nil
	}
	end := header // of the name
	for end < len(question) && question[end] != 0 {
		end += 1 + int(question[end])
	}
	if end += 5; end > len(question) { // its last byte, type and class
		return nil
	}
	reply := append([]byte(nil), question[:end]...)
	binary.BigEndian.PutUint16(reply[2:], 0x8580) // an answer, with authority
	clear(reply[6:header])
	binary.BigEndian.PutUint16(reply[4:], 1)
	if binary.BigEndian.Uint16(question[end-4:]) == 1 {
		reply[7] = 1
		reply = append(reply, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4) // that name, A, IN, to live 0 s
		reply = append(reply, a.AsSlice()...)
	}
	return reply
}
