package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// The two builds of the binary. Most tests use the one with the race detector; those that move gigabytes
// or measure memory take the plain one. Without a C compiler both are the plain one.
var (
	checked string
	plain   string
)

var (
	long = flag.Bool("long", os.Getenv("BLKMIRROR_E2E_LONG") != "", "longer campaigns and larger images")
	seed = flag.Uint64("seed", envSeed(), "seed of all random choices; 0: a new one each time")
)

// work holds everything that the tests make, below TMPDIR. scripts/test cleans it up should a run die.
var work string

func envSeed() uint64 {
	n, _ := strconv.ParseUint(os.Getenv("BLKMIRROR_E2E_SEED"), 0, 64)
	return n
}

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("BLKMIRROR_E2E") == "" {
		fmt.Println("e2e: nothing was run; set BLKMIRROR_E2E=1, or use scripts/test e2e")
		os.Exit(0)
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if work, err = os.MkdirTemp("", "blke2e"); err == nil {
		err = os.Chmod(work, 0o755) // tests run parts as another user
	}
	if err == nil {
		defer os.RemoveAll(work)
		err = build()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	fmt.Printf("e2e: seed %d, in %s\n", *seed, work)
	return m.Run()
}

func build() error {
	const main = "github.com/blkmirror/blkmirror/cli/blkmirror"
	plain = filepath.Join(work, "bin", "blkmirror")
	if out, err := exec.Command("go", "build", "-o", plain, main).CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	checked = filepath.Join(work, "race", "blkmirror")
	if out, err := exec.Command("go", "build", "-race", "-o", checked, main).CombinedOutput(); err != nil {
		fmt.Printf("e2e: no build with -race, the plain one is used: %v\n%s", err, out)
		checked = plain
	}
	return nil
}
