package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

func (a *app) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a script that completes commands and flags in a shell",
		ArgsUsage: "bash|zsh|fish",
		UsageText: `
source <(blkmirror completion bash)
blkmirror completion zsh > "${fpath[1]}/_blkmirror"
blkmirror completion fish > ~/.config/fish/completions/blkmirror.fish`,
		Action: func(c *cli.Context) error {
			scripts := map[string]func(io.Writer, []completion){"bash": bashScript, "zsh": zshScript, "fish": fishScript}
			script, ok := scripts[c.Args().First()]
			if !ok {
				return usageError{command: "completion", text: fmt.Sprintf("unknown shell %q: give bash, zsh or fish", c.Args().First())}
			}
			script(a.stdout, completions(nil, a.commands()))
			return nil
		},
	}
}

// completion is what may follow one command. The words are written into the scripts: a shell should not
// have to start the program at every press of a key.
type completion struct {
	path     string   // "sync", "bench sync"
	usage    string   // of the command
	commands []string // subcommands
	words    []string // alternatives of the first argument; none: file names
	flags    []cli.Flag
}

func completions(parents []string, commands []*cli.Command) []completion {
	var all []completion
	for _, c := range commands {
		path := slices.Concat(parents, []string{c.Name})
		next := completion{path: strings.Join(path, " "), usage: c.Usage, commands: commandNames(c.Subcommands), flags: c.VisibleFlags()}
		if strings.Contains(c.ArgsUsage, "|") {
			next.words = strings.Split(c.ArgsUsage, "|")
		}
		all = append(all, next)
		all = append(all, completions(path, c.Subcommands)...)
	}
	return all
}

// candidates are all words but file names.
func (c completion) candidates() (words, flags []string) {
	for _, f := range c.flags {
		flags = append(flags, "--"+f.Names()[0])
	}
	return slices.Concat(c.commands, c.words), append(flags, "--help")
}

func topCommands(all []completion) []string {
	var names []string
	for _, c := range all {
		if !strings.Contains(c.path, " ") {
			names = append(names, c.path)
		}
	}
	return append(names, "help")
}

// caseArms prints, for bash and zsh alike, which words and flags belong to which command.
func caseArms(w io.Writer, all []completion) {
	fmt.Fprintf(w, "    case $command in\n        '') names='%s' flags='--help --version' ;;\n", strings.Join(topCommands(all), " "))
	for _, c := range all {
		words, flags := c.candidates()
		fmt.Fprintf(w, "        '%s') names='%s' flags='%s' ;;\n", c.path, strings.Join(words, " "), strings.Join(flags, " "))
	}
	fmt.Fprint(w, "    esac\n")
}

// parents names the commands whose subcommand is part of the command.
func parents(all []completion) string {
	var names []string
	for _, c := range all {
		if len(c.commands) > 0 {
			names = append(names, c.path)
		}
	}
	return strings.Join(names, "|")
}

func bashScript(w io.Writer, all []completion) {
	fmt.Fprintf(w, `# bash completion for blkmirror
_blkmirror() {
    local cur=${COMP_WORDS[COMP_CWORD]} command='' names='' flags=''
    if ((COMP_CWORD > 1)); then command=${COMP_WORDS[1]}; fi
    case $command in
        %s) if ((COMP_CWORD > 2)); then command+=" ${COMP_WORDS[2]}"; fi ;;
    esac
`, parents(all))
	caseArms(w, all)
	fmt.Fprint(w, `    if [[ $cur == -* ]]; then names=$flags; fi
    COMPREPLY=()
    if [[ -n $names ]]; then COMPREPLY=($(compgen -W "$names" -- "$cur")); fi
}
# Without an answer of ours bash completes file names.
complete -o default -F _blkmirror blkmirror
`)
}

func zshScript(w io.Writer, all []completion) {
	fmt.Fprintf(w, `#compdef blkmirror
_blkmirror() {
    local cur=${words[CURRENT]} command='' flags=''
    if ((CURRENT > 2)); then command=${words[2]}; fi
    case $command in
        %s) if ((CURRENT > 3)); then command+=" ${words[3]}"; fi ;;
    esac
    local names=''
`, parents(all))
	caseArms(w, all)
	fmt.Fprint(w, `    if [[ $cur == -* ]]; then
        compadd -- ${=flags}
    elif [[ -n $names ]]; then
        compadd -- ${=names}
    else
        _files
    fi
}
if [[ ${funcstack[1]} == _blkmirror ]]; then
    _blkmirror "$@" # autoloaded from fpath
else
    compdef _blkmirror blkmirror
fi
`)
}

func fishScript(w io.Writer, all []completion) {
	quote := func(s string) string {
		return "'" + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "'", `\'`) + "'"
	}
	fmt.Fprint(w, "# fish completion for blkmirror\n")
	for _, c := range all {
		words := strings.Fields(c.path)
		if len(words) == 1 {
			fmt.Fprintf(w, "complete -c blkmirror -f -n __fish_use_subcommand -a %s -d %s\n", c.path, quote(c.usage))
		}
		condition := quote("__fish_seen_subcommand_from " + strings.Join(words, "; and __fish_seen_subcommand_from "))
		if len(words) == 1 { // 'sync' alone, not 'bench sync'
			condition = quote("string match -q -- " + c.path + " (commandline -opc)[2]")
		}
		if more, _ := c.candidates(); len(more) > 0 {
			fmt.Fprintf(w, "complete -c blkmirror -f -n %s -a %s\n", condition, quote(strings.Join(more, " ")))
		}
		for _, f := range c.flags {
			doc := f.(cli.DocGenerationFlag)
			takes := ""
			if doc.TakesValue() {
				takes = " -r"
			}
			fmt.Fprintf(w, "complete -c blkmirror -n %s -l %s%s -d %s\n", condition, f.Names()[0], takes,
				quote(strings.ReplaceAll(doc.GetUsage(), "`", "")))
		}
	}
}
