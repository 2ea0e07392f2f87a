package cli

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// config is the file of `serve`: the same words as its flags.
type config struct {
	state, listen, control, http string

	insecure bool
	keys     identity.Options
	volumes  map[string]engine.VolumeConfig
}

// loadConfig reads the file and refuses what it does not know: a word with a typo in it would otherwise
// be a setting that silently does nothing. Errors name the line and the key.
func loadConfig(path string) (config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return config{}, &engine.Error{Kind: engine.KindUsage, Op: "read config", On: path, Err: reason(err),
			Next: "name a file that can be read with --config"}
	}
	r := configReader{text: string(text)}
	if _, err = toml.Decode(r.text, &r.document); err != nil {
		err = errors.New(strings.TrimPrefix(err.Error(), "toml: ")) // names the line
	} else {
		err = r.read()
	}
	if err != nil {
		return config{}, &engine.Error{Kind: engine.KindUsage, Op: "read config", On: path, Err: err,
			Next: "correct the file; '" + name + " serve --help' shows what it may hold"}
	}
	return r.config, nil
}

// configReader takes a parsed file apart. Tables are gone through in alphabetical order: which of several
// errors is told should not be up to chance.
type configReader struct {
	text     string
	document table
	config   config
}

type table = map[string]any

func (r *configReader) read() error {
	r.config.volumes = map[string]engine.VolumeConfig{}
	for _, key := range slices.Sorted(maps.Keys(r.document)) {
		value, err, ok := r.document[key], error(nil), true
		switch key {
		case "state":
			r.config.state, ok = value.(string)
		case "listen":
			r.config.listen, ok = value.(string)
		case "control":
			r.config.control, ok = value.(string)
		case "http":
			r.config.http, ok = value.(string)
		case "insecure":
			if r.config.insecure, ok = value.(bool); !ok {
				return r.fail("must be true or false", key)
			}
		case "volume":
			err = r.readVolumes(value)
		default:
			s := findKeySetting(key)
			if s == nil {
				return r.unknown(key)
			}
			var text string
			if text, ok = value.(string); ok {
				if err = s.set(&r.config.keys, text); err != nil {
					return r.fail(fmt.Sprintf("%q: %v", text, err), key)
				}
			}
		}
		if !ok {
			return r.fail("must be a text in quotes", key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *configReader) readVolumes(value any) error {
	volumes, ok := value.(table)
	if !ok {
		return r.fail("must be tables [volume.NAME]", "volume")
	}
	for _, volume := range slices.Sorted(maps.Keys(volumes)) {
		if err := engine.CheckVolumeName(volume); err != nil {
			return fmt.Errorf("line %d: volume name %q %w", r.lineOf("volume", volume), volume, errors.Unwrap(err))
		}
		settings, ok := volumes[volume].(table)
		if !ok {
			return r.fail("must be a table", "volume", volume)
		}
		c := newVolume()
		for _, key := range slices.Sorted(maps.Keys(settings)) {
			if err := r.readSetting(&c, volume, key, settings[key]); err != nil {
				return err
			}
		}
		if c.Path == "" {
			return fmt.Errorf("line %d: [volume.%s] has no path", r.lineOf("volume", volume), volume)
		}
		r.config.volumes[volume] = c
	}
	return nil
}

func (r *configReader) readSetting(c *engine.VolumeConfig, volume, key string, value any) error {
	s := findSetting(key)
	if s == nil {
		return r.unknown("volume", volume, key)
	}
	if key == "mirror" {
		return r.readMirrors(c, volume, value)
	}
	if key == "rate" {
		return r.readRate(&c.Rate, value, "volume", volume, key)
	}
	text, ok := value.(string)
	if n, isNumber := value.(int64); isNumber && s.number {
		text, ok = fmt.Sprint(n), true
	}
	if !ok {
		return r.fail("must be a text in quotes: "+s.value, "volume", volume, key)
	}
	if err := s.set(c, text); err != nil {
		return r.fail(fmt.Sprintf("%q: %v", text, err), "volume", volume, key)
	}
	return nil
}

// readMirrors reads the tables [[volume.NAME.mirror]]. A mirror that has a name of its own keeps what is
// known of it when its address changes.
func (r *configReader) readMirrors(c *engine.VolumeConfig, volume string, value any) error {
	mirrors, ok := value.([]table)
	if !ok {
		return r.fail(fmt.Sprintf("must be tables [[volume.%s.mirror]] with an address, and a name if you like", volume), "volume", volume, "mirror")
	}
	for i, settings := range mirrors {
		var m engine.MirrorConfig
		for _, key := range slices.Sorted(maps.Keys(settings)) {
			if err := r.readMirror(&m, key, settings[key], "volume", volume, "mirror", i, key); err != nil {
				return err
			}
		}
		if m.Address == "" {
			return r.fail("has no address", "volume", volume, "mirror", i)
		}
		m.Name = cmp.Or(m.Name, m.Address)
		if err := addMirror(c, m); err != nil {
			return r.fail(err.Error(), "volume", volume, "mirror", i, "address")
		}
	}
	return nil
}

// readMirror takes one key of a mirror.
func (r *configReader) readMirror(m *engine.MirrorConfig, key string, value any, path ...any) error {
	if key == "rate" {
		return r.readRate(&m.Rate, value, path...)
	}
	text, ok := value.(string)
	switch {
	case key != "name" && key != "address":
		return r.unknown(path...)
	case !ok || text == "":
		return r.fail("must be a text in quotes", path...)
	case key == "name":
		if err := engine.CheckVolumeName(text); err != nil { // the rules for names are the same
			return r.fail(fmt.Sprintf("%q %v", text, errors.Unwrap(err)), path...)
		}
		m.Name = text
	default:
		m.Address = text
	}
	return nil
}

// listOf is a list of tables, however it was written.
func listOf(value any) (list []table, ok bool) {
	switch value := value.(type) {
	case []table:
		return value, true
	case []any:
		for _, v := range value {
			t, isTable := v.(table)
			if !isTable {
				return nil, false
			}
			list = append(list, t)
		}
		return list, true
	}
	return nil, false
}

// readRate reads a limit, or a schedule of some.
func (r *configReader) readRate(rates *engine.Rates, value any, path ...any) error {
	if list, ok := listOf(value); ok {
		return r.readRates(rates, list, path...)
	}
	text, ok := value.(string)
	if n, isNumber := value.(int64); isNumber {
		text, ok = fmt.Sprint(n), true
	}
	if !ok {
		return r.fail("must be a text in quotes: "+findSetting("rate").value, path...)
	}
	if err := setRate(rates, text); err != nil {
		return r.fail(fmt.Sprintf("%q: %v", text, err), path...)
	}
	return nil
}

// readRates reads the tables of a schedule, {from="08:00", to="18:00", limit="20MiB/s"}.
func (r *configReader) readRates(rates *engine.Rates, list []table, path ...any) error {
	for _, settings := range list {
		said := map[string]string{"from": "00:00", "to": "00:00", "limit": ""}
		for _, key := range slices.Sorted(maps.Keys(settings)) {
			if _, known := said[key]; !known {
				return r.fail(fmt.Sprintf("unknown key %q; give from, to and limit", key), path...)
			}
			text, ok := settings[key].(string)
			if n, isNumber := settings[key].(int64); isNumber && key == "limit" {
				text, ok = fmt.Sprint(n), true
			}
			if !ok {
				return r.fail(key+" must be a text in quotes", path...)
			}
			said[key] = text
		}
		if (settings["from"] == nil) != (settings["to"] == nil) {
			return r.fail("give both from and to, or none of them", path...)
		}
		if err := addRate(rates, said["limit"], said["from"], said["to"]); err != nil {
			return r.fail(err.Error(), path...)
		}
	}
	return nil
}

func (r *configReader) unknown(path ...any) error {
	return fmt.Errorf("line %d: unknown key %q", r.lineOf(path...), keyOf(path))
}

func (r *configReader) fail(text string, path ...any) error {
	return fmt.Errorf("line %d: %s: %s", r.lineOf(path...), keyOf(path), text)
}

// keyOf writes a path as the file does. Of several tables with one name it does not tell which: the line does.
func keyOf(path []any) string {
	var key toml.Key
	for _, p := range path {
		if word, ok := p.(string); ok {
			key = append(key, word)
		}
	}
	return key.String()
}

// lineOf finds the line that brings a key in: the shortest beginning of the file that has it. The
// library tells no positions of keys; files are short, and this runs only when one is wrong.
func (r *configReader) lineOf(path ...any) int {
	lines := strings.SplitAfter(r.text, "\n")
	for n := range lines {
		var beginning table
		if _, err := toml.Decode(strings.Join(lines[:n+1], ""), &beginning); err == nil && has(beginning, path) {
			return n + 1
		}
	}
	return len(lines)
}

// has follows keys and, where there are several tables, numbers of tables.
func has(value any, path []any) bool {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			t, _ := value.(table)
			next, ok := t[p]
			if !ok {
				return false
			}
			value = next
		case int:
			t, _ := value.([]table)
			if p >= len(t) {
				return false
			}
			value = t[p]
		}
	}
	return true
}

// reason strips the path, which the message around it names.
func reason(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}
