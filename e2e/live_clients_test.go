package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// clientScript is what is asked of both servers, in this order. %U is the export, %D a folder of the
// server's own, with what it exported last in %D/out.
var clientScript = []string{
	"nbdinfo --size %U",
	"nbdinfo --can write %U",
	"nbdinfo --can flush %U",
	"nbdinfo --can fua %U",
	"nbdinfo --can trim %U",
	"nbdinfo --can zero %U",
	"nbdinfo --map --totals %U",
	"nbdinfo --map %U",
	"qemu-img map --output=json %U",
	"nbdcopy --flush %D/content %U",
	"nbdcopy %U %D/out",
	"cmp %D/out %D/content",
	"nbdinfo --map %U",
	"qemu-img map --output=json %U",
	"qemu-img compare -f raw -F raw %D/content %U",
	"qemu-img check -f raw %U",
	"qemu-img convert -f raw -O qcow2 %U %D/out.qcow2",
	"qemu-img compare -f qcow2 -F raw %D/out.qcow2 %U",
	"qemu-io -f raw -c 'write -P 0x5a 1M 64k' -c 'read -P 0x5a 1M 64k' -c flush %U",
	"qemu-io -f raw -c 'write -f -P 0x5b 3M 4k' -c 'read -P 0x5b 3M 4k' %U",
	"qemu-io -f raw -c 'write -P 0x11 5000 333' -c 'read -v 4990 400' %U", // no whole sector
	"qemu-io -f raw -c 'write -P 0x12 8191 2' -c 'write -P 0x13 8190 1' -c 'read -v 8180 20' %U",
	"qemu-io -f raw -c 'write -z 2M 128k' -c 'read -P 0 2M 128k' %U",
	"qemu-io -f raw -c 'write -z -u 2500k 100k' -c 'read -P 0 2500k 100k' %U",
	"qemu-io -f raw -c 'write -z 6000001 70001' -c 'read -P 0 6000001 70001' %U",
	"qemu-io -f raw -c 'aio_write -P 1 8M 1M' -c 'aio_write -P 2 9M 1M' -c 'aio_write -P 3 10M 1M' -c aio_flush -c 'read -P 2 9M 1M' %U",
	"qemu-io -f raw -c 'discard 4M 1M' -c 'read -P 0 4M 1M' %U",
	"qemu-io -f raw -c 'read 64M 512' %U", // behind the end
	"qemu-io -f raw -c 'write 67108352 1024' %U",
	"qemu-io -f raw -c 'write -P 9 67108352 512' -c 'read -P 9 67108352 512' %U",
	"nbdcopy %U %D/out",
	"qemu-img convert -n -f raw -O raw %D/half %U",
	"nbdcopy %U %D/out",
	"cmp %D/out %D/half",
	"nbdcopy --destination-is-zero --flush %D/content %U",
	"nbdcopy --request-size=4096 --connections=1 %U %D/out",
	"nbdcopy --request-size=33554432 %U %D/out",
	"nbdinfo --size nbd+unix:///nothing?socket=%S", // no such export
}

// figures are what differs from run to run in what qemu-io prints.
var figures = regexp.MustCompile(`(?m); [0-9:.]+ (sec|hr|min).*$`)

// nbdServer is one of the two servers that are compared.
type nbdServer struct {
	name, dir, sock, device string
}

// does runs a line of the script and returns all that can be seen of it.
func (s *nbdServer) does(line string) string {
	line = strings.NewReplacer("%U", "'nbd+unix:///v?socket="+s.sock+"'", "%D", s.dir, "%S", s.sock).Replace(line)
	out, err := exec.Command("bash", "-c", line).CombinedOutput()
	said := figures.ReplaceAllString(string(out), "")
	said = strings.NewReplacer(s.dir, "DIR", s.sock, "SOCK").Replace(said)
	if strings.Contains(line, "aio_") { // they end in any order
		lines := strings.Split(said, "\n")
		slices.Sort(lines)
		said = strings.Join(lines, "\n")
	}
	if err != nil {
		said += err.Error() + "\n"
	}
	return said
}

// The common clients see on the export what they see on qemu-nbd over an image with the same content.
func TestLiveClients(t *testing.T) {
	t.Parallel()
	need(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "qemu-nbd", "bash", "cmp")
	const size = 64 * mib
	p := newLivePair(t, checked, size)
	ours := &nbdServer{name: "export", dir: filepath.Join(p.dir, "1"), sock: p.sock, device: p.src}
	theirs := &nbdServer{name: "qemu-nbd", dir: filepath.Join(p.dir, "2"), sock: filepath.Join(p.dir, "q"), device: sized(t, p.dir, "other", size)}
	for _, s := range []*nbdServer{ours, theirs} {
		if err := os.Mkdir(s.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		// Data and holes that end at multiples of 64 KiB: finer than that a server may tell them or not.
		for name, at := range map[string]int64{"content": 0, "half": 24 * mib} {
			content := sized(t, s.dir, name, size)
			put(t, content, at, []byte(strings.Repeat("0123456789abcdef", 3*mib/16)))
			put(t, content, at+8*mib, []byte(strings.Repeat("some other text.", 5*mib/16)))
		}
		tool(t, "cp", "--sparse=always", filepath.Join(s.dir, "content"), s.device)
	}
	q := launch(t, nil, "qemu-nbd", "--persistent", "--shared=8", "--format=raw", "--export-name=v", "--discard=unmap",
		"--detect-zeroes=off", "--cache=none", "--aio=threads", "--socket="+theirs.sock, theirs.device)
	until(t, "qemu-nbd", func() bool {
		if q.ended() {
			t.Skipf("qemu-nbd ended: %s", q.err.String())
		}
		return exec.Command("nbdinfo", "--size", "nbd+unix:///v?socket="+theirs.sock).Run() == nil
	})
	p.mirrorUp()
	p.primary.up()

	for _, line := range clientScript {
		want, got := theirs.does(line), ours.does(line)
		if got != want {
			t.Errorf("%s\nqemu-nbd:\n%.1500s\nexport:\n%.1500s", line, want, got)
		}
		a, b := filepath.Join(ours.dir, "out"), filepath.Join(theirs.dir, "out")
		if strings.Contains(line, "%D/out") && strings.HasPrefix(line, "nbdcopy") {
			equal(t, a, b)
		}
	}
	equal(t, ours.device, theirs.device)
	p.cut()
	p.same()
	p.mirror.down()
	p.primary.down()
	p.same()
}

// fio checks by itself what it wrote and reads back.
func TestLiveFio(t *testing.T) {
	t.Parallel()
	need(t, "fio")
	if out, err := exec.Command("fio", "--enghelp=nbd").CombinedOutput(); err != nil {
		t.Skipf("this fio has no nbd engine: %s", out)
	}
	p := startLivePair(t, checked, 64*mib)
	for _, args := range [][]string{
		{"--rw=randwrite", "--bsrange=4k-256k", "--iodepth=16", "--size=48M"},
		{"--rw=randrw", "--bs=512", "--iodepth=8", "--size=1M", "--offset=50M"},
		{"--rw=randtrimwrite", "--bs=64k", "--iodepth=8", "--size=8M", "--offset=52M"},
	} {
		line := append([]string{"fio", "--name=x", "--ioengine=nbd", "--uri=" + p.uri(), "--randseed=1"}, args...)
		if !strings.Contains(args[0], "trim") {
			line = append(line, "--verify=crc32c", "--verify_fatal=1")
		}
		cmd := exec.Command(line[0], line[1:]...)
		cmd.Dir = p.dir // fio leaves a file of its state
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%q: %v\n%.3000s", line, err, out)
		}
	}
	p.cut()
	p.same()
}
