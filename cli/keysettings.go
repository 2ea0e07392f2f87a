package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/wire/identity"
)

// keySetting is one thing that can be said of a node's keys: by a flag, or by a key of the config file.
type keySetting struct {
	key, flag string
	value     string // what the value is called in the help
	usage     string
	set       func(*identity.Options, string) error
}

var keySettings = []*keySetting{
	{"key_lifetime", "key-lifetime", "TIME", "have the key of this node roll over by itself after such a time, as 60d (default: never)",
		func(o *identity.Options, text string) error { return setSpan(&o.Lifetime, text) }},
	{"key_grace", "key-grace", "TIME", "how long an old key is good for peers that were away (default 30d, and at least the lifetime)",
		func(o *identity.Options, text string) error { return setSpan(&o.Grace, text) }},
	{"tls_cert", "tls-cert", "FILE", "show the certificate in FILE (PEM), of a CA of yours, in place of the node's own key",
		func(o *identity.Options, text string) error { o.Cert = text; return nil }},
	{"tls_key", "tls-key", "FILE", "its private key",
		func(o *identity.Options, text string) error { o.Key = text; return nil }},
	{"tls_ca", "tls-ca", "FILE", "the certificates of that CA: peers trusted as dns:HOST show one that it signed",
		func(o *identity.Options, text string) error { o.CA = text; return nil }},
}

func findKeySetting(key string) *keySetting {
	i := slices.IndexFunc(keySettings, func(s *keySetting) bool { return s.key == key })
	if i < 0 {
		return nil
	}
	return keySettings[i]
}

// setSpan reads a time that may be long.
func setSpan(d *time.Duration, text string) (err error) {
	*d, err = parseSpan(text)
	if err == nil && *d <= 0 {
		err = errSpan
	}
	return err
}

var errSpan = errors.New("give a time such as 60d, 36h or 90s")

// parseSpan knows days, besides what Go knows.
func parseSpan(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || n < 0 || n > 36500 {
			return 0, errSpan
		}
		return time.Duration(n * float64(24*time.Hour)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, errSpan
	}
	return d, nil
}

// saidOfKeys is what flags say of the keys, in their order.
type saidOfKeys []func(*identity.Options)

// open opens the identity of a command that dials by itself. Who looks after keys, and logs, is the daemon.
func (s saidOfKeys) open(state string) (*identity.Node, error) {
	o := identity.Options{Log: func(string) {}}
	for _, set := range s {
		set(&o)
	}
	return openKeys(state, o)
}

// keyFlag is the flag of a setting.
type keyFlag struct {
	setting *keySetting
	all     *saidOfKeys
}

func (f *keyFlag) String() string { return "" }

func (f *keyFlag) Set(text string) error {
	err := f.setting.set(new(identity.Options), text)
	*f.all = append(*f.all, func(o *identity.Options) { _ = f.setting.set(o, text) }) // was tried above
	return err
}

// keyFlags are those whose name begins so.
func keyFlags(all *saidOfKeys, prefix string) []cli.Flag {
	var flags []cli.Flag
	for _, s := range keySettings {
		if strings.HasPrefix(s.flag, prefix) {
			flags = append(flags, &cli.GenericFlag{Name: s.flag, Value: &keyFlag{s, all}, Usage: strings.Replace(s.usage, s.value, "`"+s.value+"`", 1) + valueOf(s)})
		}
	}
	return flags
}

// valueOf names the value where the text does not.
func valueOf(s *keySetting) string {
	if strings.Contains(s.usage, s.value) {
		return ""
	}
	return ", `" + s.value + "`"
}

const keysFolder = "keys" // in the state directory

// openKeys opens the identity of the node whose state directory this is, and makes it where there is none.
func openKeys(state string, o identity.Options) (*identity.Node, error) {
	o.Dir = filepath.Join(state, keysFolder)
	if (o.Cert == "") != (o.Key == "") {
		return nil, &engine.Error{Kind: engine.KindUsage, Op: "use", On: "the certificate of a CA",
			Err: errors.New("tls_cert and tls_key go together"), Next: "give both, or none"}
	}
	err := os.MkdirAll(state, 0o700)
	if err != nil {
		return nil, keysError("open keys", o.Dir, err)
	}
	n, err := identity.Open(o)
	if err != nil {
		return nil, keysError("open keys", o.Dir, err)
	}
	return n, nil
}

// keysError says what a person can do about an error of the keys.
func keysError(op, on string, err error) error {
	e := &engine.Error{Kind: engine.KindDevice, Op: op, On: on, Err: err, Next: "check the folder and its permissions"}
	for _, c := range []struct {
		is   error
		kind engine.Kind
		next string
	}{
		{identity.ErrName, engine.KindUsage, "see '" + name + " keys trust --help'"},
		{identity.ErrOtherKey, engine.KindState, "`" + name + " keys revoke` it first, if it is the other node that you no longer trust"},
		{identity.ErrOtherName, engine.KindState, "see `" + name + " keys list`; revoke the other name first, or trust under that"},
		{identity.ErrNoPeer, engine.KindState, "see `" + name + " keys list`"},
		{identity.ErrLocked, engine.KindState, "try again; another process changes the keys"},
		{identity.ErrTooMuch, engine.KindState, "`" + name + " keys revoke` who is not needed any more; fewer grants, for all volumes, take less room"},
		{fs.ErrPermission, engine.KindDevice, "run it as the user to whom the state directory belongs, or make the folder `" + keysFolder + "` in it, with all files, his (chown -R)"},
		{identity.ErrExposed, engine.KindDevice, "if somebody may have read the key, revoke it at all peers and begin with a new one; else take the rights away as said"},
		{identity.ErrDamaged, engine.KindDevice, "do as it says, and start again"},
	} {
		if errors.Is(err, c.is) {
			e.Kind, e.Next = c.kind, c.next
			break
		}
	}
	return e
}
