package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/blkmirror/blkmirror/engine"
)

// config is the file of `serve`: the same words as its flags.
type config struct {
	State    string                  `toml:"state"`
	Listen   string                  `toml:"listen"`
	Control  string                  `toml:"control"`
	Insecure bool                    `toml:"insecure"`
	Volume   map[string]volumeConfig `toml:"volume"`
}

// volumeConfig is a table [volume.NAME].
type volumeConfig struct {
	Path string `toml:"path"`
}

// loadConfig reads the file and refuses what it does not know: a word with a typo in it would otherwise
// be a setting that silently does nothing.
func loadConfig(path string) (config, error) {
	fail := func(err error) error {
		return &engine.Error{Kind: engine.KindUsage, Op: "read config", On: path, Err: err,
			Next: "correct the file; it may hold state, listen, control, insecure, and path in [volume.NAME]"}
	}
	var c config
	text, err := os.ReadFile(path)
	if err != nil {
		return c, &engine.Error{Kind: engine.KindUsage, Op: "read config", On: path, Err: reason(err),
			Next: "name a file that can be read with --config"}
	}
	meta, err := toml.Decode(string(text), &c)
	if err != nil {
		return c, fail(errors.New(strings.TrimPrefix(err.Error(), "toml: ")))
	}
	// Into a map the library lets any type pass. A table that only [volume.NAME] brings in has none.
	if kind := meta.Type("volume"); kind != "" && kind != "Hash" {
		return c, fail(fmt.Errorf("line %d: \"volume\" must be tables [volume.NAME]", lineOf(string(text), toml.Key{"volume"})))
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return c, fail(fmt.Errorf("line %d: unknown key %q", lineOf(string(text), unknown[0]), unknown[0]))
	}
	for volume, v := range c.Volume {
		key := toml.Key{"volume", volume}
		if err := engine.CheckVolumeName(volume); err != nil {
			return c, fail(fmt.Errorf("line %d: volume name %q %w", lineOf(string(text), key), volume, errors.Unwrap(err)))
		}
		if v.Path == "" {
			return c, fail(fmt.Errorf("line %d: [%s] has no path", lineOf(string(text), key), key))
		}
	}
	return c, nil
}

// lineOf finds the line that brings a key in: the shortest beginning of the file that has it. The
// library tells no positions of keys; files are short, and this runs only when one is wrong.
func lineOf(text string, key toml.Key) int {
	lines := strings.SplitAfter(text, "\n")
	for n := range lines {
		var any map[string]any
		meta, err := toml.Decode(strings.Join(lines[:n+1], ""), &any)
		if err == nil && meta.IsDefined(key...) {
			return n + 1
		}
	}
	return len(lines)
}

// reason strips the path, which the message around it names.
func reason(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}
