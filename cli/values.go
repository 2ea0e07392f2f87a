package cli

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/blkmirror/blkmirror/engine"
)

// size is a flag that holds a number of bytes: 4096, 64K, 1.5GiB, 100MB. As in dd, K, M, G and T are
// powers of 1024, and so are KiB and the like; only KB, MB, GB and TB are powers of 1000.
type size int64

var errSize = errors.New("give a number of bytes, such as 4096, 64K, 1.5GiB or 100MB")

func (s *size) Set(text string) error {
	n, err := parseSize(text)
	*s = size(n)
	return err
}

func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	for i, unit := range "TGMK" {
		if shift := 40 - 10*i; *s%(1<<shift) == 0 {
			return fmt.Sprintf("%d%c", *s>>shift, unit)
		}
	}
	return strconv.FormatInt(int64(*s), 10)
}

func parseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "KMGTiBkmgtb ")
	factor, ok := unitFactor(strings.TrimSpace(text[len(digits):]))
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !ok || strings.Trim(digits, "0123456789.") != "" {
		return 0, errSize
	}
	// A float holds every whole number of bytes up to 8 PiB; beyond, nobody means an odd one.
	if n *= factor; n != math.Trunc(n) || n > math.MaxInt64/2 {
		return 0, errSize
	}
	return int64(n), nil
}

func unitFactor(unit string) (float64, bool) {
	if unit == "" || unit == "B" {
		return 1, true
	}
	power := strings.IndexByte("KMGT", strings.ToUpper(unit[:1])[0]) + 1
	switch rest := unit[1:]; {
	case power == 0:
		return 0, false
	case rest == "" || rest == "iB":
		return math.Pow(1024, float64(power)), true
	case rest == "B":
		return math.Pow(1000, float64(power)), true
	}
	return 0, false
}

// rate is a flag that holds bytes a second: a size, with or without "/s".
type rate struct{ size }

func (r *rate) Set(text string) error {
	if err := r.size.Set(strings.TrimSuffix(text, "/s")); err != nil {
		return errors.New("give bytes a second, such as 100M or 20MiB/s")
	}
	if r.size == 0 {
		return errors.New("nothing would move; leave the flag away for no limit")
	}
	return nil
}

// blockSize is a flag that holds what a volume allows as its block.
type blockSize struct{ size }

func (b *blockSize) Set(text string) error {
	err := b.size.Set(text)
	if n := b.size; err != nil || n < 4<<10 || n > 1<<20 || n&(n-1) != 0 {
		return errors.New("give a power of two from 4K to 1M")
	}
	return nil
}

// words is a repeatable flag. Unlike a string slice of urfave/cli it never splits a value.
type words []string

func (w *words) Set(text string) error { *w = append(*w, text); return nil }
func (w *words) String() string        { return "" }

// stateDir is where a node keeps what must survive: where it was told to, or the system's usual place.
func stateDir(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/blkmirror", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) { // the XDG rules: a relative one is to be ignored
		return filepath.Join(dir, name), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", &engine.Error{Kind: engine.KindUsage, Op: "find", On: "the state directory", Err: err,
			Next: "name one with --state"}
	}
	return filepath.Join(home, ".local", "state", name), nil
}

// formatBytes writes three digits that matter: 512 B, 1.50 GiB, 23.4 MiB, 117 KiB.
func formatBytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), -1
	for value >= 999.5 && unit < 4 {
		value, unit = value/1024, unit+1
	}
	digits := 2
	if value >= 99.95 {
		digits = 0
	} else if value >= 9.995 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %ciB", digits, value, "KMGTP"[unit])
}

func percent(part, whole int64) string {
	if whole <= 0 {
		return "0 %"
	}
	p := 100 * float64(part) / float64(whole)
	switch {
	case part >= whole:
		return "100 %"
	case p >= 99.9: // not done is not 100 %
		p = 99.9
	case p < 10:
		return fmt.Sprintf("%.2f %%", p)
	}
	return fmt.Sprintf("%.1f %%", p)
}
