package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

// invocation is a command line put into the order that urfave/cli understands: it stops looking for
// flags at the first argument, takes an unknown command for an argument and never counts arguments.
type invocation struct {
	path    []string // the command's name behind those of its parents: "bench", "sync"
	command *cli.Command
	help    bool
	flags   []string // each as --name or --name=value
	args    []string
}

func (i *invocation) misuse(format string, args ...any) error {
	return usageError{command: strings.Join(i.path, " "), text: fmt.Sprintf(format, args...)}
}

// parseArgs finds the command, takes flags wherever they stand, and refuses every misuse but a bad value
// of a flag, which shows itself when the value is converted.
func parseArgs(commands []*cli.Command, args []string) (invocation, error) {
	var call invocation
	if len(args) > 0 && args[0] == "help" {
		args = append(args[1:], "--help")
	}
	if len(args) == 1 && args[0] == "--version" {
		args = []string{"version"}
	}
	for call.command == nil || len(call.command.Subcommands) > 0 {
		if call.command != nil {
			commands = call.command.Subcommands
		}
		switch {
		case len(args) == 0:
			return call, call.misuse("no command given")
		case args[0] == "-h" || args[0] == "--help":
			call.help = true
			return call, nil
		case strings.HasPrefix(args[0], "-"):
			return call, call.misuse("%s stands before the command; flags go behind it", args[0])
		}
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[0]) })
		if i < 0 {
			return call, call.misuse("unknown command %q%s", args[0], didYouMean(args[0], commandNames(commands), ""))
		}
		call.command = commands[i]
		call.path = append(call.path, call.command.Name)
		args = args[1:]
	}
	if err := call.sortFlags(args); err != nil || call.help {
		return call, err
	}
	return call, call.countArgs()
}

// sortFlags separates flags from arguments.
func (i *invocation) sortFlags(rest []string) error {
	for len(rest) > 0 {
		arg := rest[0]
		rest = rest[1:]
		switch {
		case arg == "--":
			i.args = append(i.args, rest...)
			return nil
		case arg == "-h" || arg == "--help":
			i.help = true
			return nil
		case arg == "-" || !strings.HasPrefix(arg, "-"):
			i.args = append(i.args, arg)
			continue
		}
		flag, value, hasValue := strings.Cut(arg, "=")
		takesValue, known := lookupFlag(i.command.Flags, flag)
		switch {
		case !known:
			return i.misuse("unknown flag %s%s", flag, didYouMean(flag, flagNames(i.command), "--"))
		case !takesValue:
			if _, err := strconv.ParseBool(value); hasValue && err != nil {
				return i.misuse("%s takes true or false, not %q", flag, value)
			}
			i.flags = append(i.flags, arg)
			continue
		case !hasValue && len(rest) == 0:
			return i.misuse("%s needs a value", flag)
		case !hasValue && strings.HasPrefix(rest[0], "--"):
			// Far more often a forgotten value than one that looks like a flag.
			return i.misuse("%s needs a value; if it is meant to be %q, write %s=%s", flag, rest[0], flag, rest[0])
		case !hasValue:
			value, rest = rest[0], rest[1:]
		}
		if value == "" {
			return i.misuse("%s needs a value that is not empty", flag)
		}
		i.flags = append(i.flags, flag+"="+value)
	}
	return nil
}

// countArgs compares the arguments with the command's ArgsUsage, where brackets mark the optional ones.
func (i *invocation) countArgs() error {
	wanted := strings.Fields(i.command.ArgsUsage)
	for n, word := range wanted {
		if n >= len(i.args) && !strings.HasPrefix(word, "[") {
			return i.misuse("%s is missing", word)
		}
	}
	if len(i.args) > len(wanted) {
		return i.misuse("unexpected argument %q", i.args[len(wanted)])
	}
	return nil
}

func lookupFlag(flags []cli.Flag, arg string) (takesValue, known bool) {
	for _, f := range flags {
		if "--"+f.Names()[0] == arg {
			return f.(cli.DocGenerationFlag).TakesValue(), true
		}
	}
	return false, false
}

func commandNames(commands []*cli.Command) []string {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name)
	}
	return names
}

func flagNames(c *cli.Command) []string {
	var names []string
	for _, f := range c.Flags {
		names = append(names, f.Names()[0])
	}
	return append(names, "help")
}

// didYouMean returns a hint at the known word that is nearest to what was written, or nothing.
func didYouMean(written string, known []string, prefix string) string {
	word := strings.ToLower(strings.TrimLeft(written, "-"))
	best, nearest := "", max(2, len(word)/3)+1
	for _, k := range known {
		if d := distance(word, k); d < nearest {
			best, nearest = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s%s?", prefix, best)
}

// distance counts the single-letter edits between two words (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
