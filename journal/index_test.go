package journal_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/journal"
)

// hashOf is a hash for block b in its v-th version.
func hashOf(b, v uint64) [32]byte {
	var in [16]byte
	binary.LittleEndian.PutUint64(in[:], b)
	binary.LittleEndian.PutUint64(in[8:], v)
	return sha256.Sum256(in[:])
}

func openIndex(t testing.TB, dir string) *journal.Index {
	t.Helper()
	x, err := journal.OpenIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

// wantIndex compares a range of an index, and all of it by Each, with a model.
func wantIndex(t *testing.T, x *journal.Index, model map[uint64][32]byte, blocks uint64) {
	t.Helper()
	got := make([]journal.Entry, blocks)
	if err := x.Get(0, got); err != nil {
		t.Fatal(err)
	}
	for b, e := range got {
		want, known := model[uint64(b)]
		if e != (journal.Entry{Known: known, Hash: want}) {
			t.Fatalf("block %d: got %v %x, want %v %x", b, e.Known, e.Hash, known, want)
		}
	}
	seen, last := 0, int64(-1)
	err := x.Each(func(b uint64, h [32]byte) error {
		if int64(b) <= last || model[b] != h {
			t.Errorf("each: block %d after %d, hash %x", b, last, h)
		}
		seen, last = seen+1, int64(b)
		return nil
	})
	if err != nil || seen != len(model) {
		t.Fatalf("each: %d of %d blocks, %v", seen, len(model), err)
	}
}

// Any sequence of operations leaves the index as a map would be left, also over reopening.
func TestIndexAgainstModel(t *testing.T) {
	const blocks = 400 * 512 // more pages than the cache holds
	dir := filepath.Join(t.TempDir(), "index")
	x := openIndex(t, dir)
	model := map[uint64][32]byte{}
	rng := rand.New(rand.NewPCG(1, 2))
	for step := range 1200 {
		b := rng.Uint64N(blocks)
		switch op := rng.IntN(100); {
		case op < 60:
			h := hashOf(b, uint64(step))
			model[b] = h
			must(t, x.Put(b, h))
		case op < 80:
			run := make([][32]byte, min(rng.Uint64N(700), blocks-b))
			for i := range run {
				run[i] = hashOf(b+uint64(i), uint64(step))
				model[b+uint64(i)] = run[i]
			}
			must(t, x.PutRun(b, run))
		case op < 95:
			n := rng.Uint64N(3000)
			for i := b; i < b+n; i++ {
				delete(model, i)
			}
			must(t, x.Delete(b, n))
		case op < 98:
			must(t, x.Sync())
		case step%5 == 0:
			must(t, x.Close())
			x = openIndex(t, dir)
		}
	}
	wantIndex(t, x, model, blocks)
	must(t, x.Delete(1000, 1<<40))
	for b := range model {
		if b >= 1000 {
			delete(model, b)
		}
	}
	must(t, x.Delete(7, ^uint64(0))) // beyond the end of all numbers
	for b := range model {
		if b >= 7 {
			delete(model, b)
		}
	}
	wantIndex(t, x, model, blocks)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// killedIndexEnv names the folder that a child process of TestIndexSurvivesKill works on.
const killedIndexEnv = "BLKMIRROR_KILLED_INDEX"

// killRounds puts, deletes and syncs, round by round, and calls synced behind each; it keeps a model.
func killRounds(x *journal.Index, synced func(round uint64, model map[uint64][32]byte) error) error {
	model := map[uint64][32]byte{}
	for round := range uint64(4) {
		first := round * 40_000
		for b := first; b < first+60_000; b += 1 + b%3 {
			model[b] = hashOf(b, round)
			if err := x.Put(b, model[b]); err != nil {
				return err
			}
		}
		for b := first + 100; b < first+5100; b++ {
			delete(model, b)
		}
		if err := errors.Join(x.Delete(first+100, 5000), x.Sync(), synced(round, model)); err != nil {
			return err
		}
	}
	return nil
}

// What was synced is there after a kill -9, exactly: the child is killed when it says that a round is
// synced, and has only badger's own goroutines at work then.
func TestIndexSurvivesKill(t *testing.T) {
	if dir := os.Getenv(killedIndexEnv); dir != "" {
		must(t, killRounds(openIndex(t, dir), func(round uint64, _ map[uint64][32]byte) error {
			fmt.Printf("synced %d\n", round)
			_, err := os.Stdin.Read(make([]byte, 1))
			return err
		}))
		return
	}
	states := map[uint64]map[uint64][32]byte{}
	must(t, killRounds(openIndex(t, t.TempDir()), func(round uint64, model map[uint64][32]byte) error {
		states[round] = maps.Clone(model)
		return nil
	}))
	for round, state := range states {
		dir := t.TempDir()
		killAfter(t, dir, round)
		if _, err := dumped(t, dir, dir); !errors.Is(err, journal.ErrIndexUnclean) {
			t.Errorf("dump after a kill: %v", err)
		}
		x := openIndex(t, dir)
		wantIndex(t, x, state, 200_000)
		must(t, x.Close())
	}
}

// A process that is killed while badger makes its next memory table leaves an empty file.
func TestIndexWithUnbornTable(t *testing.T) {
	dir := t.TempDir()
	x := openIndex(t, dir)
	must(t, x.PutRun(7, [][32]byte{{7}}))
	must(t, x.Close())
	must(t, os.WriteFile(filepath.Join(dir, "00099.mem"), nil, 0o600))
	x = openIndex(t, dir)
	var entry [1]journal.Entry
	must(t, x.Get(7, entry[:]))
	if !entry[0].Known || entry[0].Hash != [32]byte{7} {
		t.Errorf("entry %+v after a kill that left an empty table", entry[0])
	}
	must(t, x.Close())
}

// killAfter runs the child on a folder and kills it when a round is synced.
func killAfter(t *testing.T, dir string, round uint64) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestIndexSurvivesKill$")
	cmd.Env = append(os.Environ(), killedIndexEnv+"="+dir)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for done := false; !done && lines.Scan(); {
		if done = lines.Text() == fmt.Sprintf("synced %d", round); !done {
			_, err := in.Write([]byte{1})
			must(t, err)
		}
	}
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child was to be killed, and ended with %v", err)
	}
}

func TestIndexMeta(t *testing.T) {
	dir := t.TempDir()
	x := openIndex(t, dir)
	if got, err := x.Meta("facts"); got != nil || err != nil {
		t.Errorf("unset: %q, %v", got, err)
	}
	must(t, x.SetMeta("facts", []byte("one")))
	must(t, x.SetMeta("empty", []byte{}))
	must(t, x.SetMeta("gone", []byte("two")))
	must(t, x.SetMeta("gone", nil))
	must(t, x.Close())
	x = openIndex(t, dir)
	for name, want := range map[string][]byte{"facts": []byte("one"), "empty": {}, "gone": nil} {
		if got, err := x.Meta(name); err != nil || !bytes.Equal(got, want) || (got == nil) != (want == nil) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestIndexReset(t *testing.T) {
	dir := t.TempDir() + "/index"
	x := openIndex(t, dir)
	must(t, x.PutRun(0, make([][32]byte, 5000)))
	must(t, x.SetMeta("facts", []byte("one")))
	must(t, x.Sync())
	must(t, x.Put(9000, hashOf(1, 1))) // not yet written: forgotten too
	must(t, x.Reset())
	wantIndex(t, x, nil, 10_000)
	if got, err := x.Meta("facts"); got != nil || err != nil {
		t.Errorf("meta after reset: %q, %v", got, err)
	}
	model := map[uint64][32]byte{3: hashOf(3, 3)}
	must(t, x.Put(3, model[3]))
	must(t, x.Close())
	wantIndex(t, openIndex(t, dir), model, 1000)
}

func TestIndexConcurrentUse(t *testing.T) {
	x := openIndex(t, t.TempDir())
	const workers, each = 8, 5_000
	var wg sync.WaitGroup
	for w := range uint64(workers) {
		wg.Go(func() {
			got := make([]journal.Entry, 64)
			for b := w * each; b < (w+1)*each; b += 64 {
				run := make([][32]byte, 64)
				for i := range run {
					run[i] = hashOf(b+uint64(i), 0)
				}
				err := errors.Join(x.PutRun(b, run), x.Get(b, got), x.Delete(b+1, 1))
				if b%(64*100) == 0 {
					err = errors.Join(err, x.Sync(), x.SetMeta(strconv.Itoa(int(w)), []byte("x")))
				}
				if err != nil || got[5].Hash != run[5] {
					t.Errorf("block %d: %v", b, err)
					return
				}
			}
		})
	}
	wg.Wait()
	n := 0
	must(t, x.Each(func(b uint64, h [32]byte) error {
		n++
		return nil
	}))
	// Each worker's last run reaches into the next one's first blocks; count only what is certain.
	if n == 0 || n > workers*each+64 {
		t.Errorf("%d blocks", n)
	}
}

func TestIndexIsLocked(t *testing.T) {
	dir := t.TempDir()
	x := openIndex(t, dir)
	if _, err := journal.OpenIndex(dir); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	must(t, x.Close())
	if err := x.Put(1, [32]byte{}); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("put after close: %v", err)
	}
	if err := x.Reset(); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("reset after close: %v", err)
	}
}

// A removal that a crash interrupted is finished, and nothing of the old index comes back.
func TestIndexRemovalIsFinished(t *testing.T) {
	dir := t.TempDir() + "/index"
	x := openIndex(t, dir)
	must(t, x.Put(1, hashOf(1, 1)))
	must(t, x.Close())
	must(t, os.Rename(dir, dir+".removed"))
	wantIndex(t, openIndex(t, dir), nil, 100)
	if _, err := os.Stat(dir + ".removed"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("leftover: %v", err)
	}
	must(t, journal.RemoveIndex(t.TempDir()+"/none"))
}

// TestIndexMemory measures what the index of a full 1 TiB volume costs: set BLKMIRROR_INDEX_MEMORY to run
// it (2^24 blocks, 540 MB of disk in the temporary folder).
func TestIndexMemory(t *testing.T) {
	if os.Getenv("BLKMIRROR_INDEX_MEMORY") == "" {
		t.Skip("BLKMIRROR_INDEX_MEMORY is not set")
	}
	const blocks = 1 << 24
	before := memory(t)
	started := time.Now()
	report := func(what string) {
		t.Logf("%s: %.1f s, %s KiB", what, time.Since(started).Seconds(), memory(t))
		started = time.Now()
	}
	x := openIndex(t, t.TempDir())
	t.Logf("before: %s, open: %s KiB", before, memory(t))
	run := make([][32]byte, 64)
	for b := uint64(0); b < blocks; b += 64 {
		for i := range run {
			run[i] = hashOf(b+uint64(i), 0)
		}
		must(t, x.PutRun(b, run))
	}
	must(t, x.Sync())
	report("filled")
	got := make([]journal.Entry, 64)
	for b := uint64(0); b < blocks; b += 64 {
		must(t, x.Get(b, got))
		if got[63] != (journal.Entry{Known: true, Hash: hashOf(b+63, 0)}) {
			t.Fatalf("block %d is wrong", b+63)
		}
	}
	report("read in order")
	for i := range uint64(20_000) {
		must(t, x.Get(i*0x9e3779b1%blocks, got[:1]))
	}
	report("read at random")
	for i := range uint64(20_000) {
		must(t, x.Put(i*0x9e3779b1%blocks, hashOf(i, 1)))
	}
	must(t, x.Sync())
	report("written at random")
	must(t, x.Delete(0, 1<<40))
	must(t, x.Sync())
	report("deleted")
	t.Logf("%+v", x.Stats())
}

// memory reads the resident set: its highest value, and what it is made of now.
func memory(t *testing.T) string {
	data, err := os.ReadFile("/proc/self/status")
	must(t, err)
	var m []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		switch f[0] {
		case "VmHWM:", "VmRSS:", "RssAnon:", "RssFile:":
			m = append(m, f[0]+f[1])
		}
	}
	return fmt.Sprint(m)
}

func BenchmarkIndexOpenFresh(b *testing.B) {
	dir := b.TempDir()
	for i := 0; b.Loop(); i++ {
		x, err := journal.OpenIndex(filepath.Join(dir, strconv.Itoa(i)))
		must(b, err)
		must(b, x.Close())
	}
}

func BenchmarkIndexPutAscending(b *testing.B) {
	x := openIndex(b, b.TempDir())
	b.SetBytes(64 << 10) // of the volume
	n := uint64(0)
	for b.Loop() {
		must(b, x.Put(n, hashOf(n, 0)))
		n++
	}
	must(b, x.Sync())
}

func BenchmarkIndexGetAscending(b *testing.B) {
	x := openIndex(b, b.TempDir())
	const blocks = 1 << 18
	for n := range uint64(blocks) {
		must(b, x.Put(n, hashOf(n, 0)))
	}
	must(b, x.Sync())
	b.SetBytes(64 * 64 << 10)
	got := make([]journal.Entry, 64)
	n := uint64(0)
	for b.Loop() {
		must(b, x.Get(n%blocks, got))
		n += 64
	}
}
