package cli

import (
	"os/exec"
	"strings"
	"testing"
)

func TestBashCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	script := call(t, "completion", "bash").stdout
	tests := []struct {
		line string // the last word is being completed
		want string
	}{
		{"blkmirror s", "sync serve status scrub"},
		{"blkmirror re", "repair resume rebuild"},
		{"blkmirror verify db --", "--control --state --mirror --rate --json --help"},
		{"blkmirror repair db --d", "--dry-run"},
		{"blkmirror cut db --w", "--wait"},
		{"blkmirror serve --on", "--on-staging-full --on-reboot --on-mismatch"},
		{"blkmirror --v", "--version"},
		{"blkmirror sync --st", "--state"},
		{"blkmirror sync a b --n", "--no-compress"},
		{"blkmirror sync a", ""}, // bash's own file names
		{"blkmirror completion ", "bash zsh fish"},
		{"blkmirror bench ", "sync live failsafe"},
		{"blkmirror keys ", "show trust revoke rotate list"},
		{"blkmirror keys trust --u", "--until"},
		{"blkmirror serve --key", "--key-lifetime --key-grace"},
		{"blkmirror bench sync --pai", "--pairs"},
		{"blkmirror nothing --x", ""},
	}
	for _, test := range tests {
		drive := script + `
COMP_WORDS=($1); if [[ $1 == *' ' ]]; then COMP_WORDS+=(''); fi
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_blkmirror
echo "${COMPREPLY[*]}"`
		out, err := exec.Command(bash, "-euc", drive, "bash", test.line).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != test.want {
			t.Errorf("%q completes to %q instead of %q (%v)", test.line, got, test.want, err)
		}
	}
}

// The scripts of the other shells are checked for syntax where these are installed.
func TestCompletionScriptsParse(t *testing.T) {
	for shell, flag := range map[string]string{"bash": "-n", "zsh": "-n", "fish": "--no-execute"} {
		script := call(t, "completion", shell)
		if script.code != 0 || !strings.Contains(script.stdout, "trust-index") {
			t.Errorf("%s: %+v", shell, script)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("%s is not installed", shell)
			continue
		}
		cmd := exec.Command(path, flag)
		cmd.Stdin = strings.NewReader(script.stdout)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
	}
}
