package cli

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
)

// setting is one thing that can be said of a volume: by a flag --flag VOLUME=VALUE, or by a key in the
// table [volume.VOLUME] of the config file. So the two cannot but say the same things.
type setting struct {
	key, flag string
	value     string // what the value is called in the help
	usage     string
	many      bool // may be said several times of one volume; flags then replace all that the file says
	number    bool // in the file, a number without quotes will do
	set       func(*engine.VolumeConfig, string) error
	clear     func(*engine.VolumeConfig) // of many: forgets what was set
	// mirrors finds what can be said of one mirror by itself, as NAME/MIRROR=VALUE; nil: nothing.
	mirrors func(*engine.MirrorConfig) *engine.Rates
}

var volumeSettings = []*setting{
	{key: "path", flag: "volume", value: "PATH", usage: "offer a device or an image as a volume", set: setPath},
	{key: "export", flag: "export", value: "unix:PATH|tcp:ADDR", usage: "let clients use the volume as a disk (NBD), there", set: setExport},
	{key: "mirror", flag: "mirror", value: "HOST:PORT", usage: "keep a copy of the volume there; may be repeated for further copies", many: true, set: setMirror,
		clear: func(c *engine.VolumeConfig) { c.Mirrors = nil }},
	{key: "role", flag: "role", value: "primary|mirror", usage: "what a new volume is (default: primary with an export or a mirror, else mirror)", set: setRole},
	{key: "interval", flag: "interval", value: "TIME", usage: "time between cuts, 10ms to 24h; 0: always the next (default 1s)", number: true, set: setInterval},
	{key: "mode", flag: "mode", value: "async", usage: "answer writes when they are here (sync is not built yet)", set: setMode},
	{key: "max_lag", flag: "max-lag", value: "TIME", usage: "a mirror further behind is told as lagging (default 1m)", set: setMaxLag},
	{key: "block_size", flag: "block-size", value: "BYTES", usage: "hash blocks of that size, 4K to 1M; of a new volume (default 64K)", number: true, set: setBlockSize},
	{key: "on_staging_full", flag: "on-staging-full", value: "hold|bulk", usage: "a mirror without room keeps its last cut, or is overwritten in place (default hold)", set: setOnStagingFull},
	{key: "on_reboot", flag: "on-reboot", value: "compare|trust", usage: "whether a disk is compared with its index after a reboot (default compare)", set: setOnReboot},
	{key: "verify_writes", flag: "verify-writes", value: "off|readback", usage: "whether a mirror reads back and compares what it wrote to its disk (default off)", set: setVerifyWrites},
	{key: "on_mismatch", flag: "on-mismatch", value: "continue|freeze", usage: "while a mirror is read-only after a mismatch, take writes, or refuse them (default continue)", set: setOnMismatch},
	{key: "scrub", flag: "scrub", value: "weekly|daily|off|TIME", usage: "how often this node compares its disk with its own index (default weekly)", set: setScrub},
	{key: "rate", flag: "rate", value: "BYTES[@FROM-TO]", usage: "send at most so much a second to each mirror, always or from HH:MM to HH:MM; may be repeated; NAME/MIRROR=... is for one mirror (default no limit)", many: true,
		set:     func(c *engine.VolumeConfig, text string) error { return setRate(&c.Rate, text) },
		clear:   func(c *engine.VolumeConfig) { c.Rate = nil },
		mirrors: func(m *engine.MirrorConfig) *engine.Rates { return &m.Rate }},
	{key: "congestion", flag: "congestion", value: "auto|default|ALGORITHM", usage: "TCP's congestion control; auto: bbr where the kernel has it (default auto)", set: setCongestion},
	{key: "staging_limit", flag: "staging-limit", value: "BYTES", usage: "room for staging at a mirror (default 80 % of what is free)", number: true, set: setStagingLimit},
}

// newVolume is a volume of which nothing was said yet. What is zero in it is for the engine to choose.
func newVolume() engine.VolumeConfig {
	return engine.VolumeConfig{Interval: engine.DefaultInterval, MaxLag: engine.DefaultMaxLag, OnStagingFull: "hold", OnReboot: "compare",
		VerifyWrites: "off", OnMismatch: "continue"}
}

func findSetting(key string) *setting {
	i := slices.IndexFunc(volumeSettings, func(s *setting) bool { return s.key == key })
	if i < 0 {
		return nil
	}
	return volumeSettings[i]
}

func setPath(c *engine.VolumeConfig, text string) error {
	if text == "" {
		return errors.New("give a path")
	}
	c.Path = text
	return nil
}

func setExport(c *engine.VolumeConfig, text string) error {
	c.Export = text
	return engine.CheckExport(text)
}

// setMirror takes the address for the mirror's name.
func setMirror(c *engine.VolumeConfig, text string) error {
	return addMirror(c, engine.MirrorConfig{Name: text, Address: text})
}

func addMirror(c *engine.VolumeConfig, m engine.MirrorConfig) error {
	for _, other := range c.Mirrors {
		if other.Name == m.Name || other.Address == m.Address {
			return fmt.Errorf("mirror %s is given twice", m.Name)
		}
	}
	c.Mirrors = append(c.Mirrors, m)
	return engine.CheckPeer(m.Address)
}

func setRole(c *engine.VolumeConfig, text string) error {
	c.Role = text
	return oneOf(text, "primary", "mirror")
}

func setMode(_ *engine.VolumeConfig, text string) error {
	if text == "sync" {
		return errors.New("sync is not built yet; async is what there is")
	}
	return oneOf(text, "async")
}

func setOnStagingFull(c *engine.VolumeConfig, text string) error {
	c.OnStagingFull = text
	return oneOf(text, "hold", "bulk")
}

func setOnReboot(c *engine.VolumeConfig, text string) error {
	c.OnReboot = text
	return oneOf(text, "compare", "trust")
}

func setVerifyWrites(c *engine.VolumeConfig, text string) error {
	c.VerifyWrites = text
	return oneOf(text, "off", "readback")
}

func setOnMismatch(c *engine.VolumeConfig, text string) error {
	c.OnMismatch = text
	return oneOf(text, "continue", "freeze")
}

func setScrub(c *engine.VolumeConfig, text string) (err error) {
	c.Scrub, err = engine.ParseScrub(text)
	return err
}

// setRate adds a limit such as 20MiB/s or 20MiB/s@08:00-18:00.
func setRate(rates *engine.Rates, text string) error {
	limit, span, some := strings.Cut(text, "@")
	from, to, ok := "00:00", "00:00", true
	if some {
		from, to, ok = strings.Cut(span, "-")
	}
	if !ok {
		return errors.New("give the time as FROM-TO, such as 08:00-18:00")
	}
	return addRate(rates, limit, from, to)
}

func addRate(rates *engine.Rates, limit, from, to string) error {
	var n rate
	if err := n.Set(limit); err != nil {
		return err
	}
	if n.size < minRate {
		return fmt.Errorf("give at least %s a second", formatBytes(minRate))
	}
	e := engine.RateEntry{Limit: int64(n.size)}
	if err := e.ParseSpan(from, to); err != nil {
		return err
	}
	*rates = append(slices.Clone(*rates), e)
	return nil
}

// minRate is the lowest limit: with less, a record of 1 MiB takes longer than a peer is waited for.
const minRate = 16 << 10

func setCongestion(c *engine.VolumeConfig, text string) error {
	c.Congestion = text
	return engine.CheckCongestion(text)
}

func oneOf(text string, words ...string) error {
	if slices.Contains(words, text) {
		return nil
	}
	return errors.New("give " + strings.Join(words, " or "))
}

func setInterval(c *engine.VolumeConfig, text string) error {
	d, err := time.ParseDuration(text)
	if err != nil || d != 0 && (d < engine.MinInterval || d > engine.MaxInterval) {
		return fmt.Errorf("give 0, or a time from %v to %v such as 500ms", engine.MinInterval, engine.MaxInterval)
	}
	c.Interval = d
	return nil
}

func setMaxLag(c *engine.VolumeConfig, text string) error {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return errors.New("give a time such as 90s")
	}
	c.MaxLag = d
	return nil
}

func setBlockSize(c *engine.VolumeConfig, text string) error {
	var b blockSize
	err := b.Set(text)
	c.BlockSize = int(b.size)
	return err
}

func setStagingLimit(c *engine.VolumeConfig, text string) error {
	n, err := parseSize(text)
	if err == nil && n == 0 {
		err = errors.New("nothing could be staged; leave it away for no limit but that of the disk")
	}
	c.StagingLimit = n
	return err
}

// said is a setting as it was given on the command line.
type said struct {
	*setting
	volume, mirror, text string // mirror "": of the volume
}

// of is what it is said of.
func (s said) of() string {
	if s.mirror == "" {
		return s.volume
	}
	return s.volume + "/" + s.mirror
}

// apply says it. What is said first of many forgets what was said in the file.
func (s said) apply(c *engine.VolumeConfig, first bool) error {
	if s.mirror == "" {
		if s.many && first {
			s.clear(c)
		}
		return s.set(c, s.text)
	}
	i := slices.IndexFunc(c.Mirrors, func(m engine.MirrorConfig) bool { return m.Name == s.mirror })
	if i < 0 {
		return errors.New("the volume has no mirror of that name")
	}
	rates := s.mirrors(&c.Mirrors[i])
	if first {
		*rates = nil
	}
	return setRate(rates, s.text)
}

// volumeFlag is the flag of a setting. Values may hold commas and further equals signs.
type volumeFlag struct {
	setting *setting
	all     *[]said // of all these flags, in their order
}

func (f *volumeFlag) String() string { return "" }

func (f *volumeFlag) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" || value == "" {
		return errors.New("give NAME=" + f.setting.value)
	}
	volume, mirror := name, ""
	if f.setting.mirrors != nil {
		if volume, mirror, ok = strings.Cut(name, "/"); ok && mirror == "" {
			return errors.New("give NAME/MIRROR=" + f.setting.value)
		}
	}
	if err := engine.CheckVolumeName(volume); err != nil {
		return errors.Unwrap(err)
	}
	for _, s := range *f.all {
		if s.setting == f.setting && s.of() == name && (!f.setting.many || s.text == value) {
			return fmt.Errorf("it is given twice for volume %s", name)
		}
	}
	*f.all = append(*f.all, said{f.setting, volume, mirror, value})
	return f.setting.set(new(engine.VolumeConfig), value)
}

func volumeFlags(all *[]said) []cli.Flag {
	var flags []cli.Flag
	for _, s := range volumeSettings {
		flags = append(flags, &cli.GenericFlag{Name: s.flag, Value: &volumeFlag{s, all}, Usage: "`NAME=" + s.value + "`: " + s.usage})
	}
	return flags
}

// applySaid puts what flags say over what the file says. Mirrors and rates that flags name replace the file's. What is
// said of a mirror comes last: the flag that names it may stand behind.
func applySaid(volumes map[string]engine.VolumeConfig, all []said) error {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b said) int { return cmp.Compare(min(len(a.mirror), 1), min(len(b.mirror), 1)) })
	for _, s := range all {
		if s.key == "path" {
			if _, ok := volumes[s.volume]; !ok {
				volumes[s.volume] = newVolume()
			}
		}
	}
	replaced := map[string]bool{}
	for _, s := range all {
		c, ok := volumes[s.volume]
		if !ok {
			return usageError{command: "serve", text: fmt.Sprintf("--%s is given for volume %s, which has no --volume %s=PATH", s.flag, s.volume, s.volume)}
		}
		key := s.key + "=" + s.of()
		if err := s.apply(&c, !replaced[key]); err != nil {
			return usageError{command: "serve", text: fmt.Sprintf("--%s %s=%s: %v", s.flag, s.of(), s.text, err)}
		}
		replaced[key] = true
		volumes[s.volume] = c
	}
	return nil
}
