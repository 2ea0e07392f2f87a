package campaign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/blkmirror/blkmirror/campaign/daemon"
	"github.com/blkmirror/blkmirror/e2e/stamp"
)

const (
	pageSize   = 4096
	blockSize  = 64 << 10 // of the volume, by default
	volumeSize = 8 << 20
)

// pair is a primary with an export and its mirror, with the proxy between them. Trials use it one after the other.
type pair struct {
	dir             string
	src, dst        string // the images
	faults          string // where trigger files lie
	sock            string
	primary, mirror *daemon.Node
	link            *proxy
	nbd             *stamp.Client
	rng             *rand.Rand
}

// newPair starts both and waits until the mirror holds a first cut. The interval is longer than a trial: cuts are
// those that it takes, or that a pause after a failure is over for.
func newPair(ctx context.Context, binary, temp string, readBack bool, rng *rand.Rand) (p *pair, err error) {
	dir, err := os.MkdirTemp(temp, "p")
	if err != nil {
		return nil, err
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	p = &pair{dir: dir, src: at("src"), dst: at("dst"), faults: at("faults"), sock: at("nbd"), rng: rng}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	content := make([]byte, volumeSize)
	p.random(content)
	if err = errors.Join(os.Mkdir(p.faults, 0o755), os.WriteFile(p.src, content, 0o644)); err != nil {
		return p, err
	}
	if p.link, err = newProxy(); err != nil {
		return p, err
	}
	p.primary = daemon.New(binary, at("P"), "--volume", "v="+p.src, "--export", "v=unix:"+p.sock,
		"--mirror", "v="+p.link.addr(), "--interval", "v=3s")
	flags := []string{"--volume", "v=" + p.dst}
	if readBack {
		flags = append(flags, "--verify-writes", "v=readback")
	}
	p.mirror = daemon.New(binary, at("M"), flags...)
	p.primary.Env = []string{"BLKMIRROR_FAULTS=" + p.faults}
	p.mirror.Env = p.primary.Env
	if err = p.mirrorUp(ctx); err != nil {
		return p, err
	}
	if err = p.primaryUp(ctx); err != nil {
		return p, err
	}
	got, err := p.cut(ctx)
	if err == nil && got != good {
		err = fmt.Errorf("the first cut: %s", got)
	}
	return p, err
}

func (p *pair) mirrorUp(ctx context.Context) error {
	err := p.mirror.Up(ctx)
	if err == nil {
		p.link.to(p.mirror.Addr)
	}
	return err
}

func (p *pair) primaryUp(ctx context.Context) error {
	err := p.primary.Up(ctx)
	if err == nil {
		err = p.dial(ctx)
	}
	return err
}

// dial opens the export, if it is there: a volume that failed has none.
func (p *pair) dial(ctx context.Context) error {
	if p.nbd != nil {
		p.nbd.Close()
		p.nbd = nil
	}
	v, err := p.primary.Volume(ctx)
	if err != nil || v.State == "failed" {
		return err
	}
	p.nbd, err = stamp.Dial("unix", p.sock, "v")
	return err
}

// close ends what was started and removes the folder.
func (p *pair) close() {
	if p.nbd != nil {
		p.nbd.Close()
	}
	for _, n := range []*daemon.Node{p.primary, p.mirror} {
		if n != nil {
			n.End(syscall.SIGKILL)
		}
	}
	if p.link != nil {
		p.link.close()
	}
	os.RemoveAll(p.dir)
}

// random fills b with what does not pack.
func (p *pair) random(b []byte) {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(p.rng.Uint32())
	}
	rand.NewChaCha8(seed).Read(b)
}

// written is what requests brought: of each page whether it is zero.
type written map[int64]bool

// bytes are those that have to be shipped.
func (w written) bytes() (n int64) {
	for _, zero := range w {
		if !zero {
			n += pageSize
		}
	}
	return n
}

// write issues some random writes and has them durable. packable: content that packs, alone.
func (p *pair) write(packable bool) (w written, err error) {
	w = written{}
	for i := range 1 + p.rng.IntN(5) {
		n := 1 + p.rng.Int64N(48)
		first := p.rng.Int64N(volumeSize/pageSize - n + 1)
		b := make([]byte, n*pageSize)
		zero := i > 0 && p.rng.IntN(8) == 0
		switch {
		case zero:
		case packable || p.rng.IntN(2) == 0:
			for at, line := 0, fmt.Sprintf("a line that packs, and no other has: %x\n", p.rng.Uint64()); at < len(b); at += len(line) {
				copy(b[at:], line)
			}
		default:
			p.random(b)
		}
		if err := p.nbd.Write(b, first*pageSize, 0); err != nil {
			return w, fmt.Errorf("write: %w", err)
		}
		for page := first; page < first+n; page++ {
			w[page] = zero
		}
	}
	return w, p.nbd.Flush()
}

// where is the state that a pair has come to.
type where string

const (
	good          where = "good" // the cut is applied, and nobody has a complaint
	isReadOnly    where = "read-only"
	mirrorFailed  where = "mirror failed"
	primaryFailed where = "primary failed"
	refused       where = "mirror refuses an older primary"
)

// cut takes cuts and waits until one is applied and nothing is left to bring, or that will not be. What a start
// has in doubt is compared by and by, and what is found so comes with a cut of its own, as does what a cut held that
// was given up.
func (p *pair) cut(ctx context.Context) (where, error) {
	for range 100 {
		before, err := p.peer(ctx)
		if err != nil {
			return "", err
		}
		if a := p.primary.Ask(ctx, "cut", "v"); a.Code != 0 {
			if v, err := p.primary.Volume(ctx); err == nil && v.State == "failed" {
				return primaryFailed, nil
			}
			return "", fmt.Errorf("cut: %s", a)
		}
		v, err := p.primary.Volume(ctx)
		if err != nil {
			return "", err
		}
		left := false
		at, err := p.await(ctx, func(now, m *daemon.Volume, peer *daemon.Peer) bool {
			if peer.GivenUp > before.GivenUp {
				left = true
				return true
			}
			if peer.Applied < v.Epoch || m.State != "ok" || m.Primary == nil {
				return false
			}
			left = peer.Needs > 0
			return left || !now.Unproven && !m.Unproven && m.Primary.Needs == 0
		})
		if err != nil || at != good || !left {
			return at, err
		}
	}
	v, _ := p.primary.Volume(ctx)
	m, _ := p.mirror.Volume(ctx)
	return "", fmt.Errorf("there is always something left: %s", p.state(&v, &m))
}

// await waits for a condition while all is well.
func (p *pair) await(ctx context.Context, met func(v, m *daemon.Volume, peer *daemon.Peer) bool) (at where, err error) {
	var v, m daemon.Volume
	err = daemon.Until(ctx, "the pair to settle", func() (bool, error) {
		if v, err = p.primary.Volume(ctx); err != nil {
			return false, err
		}
		if m, err = p.mirror.Volume(ctx); err != nil {
			return false, err
		}
		switch {
		case v.State == "failed":
			at = primaryFailed
		case m.State == "failed":
			at = mirrorFailed
		case len(v.Mirrors) != 1:
			return false, nil
		case v.Mirrors[0].State == "refused" && m.State == "ok":
			at = refused
		case m.ReadOnly != nil && v.Mirrors[0].ReadOnly != nil:
			at = isReadOnly
		case met(&v, &m, &v.Mirrors[0]):
			at = good
		}
		return at != "", nil
	})
	if err != nil {
		err = fmt.Errorf("%w: %s", err, p.state(&v, &m))
	}
	return at, err
}

// peer is the mirror as its primary tells of it; zero where that failed.
func (p *pair) peer(ctx context.Context) (daemon.Peer, error) {
	v, err := p.primary.Volume(ctx)
	if err != nil || len(v.Mirrors) != 1 {
		return daemon.Peer{}, err
	}
	return v.Mirrors[0], nil
}

// state is all that a reader of a failure wants to see.
func (p *pair) state(v, m *daemon.Volume) string {
	a, _ := json.Marshal(v)
	b, _ := json.Marshal(m)
	return fmt.Sprintf("\nprimary: %s\nmirror: %s\nprimary's log: %s\nmirror's log: %s", a, b, p.primary.Log.Tail(), p.mirror.Log.Tail())
}

// noticed counts what either side noticed since its start.
func (p *pair) noticed(ctx context.Context) (n int64, err error) {
	v, err := p.primary.Volume(ctx)
	if err != nil {
		return 0, err
	}
	m, err := p.mirror.Volume(ctx)
	if err != nil {
		return 0, err
	}
	if len(v.Mirrors) == 1 {
		n = v.Mirrors[0].Noticed()
	}
	if m.Primary != nil {
		n += m.Primary.Noticed()
	}
	return n, nil
}

// trigger puts a trigger file, with the number that chooses the bit.
func (p *pair) trigger(name string) error {
	temporary := filepath.Join(p.dir, "trigger")
	err := os.WriteFile(temporary, strconv.AppendUint(nil, p.rng.Uint64(), 10), 0o644)
	if err == nil {
		err = os.Rename(temporary, filepath.Join(p.faults, name))
	}
	return err
}

// untrigger takes it away, if it is still there.
func (p *pair) untrigger(name string) (was bool) {
	return os.Remove(filepath.Join(p.faults, name)) == nil
}

// flipAt turns over a bit of a file.
func flipAt(path string, bit int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], bit/8); err != nil {
		return err
	}
	b[0] ^= 1 << (bit % 8)
	_, err = f.WriteAt(b[:], bit/8)
	return errors.Join(err, f.Sync())
}

// flipUsed turns over a bit of a byte that is not zero, and so was written once.
func (p *pair) flipUsed(path string) (bit int64, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var used []int
	for i, c := range b {
		if c != 0 {
			used = append(used, i)
		}
	}
	if len(used) == 0 {
		return 0, fmt.Errorf("%s is all zeroes", path)
	}
	bit = int64(used[p.rng.IntN(len(used))])*8 + p.rng.Int64N(8)
	return bit, flipAt(path, bit)
}
