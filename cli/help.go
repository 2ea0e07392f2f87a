package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

const about = `blkmirror keeps a second copy of a Linux disk on another machine, live or once.

Every block is hashed where it is read and where it is written, and the two are compared. What was
interrupted goes on where it stopped.
`

const exitCodes = `Exit codes:
  0 done   1 other error, interrupted   2 usage   3 network   4 authentication
  5 integrity: a mismatch that retries did not clear, or that verify found
  6 device, state directory or journal
  7 refused by state: in use, mounted, too small, unknown volume; status --check: needs a look
`

// printHelp prints the help of the command that was called, or of the program.
func printHelp(w io.Writer, commands []*cli.Command, call invocation) {
	if call.command == nil {
		fmt.Fprintf(w, "%s\nUsage:\n  %s COMMAND [ARGUMENTS] [FLAGS]\n\nCommands:\n", about, name)
		printCommands(w, "", commands)
		fmt.Fprintf(w, "\n%s\n'%s COMMAND --help' tells more about each.\n", exitCodes, name)
		return
	}
	c, path := call.command, strings.Join(call.path, " ")
	usage := []string{name, path}
	if c.ArgsUsage != "" {
		usage = append(usage, c.ArgsUsage)
	}
	if len(c.Subcommands) > 0 {
		usage = append(usage, "COMMAND")
	}
	fmt.Fprintf(w, "%s.\n\nUsage:\n  %s [FLAGS]\n", capital(c.Usage), strings.Join(usage, " "))
	if c.Description != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(c.Description))
	}
	if len(c.Subcommands) > 0 {
		fmt.Fprint(w, "\nCommands:\n")
		printCommands(w, path+" ", c.Subcommands)
	}
	fmt.Fprint(w, "\nFlags:\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range c.VisibleFlags() {
		printFlag(t, f)
	}
	fmt.Fprint(t, "  -h, --help\tthis help\n")
	t.Flush()
	if c.UsageText != "" {
		fmt.Fprintf(w, "\nExamples:\n  %s\n", strings.ReplaceAll(strings.TrimSpace(c.UsageText), "\n", "\n  "))
	}
}

func printCommands(w io.Writer, parent string, commands []*cli.Command) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range commands {
		fmt.Fprintf(t, "  %s\t%s\n", strings.TrimSpace(parent+c.Name+" "+c.ArgsUsage), c.Usage)
	}
	t.Flush()
}

// printFlag takes the value's name from the backquotes in the flag's usage.
func printFlag(w io.Writer, f cli.Flag) {
	doc := f.(cli.DocGenerationFlag)
	text, value := doc.GetUsage(), ""
	if before, rest, ok := strings.Cut(text, "`"); ok {
		word, after, _ := strings.Cut(rest, "`")
		text, value = before+word+after, " "+word
	}
	if def := doc.GetDefaultText(); doc.TakesValue() && def != "" && def != `""` {
		text += " (default " + strings.Trim(def, `"`) + ")"
	}
	fmt.Fprintf(w, "  --%s%s\t%s\n", f.Names()[0], value, text)
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
