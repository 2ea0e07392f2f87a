package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

func TestUsage(t *testing.T) {
	t.Parallel()
	p := newPair(t, mib)
	remote := "blk://127.0.0.1:1/v"
	for name, args := range map[string][]string{
		"no command": {}, "unknown command": {"sink"}, "unknown flag": {"sync", "--fast", p.src, p.dst},
		"one-dash flag": {"sync", "-json", p.src, p.dst}, "flag before the command": {"--json", "sync", p.src, p.dst},
		"no arguments": {"sync"}, "one argument": {"sync", p.src}, "three arguments": {"sync", p.src, p.dst, "x"},
		"empty argument": {"sync", "", p.dst}, "bad block size": {"sync", "--block-size", "5000", p.src, p.dst},
		"block size too large": {"sync", "--block-size", "2M", p.src, p.dst}, "bad rate": {"sync", "--rate", "quick", p.src, p.dst},
		"negative rate": {"sync", "--rate=-1", p.src, p.dst}, "flag without value": {"sync", p.src, p.dst, "--rate"},
		"bad time": {"sync", "--retry", "soon", p.src, p.dst}, "other scheme": {"sync", p.src, "http://127.0.0.1/x"},
		"both remote": {"sync", "--insecure", remote, remote}, "no volume": {"sync", "--insecure", p.src, "blk://127.0.0.1:1"},
		"no port": {"sync", "--insecure", p.src, "blk://127.0.0.1/v"}, "odd volume name": {"sync", "--insecure", p.src, "blk://127.0.0.1:1/a b"},
		"plain TCP to the world":  {"sync", "--insecure", p.src, "blk://192.0.2.1:7417/v"},
		"plain TCP to a mirror":   {"serve", "--insecure", "--state", p.state, "--volume", "v=" + p.src, "--mirror", "v=192.0.2.1:7417"},
		"serve on all addresses":  {"serve", "--insecure", "--state", p.state, "--listen", ":0", "--volume", "v=" + p.dst},
		"serve to the world":      {"serve", "--insecure", "--state", p.state, "--listen", "192.0.2.1:0", "--volume", "v=" + p.dst},
		"serve nothing":           {"serve", "--insecure", "--state", p.state},
		"serve a nameless volume": {"serve", "--insecure", "--state", p.state, "--volume", p.dst},
		"volume given twice":      {"serve", "--insecure", "--state", p.state, "--volume", "v=" + p.dst, "--volume", "v=" + p.src},
		"odd verify_writes":       {"serve", "--insecure", "--state", p.state, "--volume", "v=" + p.dst, "--verify-writes", "v=always"},
		"odd on_mismatch":         {"serve", "--insecure", "--state", p.state, "--volume", "v=" + p.dst, "--on-mismatch", "v=stop"},
		"verify nothing":          {"verify"}, "verify two": {"verify", "v", "w"}, "verify at no rate": {"verify", "v", "--rate", "0"},
		"repair nothing": {"repair"}, "repair an odd name": {"repair", "a b"}, "repair at a rate": {"repair", "v", "--rate", "1M"},
		"completion for no shell": {"completion", "cmd"}, "inspect nothing": {"inspect"},
	} {
		t.Run(name, func(t *testing.T) {
			r := launch(t, nil, append([]string{plain}, args...)...).wait().fails(t, 2)
			if r.stdout != "" {
				t.Errorf("stdout: %s", r.stdout)
			}
			absent(t, p.dst)
			absent(t, p.state)
		})
	}
	p.completes(t)
}

func TestBadConfigFile(t *testing.T) {
	t.Parallel()
	p := newPair(t, mib)
	file := filepath.Join(p.dir, "conf.toml")
	for name, text := range map[string]string{"no TOML": "state = [", "unknown word": "insecure = true\nspeed = 5\n[volume.v]\npath = \"x\"\n",
		"odd on_mismatch": "insecure = true\n[volume.v]\npath = \"x\"\non_mismatch = \"stop\"\n"} {
		t.Run(name, func(t *testing.T) {
			write(t, file, []byte(text))
			blkmirror(t, "serve", "--config", file, "--state", p.state).fails(t, 2, file)
		})
	}
	t.Run("missing", func(t *testing.T) {
		r := blkmirror(t, "serve", "--config", file+"x", "--state", p.state)
		if r.code != 2 && r.code != 6 {
			t.Errorf("exit code %d, want 2 or 6", r.code)
		}
		r.fails(t, r.code, file+"x")
	})
}

// A config file says the same as the flags.
func TestConfigFile(t *testing.T) {
	t.Parallel()
	p := newPair(t, 3*mib)
	file := filepath.Join(p.dir, "conf.toml")
	write(t, file, []byte("insecure = true\nlisten = \"127.0.0.1:0\"\nstate = \""+p.state+"\"\n[volume.v]\npath = \""+p.dst+"\"\n"))
	s := &server{proc: start(t, "serve", "--config", file), state: p.state, control: filepath.Join(p.state, "control.sock")}
	until(t, "the control socket", func() bool { _, err := os.Stat(s.control); return err == nil || s.ended() })
	s.addr = s.status().Listen
	mustRun(t, "sync", "--insecure", p.src, s.url("v"))
	equal(t, p.src, p.dst)
}

func TestTwoDaemonsOnOneState(t *testing.T) {
	t.Parallel()
	p := newPair(t, mib)
	s := serve(t, p.state, "v="+p.dst)
	blkmirror(t, "serve", "--insecure", "--state", p.state, "--listen", "127.0.0.1:0", "--volume", "w="+p.src).fails(t, 7, p.state)
	mustRun(t, "sync", "--insecure", p.src, s.url("v"))
	equal(t, p.src, p.dst)
}

func TestNoDaemon(t *testing.T) {
	t.Parallel()
	p := newPair(t, mib)
	blkmirror(t, "status", "--control", filepath.Join(p.dir, "none.sock")).fails(t, 3, "none.sock")
	for _, command := range []string{"verify", "repair"} {
		blkmirror(t, command, "v", "--control", filepath.Join(p.dir, "none.sock")).fails(t, 3, "none.sock")
	}
	blkmirror(t, "sync", "--insecure", p.src, "blk://127.0.0.1:1/v").fails(t, 3, "127.0.0.1:1")
}
