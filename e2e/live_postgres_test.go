package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const postgresBin = "/usr/lib/postgresql/15/bin"

// postgres is a database cluster in a folder, with its server.
type postgres struct {
	*proc
	t          testing.TB
	data, sock string
}

// asPostgres is the command line by which the user postgres runs one of its programs.
func asPostgres(program string, args ...string) []string {
	line := []string{"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", filepath.Join(postgresBin, program)}
	return append(line, args...)
}

// startPostgres starts the server and waits until it has recovered.
func startPostgres(t testing.TB, data string) *postgres {
	t.Helper()
	pg := &postgres{t: t, data: data, sock: folder(t)} // not on the volume, whose copies would bring a lock along
	tool(t, "chown", "postgres", pg.sock)
	os.Remove(filepath.Join(data, "postmaster.pid")) // of a server that was killed; its number may be used anew
	pg.proc = launch(t, nil, asPostgres("postgres", "-D", data, "-k", pg.sock, "-c", "listen_addresses=",
		"-c", "shared_buffers=16MB", "-c", "max_wal_size=64MB", "-c", "full_page_writes=on", "-c", "fsync=on")...)
	until(t, "the database", func() bool {
		if pg.ended() {
			t.Fatalf("postgres ended: %s", tail(pg.err.String()))
		}
		return exec.Command(filepath.Join(postgresBin, "pg_isready"), "-q", "-h", pg.sock).Run() == nil
	})
	return pg
}

// end stops the server: SIGINT in order, SIGQUIT without saving anything.
func (pg *postgres) end(how syscall.Signal) {
	pg.t.Helper()
	pg.signal(how)
	select {
	case <-pg.done:
	case <-time.After(patience):
		pg.kill()
		pg.t.Errorf("postgres did not end: %s", tail(pg.err.String()))
	}
}

// run runs a client program against it.
func (pg *postgres) run(program string, args ...string) string {
	pg.t.Helper()
	return tool(pg.t, asPostgres(program, append([]string{"-h", pg.sock}, args...)...)...)
}

func (pg *postgres) ask(query string) string {
	pg.t.Helper()
	return pg.run("psql", "-qAtX", "-d", "postgres", "-c", query)
}

// counting inserts the numbers behind last, each in a transaction of its own. last is the highest that was
// committed.
type counting struct {
	last *atomic.Int64
	cmd  *exec.Cmd
	done chan struct{}
}

func (pg *postgres) count(last *atomic.Int64) *counting {
	pg.t.Helper()
	line := asPostgres("psql", "-h", pg.sock, "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", "postgres")
	c := &counting{last: last, cmd: exec.Command(line[0], line[1:]...), done: make(chan struct{})}
	in, err := c.cmd.StdinPipe()
	out, err2 := c.cmd.StdoutPipe()
	if err := errors.Join(err, err2, c.cmd.Start()); err != nil {
		pg.t.Fatal(err)
	}
	go func() {
		defer close(c.done)
		defer c.cmd.Wait()
		defer in.Close()
		answers := bufio.NewScanner(out)
		for n := last.Load() + 1; ; n++ {
			if _, err := fmt.Fprintf(in, "INSERT INTO counter VALUES (%d) RETURNING n;\n", n); err != nil || !answers.Scan() {
				return
			}
			if answers.Text() != strconv.FormatInt(n, 10) {
				return
			}
			c.last.Store(n)
		}
	}()
	pg.t.Cleanup(c.end)
	return c
}

func (c *counting) end() {
	c.cmd.Process.Kill()
	<-c.done
}

// database is PostgreSQL on a file system on the export of a pair.
type database struct {
	*livePair
	fuse      *proc
	dev, at   string
	pg        *postgres
	bench     *proc
	counter   *counting
	last      atomic.Int64 // number that was inserted
	committed atomic.Int64 // what last was before the last completed cut
}

// startDatabase makes a database on the export of a new pair and puts it under load.
func startDatabase(t testing.TB) *database {
	t.Helper()
	d := &database{livePair: startLivePair(t, plain, 512*mib)}
	d.at = filepath.Join(d.dir, "mnt")
	if err := os.MkdirAll(d.at, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.end)
	d.attach()
	tool(t, "mkfs.ext4", "-q", "-E", "nodiscard", d.dev)
	tool(t, "mount", d.dev, d.at)
	tool(t, "chown", "postgres", d.at)
	tool(t, asPostgres("initdb", "--data-checksums", "--no-sync", "-A", "trust", "-D", filepath.Join(d.at, "data"))...)
	pg := startPostgres(t, filepath.Join(d.at, "data"))
	pg.ask("CREATE TABLE counter (n bigint PRIMARY KEY)")
	pg.ask("CREATE EXTENSION amcheck")
	pg.run("pgbench", "-q", "-i", "-s", "2", "postgres")
	pg.end(syscall.SIGINT)
	tool(t, "umount", d.at)
	d.begin()
	return d
}

// attach makes a block device of the export.
func (d *database) attach() {
	d.t.Helper()
	at := filepath.Join(d.dir, "fuse")
	if err := os.MkdirAll(at, 0o755); err != nil {
		d.t.Fatal(err)
	}
	d.fuse = launch(d.t, nil, "nbdfuse", filepath.Join(at, "disk"), d.uri())
	until(d.t, "nbdfuse", func() bool {
		if d.fuse.ended() {
			d.t.Fatalf("nbdfuse ended: %s", d.fuse.err.String())
		}
		fi, err := os.Stat(filepath.Join(at, "disk"))
		return err == nil && fi.Size() > 0
	})
	d.dev = tool(d.t, "losetup", "--find", "--show", "--direct-io=on", filepath.Join(at, "disk"))
	tool(d.t, "blockdev", "--setrw", d.dev)
}

// detach takes apart what attach made, also when the export is dead.
func (d *database) detach() {
	d.t.Helper()
	if d.dev != "" {
		tool(d.t, "losetup", "--detach", d.dev)
		d.dev = ""
	}
	if d.fuse != nil {
		at := filepath.Join(d.dir, "fuse")
		d.fuse.signal(syscall.SIGTERM)
		until(d.t, "the end of nbdfuse", func() bool {
			exec.Command("umount", at).Run() // busy until the loop device is gone; nbdfuse may end without it
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			return d.fuse.ended() && err == nil && !strings.Contains(string(mounts), " "+at+" ")
		})
		d.fuse = nil
	}
}

// begin mounts the file system and starts the load.
func (d *database) begin() {
	d.t.Helper()
	tool(d.t, "mount", d.dev, d.at)
	d.pg = startPostgres(d.t, filepath.Join(d.at, "data"))
	last, err := strconv.ParseInt(d.pg.ask("SELECT coalesce(max(n), 0) FROM counter"), 10, 64)
	if err != nil {
		d.t.Fatal(err)
	}
	if last < d.last.Load() {
		d.t.Fatalf("the primary lost transactions: %d of %d", last, d.last.Load())
	}
	d.last.Store(last)
	d.counter = d.pg.count(&d.last)
	d.bench = launch(d.t, nil, asPostgres("pgbench", "-h", d.pg.sock, "-n", "-c", "2", "-T", "100000", "postgres")...)
}

// end stops the load and unmounts, whatever has become of the disk.
func (d *database) end() {
	d.t.Helper()
	if d.pg == nil {
		return
	}
	d.bench.kill()
	d.counter.end()
	d.pg.end(syscall.SIGQUIT)
	d.pg = nil
	until(d.t, "unmounting", func() bool { return exec.Command("umount", d.at).Run() == nil })
	d.detach()
}

// cutting takes cuts and notes how far the counter was before each, until stop is closed.
func (d *database) cutting(stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		before := d.last.Load()
		// It fails while one of the two is dead.
		if exec.Command(plain, "cut", "v", "--wait", "--timeout", "20s", "--control", d.primary.control).Run() == nil {
			d.committed.Store(before)
		}
	}
}

// look lets the mirror, which is dead, recover alone, and starts the database on a copy of its device.
func (d *database) look(least int64) {
	d.t.Helper()
	d.link.to("")
	d.mirror.up()
	d.mirror.down()
	image := filepath.Join(d.dir, "copy")
	tool(d.t, "cp", "--sparse=always", d.dst, image)
	defer os.Remove(image)
	d.mirrorUp()

	dev := tool(d.t, "losetup", "--find", "--show", image)
	tool(d.t, "blockdev", "--setrw", dev)
	defer tool(d.t, "losetup", "--detach", dev)
	at := filepath.Join(d.dir, "copy.mnt")
	if err := os.MkdirAll(at, 0o755); err != nil {
		d.t.Fatal(err)
	}
	tool(d.t, "mount", dev, at)
	mounted := true
	defer func() {
		if mounted {
			exec.Command("umount", at).Run()
		}
	}()
	pg := startPostgres(d.t, filepath.Join(at, "data"))
	got := pg.ask("SELECT coalesce(max(n), 0), count(*) FROM counter")
	var highest, rows int64
	if _, err := fmt.Sscanf(got, "%d|%d", &highest, &rows); err != nil || highest != rows || highest < least {
		d.t.Errorf("seed %d: the mirror has %s counters (%v), %d were committed there", *seed, got, err, least)
	}
	pg.run("pg_amcheck", "--heapallindexed", "--no-dependent-indexes", "-d", "postgres")
	pg.end(syscall.SIGINT)
	tool(d.t, asPostgres("pg_checksums", "--check", "-D", pg.data)...)
	tool(d.t, "umount", at)
	mounted = false
	tool(d.t, "e2fsck", "-fn", dev)
	d.t.Logf("the mirror has %d counters, at least %d wanted; the primary is at %d", highest, least, d.last.Load())
}

// PostgreSQL runs on the export; mirror, primary and both are killed; the database always starts on the
// mirror's device, is intact, and lacks nothing that was committed there.
func TestLivePostgres(t *testing.T) {
	t.Parallel()
	needRoot(t)
	need(t, "nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "setpriv", filepath.Join(postgresBin, "postgres"))
	if _, err := user.Lookup("postgres"); err != nil {
		t.Skip("needs the user postgres")
	}
	rounds := 1
	if *long {
		rounds = 12
	}
	d := startDatabase(t)
	stop := make(chan struct{})
	var cuts sync.WaitGroup
	cuts.Go(func() { d.cutting(stop) })
	end := sync.OnceFunc(func() { close(stop); cuts.Wait() })
	t.Cleanup(end)
	for range rounds {
		for _, i := range d.rng.Perm(3) {
			before := d.committed.Load()
			until(t, "a cut under load", func() bool { return d.committed.Load() > before })
			d.pause(0, 1500*time.Millisecond)
			t.Logf("killing %s", []string{"the mirror", "the primary", "both"}[i])
			if i != 0 {
				d.primary.kill()
			}
			if i != 1 {
				d.mirror.kill()
			}
			least := d.committed.Load()
			if i != 0 {
				d.end()
				d.primary.launch() // it finds nobody until the mirror was looked at
			}
			if i == 1 {
				d.mirror.kill()
			}
			d.look(least)
			if i != 0 {
				d.primary.ready()
				d.attach()
				d.begin()
			}
		}
	}
	end()
	d.end()
	d.cut()
	d.same()
	d.mirror.kill()
	d.look(d.last.Load())
	if strings.Contains(d.primary.err.String(), "panic") || strings.Contains(d.mirror.err.String(), "panic") {
		t.Error("a daemon panicked")
	}
}
